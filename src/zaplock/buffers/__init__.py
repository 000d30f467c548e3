"""`zaplock.buffers`: numpy arrays on mappings of their own."""
