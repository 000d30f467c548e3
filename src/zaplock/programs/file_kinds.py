"""What a file is, as far as its path or the name of its mapping tells."""

from __future__ import annotations

import posixpath
import re

SPECIAL = ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]")


def is_driver(path: str) -> bool:
    """Return whether what can be done with mappings of a path is its driver's to say."""
    if path == "/dev/zero" or is_secret(path) or path.startswith(_IN_MEMORY):
        return False
    return path.startswith(("/dev/", "anon_inode:", "/proc/", "/sys/", "/dmabuf:", *_SOCKETS))


def kind_of_special(name: str) -> str:
    """Return which operations a mapping has that is the kernel's own, or secret, "" for others."""
    return "special" if name in SPECIAL else "secret" if is_secret(name) else ""


def is_secret(path: str) -> bool:
    """Return whether a path is that of memfd_secret, as links of descriptors and maps show it."""
    return path in ("/secretmem (deleted)", "/secretmem", "anon_inode:[secretmem]")


_NEVER_MAPPED = (
    "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[timerfd]", "anon_inode:inotify",
    "anon_inode:[signalfd]", "anon_inode:[userfaultfd]", "/dev/null", "/dev/full", "/dev/random",
    "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/net/tun",
    "/dev/userfaultfd", "anon_inode:[fanotify]", "anon_inode:[pidfd]",
)  # fmt: skip
"""Files without a mmap of their own: ENODEV. The recorder writes a directory with a / behind it."""
_NEVER_MAPPED_KINDS = re.compile(r"(?:.*/|/proc/\d+/[a-z_]+|pid:-?\d+|[a-z_]+:\[\d+\])")
"""So are directories, what /proc has of a process, pidfds, pipes, namespaces and most sockets."""
_IN_MEMORY = ("/dev/shm/", "/dev/hugepages/")
_SOCKETS = ("socket:", "TCP", "UDP", "UNIX", "NETLINK", "PACKET")


def kind_of(path: str) -> str:
    """Tell from its path what a file is, as far as mappings differ by it."""
    if label(path) == "zero":
        return "zero"
    if _NEVER_MAPPED_KINDS.fullmatch(path) or path.startswith(_SOCKETS) or path in _NEVER_MAPPED:
        return "none"
    if path.startswith(("/memfd:", "memfd:", "/dev/shm/", "/SYSV", "SYSV")):
        return "shmem"
    return "shmem" if path.startswith(("/dev/", "anon_inode:", "/proc/", "/sys/")) else "disk"


def label(path: str) -> str:
    """Return the name by which mappings of a path are compared: its last part."""
    path = path.removesuffix(" (deleted)")
    return path.lstrip("/") if "memfd:" in path else posixpath.basename(path)
