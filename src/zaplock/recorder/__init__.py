"""Record who holds and who waits for an mmap_lock: tracefs, decoding, naming, files."""
