"""zaplock: what a process's address-space lock does to the people who wait for it."""

__version__ = "0.1.0"
