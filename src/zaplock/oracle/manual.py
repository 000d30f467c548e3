"""Which errors the manual pages name for these calls, and why some of them can't be had here.

Source: man-pages 6.9 (mmap(2), mremap(2), madvise(2), ...), mseal(2) and process_madvise(2).
`zaplock oracle --coverage` holds a run against it.
"""

from __future__ import annotations

WANTED: dict[str, tuple[str, ...]] = {
    "mmap": ("EAGAIN", "EBADF", "EEXIST", "EINVAL", "ENOMEM", "ENOTSUP", "EOVERFLOW", "EPERM"),
    "munmap": ("EINVAL", "EPERM"),
    "mprotect": ("EINVAL", "ENOMEM", "EPERM"),
    "pkey_mprotect": ("EINVAL", "ENOMEM"),
    "mremap": ("EAGAIN", "EFAULT", "EINVAL", "ENOMEM", "EPERM"),
    "madvise": ("EACCES", "EFAULT", "EINVAL", "ENOMEM", "EPERM"),
    "process_madvise": ("EFAULT", "EINVAL", "ENOMEM"),
    "mlock": ("EINVAL", "ENOMEM", "EPERM"),
    "mlock2": ("EINVAL", "ENOMEM", "EPERM"),
    "munlock": ("EINVAL", "ENOMEM"),
    "mlockall": ("EINVAL", "ENOMEM", "EPERM"),
    "msync": ("EBUSY", "EINVAL", "ENOMEM"),
    "mincore": ("EFAULT", "EINVAL", "ENOMEM"),
    "remap_file_pages": ("EINVAL",),
    "mseal": ("EINVAL", "ENOMEM"),
    "ftruncate": ("EBADF", "EINVAL"),
    "uffd_register": ("EINVAL",),
    "uffd_unregister": ("EINVAL",),
    "load": ("SIGSEGV/MAPERR", "SIGSEGV/ACCERR", "SIGSEGV/KERNEL", "SIGBUS/ADRERR"),
    "store": ("SIGSEGV/MAPERR", "SIGSEGV/ACCERR", "SIGSEGV/KERNEL", "SIGBUS/ADRERR"),
}
"""What must occur besides success; "ENOTSUP" is what errno calls EOPNOTSUPP on Linux."""

OUT_OF_REACH: dict[tuple[str, str], str] = {
    ("mmap", "EACCES"): "every file of the oracle is open for reading and writing",
    ("mmap", "ENFILE"): "needs the whole machine to be out of open files",
    ("mmap", "ENODEV"): "every file of the oracle can be mapped",
    ("mmap", "ETXTBSY"): "MAP_DENYWRITE has been ignored since 2.6",
    ("munmap", "ENOMEM"): "needs max_map_count mappings",
    ("mprotect", "EACCES"): "every file of the oracle is open for reading and writing",
    ("madvise", "EAGAIN"): "needs max_map_count mappings, or the kernel out of memory",
    ("madvise", "EBADF"): "WILLNEED of anonymous memory, in kernels without swap",
    ("madvise", "EBUSY"): "MADV_COLLAPSE and MADV_HWPOISON are left out",
    ("madvise", "EHWPOISON"): "needs broken memory",
    ("madvise", "EIO"): "needs a failing disk",
    ("mlock", "EAGAIN"): "needs the kernel out of memory",
    ("mincore", "EAGAIN"): "needs the kernel out of memory",
    ("brk", "ENOMEM"): "the system call itself returns the old end instead",
    ("process_madvise", "EBADF"): "the pidfd is always the process's own",
    ("process_madvise", "EPERM"): "one's own process is always allowed (seals apart)",
    ("process_madvise", "ESRCH"): "the process is there",
    ("mseal", "EPERM"): "32-bit kernels only",
    ("fork", "EAGAIN"): "needs RLIMIT_NPROC, which concerns every process of the user",
    ("fork", "ENOMEM"): "needs the kernel out of memory",
    ("ftruncate", "EFBIG"): "lengths stay small, so that files fit into memory",
    ("ftruncate", "EPERM"): "no file is sealed",
}
"""Errors that a manual page names and no run shows, each with the reason."""

LEAST = 100


def missing(outcomes: dict[str, dict[str, int]], least: int = LEAST) -> list[str]:
    """List what occurred fewer than `least` times in a run, as "mremap EAGAIN: 17"."""
    return [
        f"{name} {outcome}: {outcomes.get(name, {}).get(outcome, 0)}"
        for name, wanted in WANTED.items()
        for outcome in ("ok", *wanted)
        if outcomes.get(name, {}).get(outcome, 0) < least
    ]
