"""What elementary work costs on this machine: experiments (raw), and units derived from them.

worker runs the experiments of one round in a process of its own; pages, calls and tasks hold the
experiments; derive turns a round's raw figures into the units of a cost profile.
"""
