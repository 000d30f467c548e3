"""`zaplock run --release`: a library that frees a program's big mappings by pieces.

    release.c   the library: which calls of a program it stands before
    kernel.c    system calls, made without libc
    pace.c      how much at a time, as zaplock/release/pace.py
    plain.c     of which memory it is certain
    away.c      pages taken away at once, and given back later
    worker.c    in the background, where that is asked for
    trial.c     whether it works here
    library     compiled, tried, and the environment in which a program loads it
    programs    in which programs nothing can be loaded

It is C because it runs in programs of any language; it is compiled when it is first used.
"""
