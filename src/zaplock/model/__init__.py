"""The address space of Linux as data: state and steps, no clock, no I/O.

`store` holds all state in small journaled cells; `step` says what a protocol awaits; `rwsem` is the
lock; the other modules are the parts of an address space and the steps that change them.
"""
