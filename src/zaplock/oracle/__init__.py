"""The real kernel judges the model: random operations on both sides, everything compared.

    generate -> program -> child (the real side)  \\
                                                    compare -> shrink -> script, record
    generate -> modelside (the model)             /

`child` runs programs of system calls in a bare process (`stub`, `ring`), `observe` and `modelview`
show both address spaces as equal values (`ops`), `campaign` runs slices of sequences over jobs,
`coverage` counts what was exercised, `locks` compares lock sequences, `strace` and `replay` run
recorded programs on the model, `faults` breaks the model to see whether that is found.

What is compared and what is not:
docs/fidelity.md.
"""
