"""Events -> holds -> waits -> blame: one event stream for the real and the simulated side."""
