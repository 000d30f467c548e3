"""`zaplock.buffers`: numpy arrays whose end stalls nobody.

a = zaplock.buffers.empty((1 << 30,), "f8", populate=True)
b = zaplock.buffers.resize(a, (2 << 30,))
with zaplock.buffers.borrowed((1 << 30,)) as scratch: ...

arrays    empty, populate, resize, borrowed
mapping   the mmap.mmap under an array, for other libraries that take a buffer
"""

from zaplock.buffers.arrays import borrowed, empty, populate, resize
from zaplock.buffers.mapping import Mapping, MappingError, NoMemoryError

__all__ = ["Mapping", "MappingError", "NoMemoryError", "borrowed", "empty", "populate", "resize"]
