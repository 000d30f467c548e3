"""Too little of something, or too long a name, is no fault of zaplock: one line names the limit."""

from __future__ import annotations

import errno
import os
import resource
import sys

from zaplock.errors import UserError
from zaplock.extras import lack

LEAST_ADDRESS_SPACE = 768 << 20
"""What numpy, polars and their threads map, whether they use it or not."""

LEAST_FILES = 64
"""What a recording of a machine with some CPUs has open, and the libraries."""

_MOST_FILES = 4096

_ENDED = {
    errno.EMFILE: "this process may open no more files: raise 'ulimit -n' (64 do for two CPUs)",
    errno.ENFILE: "this machine has no more files to open: close some",
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your share of the disk is full: free some space",
    errno.ENOMEM: "the kernel has no more memory: free some, or give a smaller --buffer",
    errno.EAGAIN: "no more threads or processes can be started: raise 'ulimit -u'",
}


def require_room() -> None:
    """Raise UserError where the libraries that are needed could not even be mapped or opened.

    The number of files that may be open is raised as far as it may be.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        raise UserError(f"{hard} files may be open and {LEAST_FILES} are needed: raise 'ulimit -n'")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise UserError(
            f"the address space is limited to {limit >> 20} MiB and {LEAST_ADDRESS_SPACE >> 20} "
            "MiB are needed: raise 'ulimit -v'"
        )


def _is_no_proc(path: object) -> bool:
    """Say whether a file is missing since /proc is not mounted, or without what is no process's."""
    whole = all(os.path.exists(f"/proc/{name}") for name in ("self", "sys/kernel", "meminfo"))
    return str(path).startswith("/proc/") and not whole


_EXTRAS = {"agent": "fleet", "fleet": "fleet"}
"""Verbs that need an extra as a whole."""


def shortage(error: BaseException, verb: str) -> str | None:
    """Say in one line what an error is the lack of, or None where it is none of these."""
    if isinstance(error, MemoryError):
        return "there is no more memory: free some, or raise 'ulimit -v'"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG and error.filename:
        return f"{str(error.filename)[:40]!a}... is longer than a name may be: give a shorter one"
    if isinstance(error, OSError) and error.errno in _ENDED:
        return _ENDED[error.errno]
    if isinstance(error, FileNotFoundError) and _is_no_proc(error.filename):
        return f"{error.filename} is missing: mount all of proc ('mount -t proc proc /proc')"
    if isinstance(error, PermissionError) and error.filename == sys.executable:
        from zaplock.workers import no_python

        return no_python()
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return _ENDED[errno.EAGAIN]
    # The loader opens libraries itself, and its words are all that it says.
    if isinstance(error, ImportError) and "Too many open files" in str(error):
        return _ENDED[errno.EMFILE]
    wanted = _EXTRAS.get(verb, "")
    return lack(error, extra=wanted) if isinstance(error, ImportError) else None
