"""A discrete-event simulation in virtual nanoseconds: CPUs, semaphores, threads."""
