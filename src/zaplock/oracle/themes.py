"""Themes: what the operations of a sequence are mostly about."""

THEMES = (
    "plain", "advice", "lock", "move", "file", "kernel", "fork", "brk", "limits", "grow", "huge",
    "seal", "process", "memfd", "uffd", "uffd-move", "uffd-huge", "uring", "policy", "lazyfree",
    "references", "dirty", "ksm", "group", "shm", "pageout", "swap", "collapse", "collapse-file",
    "hugetlb", "gigantic", "hugetlbfs", "shmem-huge", "shmem-advise", "shmem-sizes", "crowd",
    "wild",
)  # fmt: skip
"""In this order they are drawn from; how often each operation comes in each of them stands in
`draw_arguments.WEIGHTS`."""

WATCHERS = ("uffd", "uffd-move", "uffd-huge")
"""Themes that are all about what a userfaultfd watches."""
PAGING_OUT = ("pageout", "swap")
"""Themes that send pages to swap."""
BY_SETTING = ("shmem-advise", "shmem-sizes")
"""Themes about huge pages of shared memory and memfds, which settings of the machine allow."""
OF_SHARED_HUGE = ("shmem-huge", *BY_SETTING)
"""Themes about huge pages that faults and writes make of files in memory."""
SOMETIMES_WATCHED = (*PAGING_OUT, "collapse-file", *OF_SHARED_HUGE)
"""Themes in which a userfaultfd watches in three of ten sequences."""
COLLAPSING = ("collapse", "collapse-file", *OF_SHARED_HUGE)
"""Themes that collapse memory."""
FIRST = {"brk": "brk", "crowd": "crowd"}
"""The operation that a theme's sequences begin with."""
WITH_OWN_MAKERS = ("gigantic", "hugetlbfs")
"""Themes that choose arguments in ways of their own (draw_arguments.MAKERS_OF_THEMES)."""

ASKED_FOR = (
    "crowd", "hugetlb", "gigantic", "hugetlbfs", "group", "collapse", "uffd-huge", "pageout", "shm",
    "uring", "ksm", "swap", "collapse-file", "shmem-huge", "shmem-advise", "shmem-sizes",
)  # fmt: skip
"""Themes that run only when asked for: "crowd" is slow, "hugetlb", "gigantic" and "hugetlbfs" need
pools, "group" a memory cgroup, "collapse", "collapse-file", "shmem-huge", "shmem-advise" and
"uffd-huge" free huge pages at every moment, "shmem-huge" mounts of tmpfs, too, "shmem-advise" a
setting of the machine, and "shmem-sizes" several, so only guests have that. "pageout" needs a
machine without swap, "shm" a namespace for System V shared memory, "uring" an io_uring, which not
everybody may have; "ksm" starts ksmd, and "swap" makes swap.
What mincore says of pages in swap is not compared: it depends on what was written."""

NEAR_THEMES = ("lock", "limits", "brk", "grow", "ksm", "group")
"""Themes whose mappings are short: else what is long would be faulted in."""
