"""Themes: what the operations of a sequence are mostly about, each name with its weight."""

_WATCHING = {"uffd_register": 4, "uffd_unregister": 1, "uffd_copy": 4, "uffd_zeropage": 2,
             "uffd_continue": 4, "uffd_poison": 2, "uffd_writeprotect": 6}  # fmt: skip
_STAYING = {"mmap": 24, "munmap": 7, "mprotect": 12, "load": 9, "store": 20, "mincore": 2}
_COMMON = {**_STAYING, "into_child": 1}  # not where something belongs to the parent alone
_WITHOUT_MINCORE = {name: weight for name, weight in _COMMON.items() if name != "mincore"}
_GIGANTIC = {
    "mmap": 26, "munmap": 7, "mprotect": 8, "load": 5, "store": 7, "mremap": 8,
    "madvise": 12, "ftruncate": 4, "mlock": 1, "munlock": 1, "mincore": 2, "fork": 3,
    "into_child": 2, "msync": 1, "mseal": 1,
}  # fmt: skip
_HUGETLBFS = {
    "mmap": 26, "munmap": 8, "mprotect": 5, "load": 7, "store": 14, "mremap": 6,
    "madvise": 14, "ftruncate": 5, "huge_fallocate": 9, "huge_room": 6, "mlock": 1,
    "munlock": 1, "mincore": 1, "fork": 3, "into_child": 2, "msync": 1,
    "mseal": 1,
}  # fmt: skip
THEMES: dict[str, dict[str, int]] = {
    "plain": {**_COMMON, "mremap": 10, "madvise": 8, "msync": 2, "remap_file_pages": 1},
    "advice": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 4, "fork": 2},
    "lock": {**_COMMON, "mlock": 10, "mlock2": 8, "munlock": 8, "mlockall": 3, "munlockall": 2,
             "mremap": 10, "madvise": 6, "brk": 3, "setrlimit": 4},
    "move": {**_COMMON, "mremap": 40, "madvise": 4, "mlock": 2},
    "file": {**_COMMON, "ftruncate": 8, "pread": 4, "pwrite": 4, "msync": 6, "madvise": 10,
             "mremap": 6, "remap_file_pages": 6, "fork": 1},
    "kernel": {**_COMMON, "pread": 8, "pwrite": 8, "process_vm_readv": 10, "process_vm_writev": 12,
               "fork": 3, "madvise": 8, "mremap": 4, "mlock": 2, "ftruncate": 3, "mseal": 1},
    "fork": {**_STAYING, "fork": 12, "into_child": 4, "madvise": 16, "mremap": 6, "mlock": 2},
    "brk": {**_COMMON, "brk": 30, "mlockall": 2, "madvise": 4, "mremap": 4, "setrlimit": 1},
    "limits": {**_COMMON, "setrlimit": 12, "mlock": 6, "mlockall": 3, "mremap": 8, "brk": 8},
    "grow": {**_COMMON, "store": 30, "mremap": 4, "mlock": 3, "setrlimit": 1, "madvise": 3},
    "huge": {**_COMMON, "madvise": 30, "mremap": 6, "fork": 1, "mlock": 2},
    "seal": {**_COMMON, "mseal": 16, "mremap": 8, "madvise": 24, "mlock": 2, "brk": 2},
    "process": {**_COMMON, "set_mdwe": 3, "set_thp_disable": 5, "set_memory_merge": 5,
                "madvise": 16, "mprotect": 24, "brk": 2, "fork": 4, "mremap": 4, "mlock": 1},
    "memfd": {**_COMMON, "add_seals": 8, "ftruncate": 10, "pwrite": 8, "pread": 3, "madvise": 12,
              "mprotect": 16, "mremap": 8, "fork": 2, "mlock": 1, "remap_file_pages": 1},
    "uffd": {**_COMMON, "uffd_register": 4, "uffd_unregister": 2, "uffd_copy": 10,
             "uffd_zeropage": 6, "uffd_continue": 8, "uffd_poison": 6, "uffd_writeprotect": 12,
             "mremap": 6, "madvise": 8, "fork": 1, "mlock": 1, "ftruncate": 2},
    "uffd-move": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 4,
                  "uffd_zeropage": 4, "uffd_poison": 2, "uffd_writeprotect": 3, "uffd_move": 30,
                  "fork": 3, "mremap": 3, "madvise": 8, "mlock": 1},
    "uffd-huge": {**_COMMON, "uffd_register": 3, "uffd_unregister": 1, "uffd_copy": 2,
                  "uffd_zeropage": 2, "uffd_writeprotect": 4, "uffd_move": 36, "fork": 4,
                  "mremap": 4, "madvise": 14, "mlock": 1},
    "uring": {**_STAYING, "uring_register": 30, "mremap": 4, "madvise": 12, "fork": 4, "mlock": 2,
              "ftruncate": 4, "mseal": 1},
    "policy": {**_COMMON, "mbind": 40, "set_mempolicy_home_node": 12, "mremap": 10, "madvise": 6,
               "mlock": 2, "fork": 1, "brk": 2, "mseal": 1},
    "lazyfree": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 6, "mlock": 4,
                 "mlock2": 1, "munlock": 3, "pread": 3, "pwrite": 2, "process_vm_readv": 2,
                 "process_vm_writev": 4, "ftruncate": 1},
    "references": {**_COMMON, "clear_refs": 14, "mremap": 6, "madvise": 14, "fork": 5, "load": 16},
    "ksm": {**_COMMON, "store_value": 24, "madvise": 24, "ksm_scan": 10, "ksm_unmerge": 2,
            "ksm_zero_pages": 2, "mremap": 8, "fork": 4, "mlock": 3, "mlock2": 1, "munlock": 1,
            "set_memory_merge": 2, "brk": 2, "mseal": 1, "process_vm_readv": 1,
            "process_vm_writev": 2, "ftruncate": 1},
    "group": {**_COMMON, "fill_memory": 6, "fork": 3, "madvise": 16, "mremap": 6, "mlock": 2,
              "ftruncate": 2, "brk": 2},
    "shm": {**_STAYING, "shmat": 20, "shmdt": 10, "mremap": 8, "madvise": 10, "fork": 3, "mlock": 2,
            "uffd_register": 2, "uffd_copy": 1, "msync": 1, "mseal": 1},
    "pageout": {**_COMMON, "madvise": 40, "process_madvise": 4, "mremap": 6, "fork": 4, "mlock": 2,
                "ftruncate": 4, "pread": 3, "pwrite": 3, **_WATCHING},
    "swap": {**_WITHOUT_MINCORE, "madvise": 40, "process_madvise": 4, "mremap": 8, "fork": 5,
             "mlock": 2, "mlock2": 1, "ftruncate": 4, "pread": 4, "pwrite": 4, "brk": 1,
             "process_vm_readv": 3, "process_vm_writev": 3, "msync": 1, "uffd_move": 4,
             **_WATCHING},
    "collapse": {**_COMMON, "madvise": 40, "mremap": 4, "fork": 1, "mlock": 1},
    "hugetlb": {"mmap": 24, "munmap": 8, "mprotect": 8, "load": 8, "store": 14, "mremap": 8,
                "madvise": 14, "mlock": 2, "mincore": 2, "fork": 2, "msync": 1, "mseal": 1},
    "gigantic": _GIGANTIC,
    "hugetlbfs": _HUGETLBFS,
    "crowd": {"mmap": 24, "munmap": 14, "mprotect": 24, "mremap": 14, "madvise": 14, "mlock": 8,
              "munlock": 4, "mseal": 2, "brk": 3, "store": 6, "load": 3},
    "wild": {**_COMMON, "mremap": 10, "madvise": 10, "mlock": 5, "mlock2": 5, "munlock": 4,
             "msync": 6, "mincore": 8, "brk": 5, "remap_file_pages": 5, "mseal": 1,
             "pkey_mprotect": 5, "process_madvise": 4},
}  # fmt: skip
"""By theme: how often each operation comes, beside the others."""

WATCHERS = ("uffd", "uffd-move", "uffd-huge")
"""Themes that are all about what a userfaultfd watches."""
PAGING_OUT = ("pageout", "swap")
"""Themes in which it watches in three of ten sequences."""
TO_WATCHED = {*_WATCHING, "uffd_move"}
"""Operations that need a userfaultfd."""
FIRST = {"brk": "brk", "crowd": "crowd"}
"""The operation that a theme's sequences begin with."""
WITH_OWN_MAKERS = ("gigantic", "hugetlbfs")
"""Themes that choose arguments in ways of their own (draw_arguments.MAKERS_OF_THEMES)."""

ASKED_FOR = (
    "crowd", "hugetlb", "gigantic", "hugetlbfs", "group", "collapse", "uffd-huge", "pageout", "shm",
    "uring", "ksm", "swap",
)  # fmt: skip
"""Themes that run only when asked for: "crowd" is slow, "hugetlb", "gigantic" and "hugetlbfs" need
pools, "group" a memory cgroup, "collapse" and "uffd-huge" free huge pages at every moment,
"pageout" a machine without swap, "shm" a namespace for System V shared memory, "uring" an io_uring,
which not everybody may have; "ksm" starts ksmd, and "swap" makes swap. What mincore says of pages
in swap is not compared: it depends on what was written."""

NEAR_THEMES = ("lock", "limits", "brk", "grow", "ksm", "group")
"""Themes whose mappings are short: else what is long would be faulted in."""
