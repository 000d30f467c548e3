"""Experiments on real kernels: the one that runs, and others in guests."""
