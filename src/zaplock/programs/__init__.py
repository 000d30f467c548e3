"""Recorded programs on the model: does it do what Linux did for programs that nobody here wrote?

    tracer (ptrace) -> recording_writer (spelling, notes) -> a file of text <- strace
    parser (recorded_lines) -> recording, text -> spaces -> search (orders) -> replay
    (recorded_world, calls, descriptors, inferred, unrecorded, maps) -> verdict

`tracer` records, `parser` parses what it or strace has written, `spaces` sorts the calls by address
space, `replay` runs them on the model and rules on each. What results teach stands in `inferred`,
what is refused in `unrecorded`.
"""
