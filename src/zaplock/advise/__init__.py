"""`zaplock advise`: which mappings and calls of a program are worth changing, and what that gains.

Facts come from a recording (who really waited for whom) or from /proc/PID (what would stall if it
were called); what a change gains comes from this kernel, measured in a few seconds in a process
made for it.

    costs      what each call costs a page on this kernel, and what is left with paced pieces
    probe      the process in which that is measured
    calls      advice from a recording
    mappings   advice from /proc/PID, reading only what takes no lock of that process
"""
