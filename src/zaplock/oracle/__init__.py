"""The real kernel judges the model: random operations on both sides, everything compared.

    generate -> program -> real (a bare process)  \\
                                                    compare -> shrink -> script, record
    generate -> modelside (the model)             /

`generate` makes sequences: of a theme (`themes`), within what both sides have (`scope`), in small
windows of the address space (`windows`), with arguments that `draw_arguments` (`draw_ranges`,
`draw_advice`) chooses from what the sequence has so far (`draw`). `program` has a set-up
(`program_setup`) and then each operation's entries (`program_operations`, `composed_calls`,
`program_forks`). `real` runs programs in a `bare_process` (`stub`, `ring`), `observe` and
`modelview` show both address spaces as equal values (`ops`), `campaign` runs slices of sequences
over jobs, `coverage` counts what was exercised, `lock_sequences` compares lock sequences,
`seeded_faults` breaks the model to see whether that is found, `reproducer` writes a finding as a C
program. Recorded programs have a room of their own (`zaplock.programs`).

What is compared and what is not: docs/fidelity.md.
"""
