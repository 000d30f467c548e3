"""What `zaplock.release` refuses: each error is a UserError and the builtin that users expect.

`except BufferError` catches what `mmap.mmap.close` would raise as BufferError, `except ValueError`
what it would raise as ValueError; nobody has to know zaplock's own names.
"""

from zaplock.errors import UserError


class ReleaseError(UserError, ValueError):
    """Report memory that can't be released: the value, the rule, the way out."""


class BusyError(ReleaseError):
    """Report that another thread is releasing the same memory at this moment."""


class ExportedError(UserError, BufferError):
    """Report that other objects still point into the memory, as `mmap.mmap.close` does."""
