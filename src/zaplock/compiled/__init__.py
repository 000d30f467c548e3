"""C programs and libraries of zaplock's own, compiled from source when they are first needed.

build  the compiler, and what it made, kept by a hash of all that went into it
cache  the folder where that is kept, and who may write there
"""
