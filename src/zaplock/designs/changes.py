"""Linux as a dated list of changes: what each of them did to the rules of a design.

A row has the release that a change came with, its commit, the rules it set, and the stable releases
that took it as well. `linux.linux` folds the rows up to a release into a design. A rule is
documented where it changes; before its first row it is what `LINUX_4_9` or `Design` says.

Rows without rules are history that the model does not tell: they are shown, and change nothing.
"""

from __future__ import annotations

from zaplock.designs.change import Change
from zaplock.protocols.fault import page_fault_vma_lock
from zaplock.protocols.munmap import do_mas_align_munmap, do_munmap_4_20, do_vmi_align_munmap
from zaplock.protocols.proc import proc_pid_cmdline

CHANGES: tuple[Change, ...] = (
    Change(
        "4.11", "897ab3e0c49e", "userfaultfd: non-cooperative: add event for memory unmaps",
        "userfaultfd monitors are told of an unmap, after the unlock",
        {"uffd_unmap": True},
    ),
    Change(
        "4.13", "99baac21e458", "mm: fix MADV_[FREE|DONTNEED] TLB flush miss problem",
        "a finishing mmu_gather looks whether another is under way on the mm, and then flushes its "
        "whole range; that flush forgets that page tables were freed",
        {"nested_flush": "forget-tables"},
    ),
    Change(
        "4.14", "212925802454", "mm: oom: let oom_reap_task and exit_mmap run concurrently",
        "the oom reaper may zap beside exit_mmap. An oom killer's victim waits for it before it "
        "frees page tables: it takes the lock for write and gives it back",
        {"exit_lock": "late-barrier"},
    ),
    Change(
        "4.17", "27ae357fa82b", "mm, oom: fix concurrent munlock and oom reaper unmap, v3",
        "an oom killer's victim reaps itself in exit_mmap, and keeps the reaper out before it does "
        "anything else",
        {"exit_lock": "barrier"},
    ),
    Change(
        "4.18", "88aa7cc688d4",
        "mm: introduce arg_lock to protect arg_start|end and env_start|end in mm_struct",
        "a reader of /proc/PID/cmdline no longer takes the mmap_lock for the bounds: twice for a "
        "read, no longer three times",
        {"proc_cmdline": proc_pid_cmdline},
    ),
    Change(
        "4.19", "eb66ae030829", "mremap: properly flush TLB before releasing the page",
        'mremap flushes the TLB "inside" the page-table lock, no longer "outside": when another '
        "task finds the page by its rmap, nobody can reach it by the old address any more",
        {"mremap_flush": "inside"}, ("4.9.135", "4.14.78", "4.18.16"),
    ),
    Change(
        "4.20", "dd2283f2605e", "mm: mmap: zap pages with read mmap_sem in munmap",
        "munmap downgrades to a shared hold once the VMAs are detached. floor and ceiling of the "
        'page-table freeing are read "after" the downgrade, and the architecture\'s hook is called '
        'when the VMAs are "detached", before it',
        {
            "do_munmap": do_munmap_4_20, "munmap_downgrades": True,
            "bounds_read": "after", "arch_unmap": "detached",
        },
    ),
    Change(
        "4.20", "9bc8039e715d", "mm: brk: downgrade mmap_sem to read when shrinking",
        "a shrinking brk downgrades too",
        {"brk_downgrades": True},
    ),
    Change(
        "4.20", "85a06835f6f1", "mm: mremap: downgrade mmap_sem to read when shrinking",
        "a shrinking mremap downgrades too",
        {"mremap_downgrades": True},
    ),
    Change(
        "4.20", "4b486b535c33",
        "locking/rwsem: Exit read lock slowpath if queue empty & no writer",
        "a reader that comes when the writer has just left, with nobody queued, has the lock "
        'without queueing; it reads the count "relaxed", so what it reads under the lock may have '
        "been read before that",
        {"read_leaves_queue": "relaxed"},
    ),
    Change(
        "5.2", "5a28fc94c914", "x86/mpx, mm/core: Fix recursive munmap() corruption",
        'the architecture\'s hook is called "first" of all, before any VMA was looked up',
        {"arch_unmap": "first"}, ("5.0.19", "5.1.5"),
    ),
    Change(
        "5.2", "7a30df49f63a", "mm: mmu_gather: remove __tlb_reset_range() for force flush",
        "a finish beside another gather flushes everything, freed page tables included",
        {"nested_flush": "full"}, ("5.1.13",),
    ),
    Change(
        "5.2", "a9e9bcb45b15", "locking/rwsem: Prevent decrement of reader count before increment",
        "the waker counts the readers that it lets in before any of them can run and leave",
        {"rwsem": {"counts_first": True}},
        ("4.9.178", "4.14.121", "4.19.45", "5.0.18", "5.1.4"),
    ),
    Change(
        "5.2", "134fca9063ad", "mm/mincore.c: make mincore() more conservative",
        "mincore calls every page of a file present that the caller neither owns nor may write",
        backported=("4.9.178", "4.14.121", "4.19.45", "5.0.18", "5.1.4"),
    ),
    Change(
        "5.3", "4f23dbc1e657", "locking/rwsem: Implement lock handoff to prevent lock starvation",
        "a waiter that has waited 4 ms gets the lock handed over at the next release",
        {"rwsem": {"handoff_ns": 4_000_000}},
    ),
    Change(
        "5.3", "d3681e269fff", "locking/rwsem: Wake up almost all readers in wait queue",
        "when a reader is first, up to 256 readers from anywhere in the queue are woken with it",
        {"rwsem": {"wakes": "all"}},
    ),
    Change(
        "5.3", "cf69482d62d9", "locking/rwsem: Enable readers spinning on writer",
        "a reader may spin on a lock that a writer owns, and enter past the queue",
        {"rwsem": {"reader_steals": "spinning"}},
    ),
    Change(
        "5.3", "7d43f1ce9dd0",
        "locking/rwsem: Enable time-based spinning on reader-owned rwsem",
        "a writer spins up to 25 us on a lock that readers own",
        {"rwsem": {"writer_spins": "any"}},
    ),
    Change(
        "5.3", "1e426fe28261",
        "mm: use down_read_killable for locking mmap_sem in access_remote_vm",
        "a fatal signal ends the wait of a reader of /proc/PID/cmdline, so it no longer counts as "
        "a hung task",
        {"cmdline_killable": True}, ("4.19.63", "5.2.5"),
    ),
    Change(
        "5.3", "e1b98fa31664",
        "locking/rwsem: Add missing ACQUIRE to read_slowpath exit when queue is empty",
        "such a reader reads nothing early any more",
        {"read_leaves_queue": "acquire"}, ("5.2.12",),
    ),
    Change(
        "5.3", "99143f82a255",
        "lcoking/rwsem: Add missing ACQUIRE to read_slowpath sleep loop",
        "nor does a reader that finds, before it sleeps, that the lock was handed to it",
        {"read_wakes": "acquire"}, ("5.2.12",),
    ),
    Change(
        "5.5", "89b15332af7c",
        "mm: drop mmap_sem before calling balance_dirty_pages() in write fault",
        "a fault that makes a page of a shared file dirty lets the lock go before it is throttled",
        {"dirty_fault_lets_go": True}, ("5.4.9",),
    ),
    Change(
        "5.8", "246c320a8cfe",
        "mm/mmap.c: close race between munmap() and expand_upwards()/downwards()",
        "munmap, brk and mremap keep the exclusive hold beside a stack that might grow into the "
        "range under read",
        {"downgrade_beside_growable": False}, ("5.4.54", "5.7.11"),
    ),
    Change(
        "5.10", "ff9f47f6f00c",
        "mm: proc: smaps_rollup: do not stall write attempts on mmap_lock",
        "a reader of smaps_rollup gives the lock up between two VMAs when somebody waits for it",
        {"rollup_lets_go": True},
    ),
    Change(
        "5.11", "29a951dfb3c3", "mm: fix clear_refs_write locking",
        'whatever is written to /proc/PID/clear_refs, the pages are walked under "write"; before, '
        'under "read", but for the peak',
        {"clear_refs_lock": "write"}, ("5.10.9",),
    ),
    Change(
        "5.11", "617f3ef95177", "locking/rwsem: Remove reader optimistic spinning",
        "readers no longer spin",
        {"rwsem": {"reader_steals": "never"}},
    ),
    Change(
        "5.11", "1a728dff855a", "locking/rwsem: Enable reader optimistic lock stealing",
        'a reader that arrives may enter past a queue ("unheld")',
        {"rwsem": {"reader_steals": "unheld"}},
    ),
    Change(
        "5.11", "2f06f702925b", "locking/rwsem: Prevent potential lock starvation",
        '... unless other readers hold the lock, which is what "unheld" says',
        {"rwsem": {"reader_steals": "unheld"}},
    ),
    Change(
        "5.14", "97113eb39fa7",
        "mm/mremap: hold the rmap lock in write mode when moving page table entries.",
        "mremap takes the rmap locks when it moves whole page tables",
        backported=("5.10.137", "5.13.3"),
    ),
    Change(
        "5.15", "884a7e5964e0", "mm: introduce process_mrelease system call",
        "a second reaper, which waits for the lock",
    ),
    Change(
        "5.16", "d257cc8cb8d5", "locking/rwsem: Make handoff bit handling more consistent",
        "the handoff is the first waiter's, and goes when it goes",
        backported=("5.15.6",),
    ),
    Change(
        "5.16", "fe3d10024073", "s390/mm: validate VMA in PGSTE manipulation functions",
        "KVM on s390 walks to a page-table entry only inside a VMA: since munmap frees page tables "
        "under read, a walk in a hole may stand in one that is freed",
        {"pgste_finds_vma": True}, ("4.14.257", "4.19.219", "5.4.163", "5.10.83", "5.15.3"),
        doubt="which release of 5.14 took it is not confirmed",
    ),
    Change(
        "5.17", "64591e8605d6",
        "mm: protect free_pgtables with mmap_lock write lock in exit_mmap",
        "all of exit_mmap runs under write: readers of /proc wait for a whole exit, in these "
        "releases only. process_mrelease no longer has to be a user of the mm",
        {"exit_lock": "write"},
    ),
    Change(
        "5.18", "a213e5cf71cb", "mm/munlock: delete munlock_vma_pages_all(), allow oomreap",
        "no pass over locked pages before the zap: they are munlocked as their rmap goes, so under "
        "read; the oom reaper takes locked memory, too",
        {"munlock_pass": False},
    ),
    Change(
        "5.19", "b67fbebd4cf9", "mmu_gather: Force tlb-flush VM_PFNMAP vmas",
        "mappings of device memory are flushed before they leave the rmap: who revokes the memory "
        "would no longer find them (CVE-2022-39188)",
        {"flush_before_rmap": True},
        ("4.9.329", "4.14.294", "4.19.259", "5.4.214", "5.10.144", "5.15.69"),
        doubt="stable series have a patch of their own (895428ee124a in 5.10.141), which looked at "
        "the first VMA only until these releases; 4.19.259 and 5.4.214 are known from their "
        "release candidates",
    ),
    Change(
        "5.19", "6eebd5fb2083",
        "locking/rwsem: Allow slowpath writer to ignore handoff bit if not set by first waiter",
        "a writer that is not first may take a free lock although a handoff is due",
        backported=("5.18.16",),
    ),
    Change(
        "5.19", "a7f226604170",
        "mm/gup: trigger FAULT_FLAG_UNSHARE when R/O-pinning a possibly shared anonymous page",
        "who pins an anonymous page to read it gets one that nobody shares: a page that KSM has "
        "merged is copied",
        {"pins_unshare": True},
    ),
    Change(
        "6.0", "64fe24a3e05e",
        "mm/mprotect: try avoiding write faults for exclusive anonymous pages when changing "
        "protection",
        "mprotect that allows writing makes private pages of one's own writable at once; before, "
        "the first write to each took a fault. Not told: of huge pages (6.2)",
        {"mprotect_lets_write": True},
    ),
    Change(
        "6.1", "763ecb035029", "mm: remove the vma linked list",
        "VMAs live in a maple tree alone, whose nodes are replaced and not changed in place",
        {"tree": "maple"},
    ),
    Change(
        "6.1", "11f9a21ab655", "mm/mmap: reorganize munmap to use maple states",
        "munmap moves the VMAs to a side tree; clearing the range in the tree is the point of no "
        "return",
        {"do_munmap": do_mas_align_munmap},
    ),
    Change(
        "6.1", "bf3980c85212", "mm: drop oom code from exit_mmap",
        "exit zaps under read and takes the lock for write to free the page tables",
        {"exit_lock": "read-write"},
    ),
    Change(
        "6.1", "131a79b474e9",
        "hugetlb: fix vma lock handling during split vma and range unmapping",
        "the final unmap of a hugetlb mapping no longer clears VM_MAYSHARE: it frees the mapping's "
        "own hugetlb lock, so that nobody shares page tables with it",
        {"clears_mayshare": False},
    ),
    Change(
        "6.1", "7d8faaf15545", "mm/madvise: introduce MADV_COLLAPSE sync hugepage collapse",
        "a new advice: for each 2 MiB it takes the lock for read, and for write to copy",
    ),
    Change(
        "6.1", "98b211d6415f", "madvise: convert madvise_free_pte_range() to use a folio",
        'by mistake MADV_FREE counts "all pages" of a folio that small entries map, so that it '
        "never is its own; before, that page",
        {"free_sharing": "all pages"},
    ),
    Change(
        "6.1", "474098edac26", "mm/gup: replace FOLL_NUMA by gup_can_follow_protnone()",
        "KSM does not find a page again where nobody may access it: there what is merged is not "
        "unmerged, and who waits for an equal page is in the way of those that come",
        {"unmerges_closed": False, "ksm_finds_closed": False},
    ),
    Change(
        "6.2", "d7c0e68dab98", "mm/ksm: convert break_ksm() to use walk_page_range_vma()",
        "what KSM has merged is unmerged also where nobody may access it",
        {"unmerges_closed": True},
    ),
    Change(
        "6.2", "6cce3314b928",
        "mm/ksm: fix KSM COW breaking with userfaultfd-wp via FAULT_FLAG_UNSHARE",
        "what KSM unmerges is clean, since no write faults it in",
        {"ksm_unshares": True},
    ),
    Change(
        "6.3", "6fd7353829ca", "mm/memfd: add F_SEAL_EXEC",
        "a memfd can be sealed against a change of whether it may be executed (before: EINVAL)",
        {"seals_code": True},
    ),
    Change(
        "6.3", "11a9b90274f6", "userfaultfd: use vma iterator",
        "a userfaultfd is told EINVAL of a range where nothing is mapped, also where nothing is "
        "above it; before, that was ENOMEM",
        {"uffd_nothing_above": "EINVAL"},
    ),
    Change(
        "6.3", "07e8c82b5eff",
        "madvise: convert madvise_cold_or_pageout_pte_range() to use folios",
        'by mistake MADV_COLD and MADV_PAGEOUT count "all pages", too',
        {"cold_sharing": "all pages"},
    ),
    Change(
        "6.3", "a1b92a3f1498", "mm/userfaultfd: support WP on multiple VMAs",
        "UFFDIO_WRITEPROTECT takes a range of several mappings; before, ENOENT",
        {"uffd_protects_across": True},
    ),
    Change(
        "6.3", "b613c7f31476",
        "locking/rwsem: Prevent non-first waiter from spinning in down_write() slowpath",
        "only the first waiter spins for a handoff",
        backported=("6.1.16",),
    ),
    Change(
        "6.4", "5e31275cc997", "mm: add per-VMA lock and helper functions to control it",
        "who changes a VMA write-locks it; the downgrade and the unlock end these locks",
        {"vma_locks": True, "do_munmap": do_vmi_align_munmap},
    ),
    Change(
        "6.4", "50ee32537206",
        "mm: introduce lock_vma_under_rcu to be used from arch-specific code",
        "a VMA can be found under RCU and locked alone, if it is \"anonymous\" and has an anon_vma",
        {"vma_lock_faults": "anonymous"},
    ),
    Change(
        "6.4", "0bff0aaea03e", "x86/mm: try VMA lock-based page fault handling first",
        "a fault takes that way first, and looks whether its VMA is detached",
        {"page_fault": page_fault_vma_lock},
    ),
    Change(
        "6.4", "ac492b9c70ca", "mm/khugepaged: skip shmem with userfaultfd",
        "MADV_COLLAPSE of what a userfaultfd waits for is EBUSY, no longer EINVAL; in a file in "
        "memory holes stay holes then",
        {"collapse_tells_of_watcher": True},
    ),
    Change(
        "6.4", "714965ca8252",
        "mm/mmap: start distinguishing if vma can be removed in mergeability test",
        "an attachment of System V shared memory may take a part of another one, or what moves "
        "beside it; before, what was split there stayed apart for good",
        {"counted_grow": True},
    ),
    Change(
        "6.4", "5543d3c43c41", "mm/uffd: allow vma to merge as much as possible",
        "what a userfaultfd begins or ends to watch merges with a neighbour also where it begins "
        "within a mapping; before, that mapping's own page offset was asked",
        {"uffd_merges_parts": True},
    ),
    Change(
        "6.4", "0289184476c8",
        "mm: userfaultfd: add UFFDIO_CONTINUE_MODE_WP to install WP PTEs",
        "UFFDIO_CONTINUE can map a page write-protected",
        {"uffd_continues_protected": True},
    ),
    Change(
        "6.4", "d7597f59d1d3", "mm: add new api to enable ksm per process",
        'PR_SET_MEMORY_MERGE makes all memory of a process mergeable; what it maps then is "late": '
        "after a neighbour was looked for, so none that is mergeable merges with a new mapping",
        {"memory_merge": "late"},
    ),
    Change(
        "6.5", "c2508ec5a58d",
        "mm: introduce new 'lock_mm_and_find_vma()' page fault helper",
        "a fault that finds a stack to grow takes the lock for write",
        {"stack_growth": "write"}, ("6.1.37", "6.3.11", "6.4.1"),
    ),
    Change(
        "6.5", "8d7071af8907", "mm: always expand the stack with the mmap write lock held",
        'a stack grows under "write", no longer under "read" (CVE-2023-3269)',
        {"stack_growth": "write"}, ("6.1.37", "6.3.11", "6.4.1"),
    ),
    Change(
        "6.5", "eda0047296a1", "mm: make the page fault mmap locking killable",
        "a fatal signal ends the wait of a page fault for the mmap_lock",
        {"fault_killable": True}, ("6.1.37", "6.3.11", "6.4.1"),
    ),
    Change(
        "6.5", "408579cd627a", "mm: Update do_vmi_align_munmap() return semantics",
        "do_vmi_align_munmap unlocks, no longer its caller",
    ),
    Change(
        "6.5", "e4bd84c069f2", "mm: Always downgrade mmap_lock if requested",
        "nobody grows under read any more, so munmap downgrades beside a stack, too",
        {"downgrade_beside_growable": True},
    ),
    Change(
        "6.5", "fb49c455323f", "fork: lock VMAs of the parent process when forking, again",
        "fork write-locks each VMA that it copies, so that no fault runs beside it",
        {"fork_locks_vma": True}, ("6.4.3",),
    ),
    Change(
        "6.5", "c137381f71ae", "mm: lock a vma before stack expansion",
        "a stack that grows is write-locked, too",
        {"growth_locks_vma": True}, ("6.4.3",),
    ),
    Change(
        "6.5", "33313a747e81",
        "mm: lock newly mapped VMA which can be modified after it becomes visible",
        "a new VMA is write-locked from the beginning",
        backported=("6.4.3",),
    ),
    Change(
        "6.5", "6c21e066f925", "mm/mempolicy: Take VMA lock before replacing policy",
        "mbind write-locks the VMA",
        backported=("6.4.8",),
    ),
    Change(
        "6.5", "657b5146955e",
        "mm: lock_vma_under_rcu() must check vma->anon_vma under vma lock",
        "a fault looks for the anon_vma when it has the VMA's lock",
        backported=("6.4.10",),
    ),
    Change(
        "6.5", "0e0e9bd5f7b9",
        "madvise:madvise_free_pte_range(): don't use mapcount() against large folio for sharing "
        "check",
        'MADV_FREE takes a folio for its own whose "first page" is mapped "once"',
        {"free_sharing": "first page once"}, ("6.1.50", "6.4.13"),
    ),
    Change(
        "6.5", "20b18aada185",
        "madvise:madvise_free_huge_pmd(): don't use mapcount() against large folio for sharing "
        "check",
        "... also where a huge entry maps it",
        {"free_huge_sharing": "first page once"},
    ),
    Change(
        "6.5", "2f406263e3e9",
        "madvise:madvise_cold_or_pageout_pte_range(): don't use mapcount() against large folio for "
        "sharing check",
        "... and so do MADV_COLD and MADV_PAGEOUT",
        {"cold_sharing": "first page once"}, ("6.4.13",),
    ),
    Change(
        "6.5", "d74943a2f3cd", "mm/gup: reintroduce FOLL_NUMA as FOLL_HONOR_NUMA_FAULT",
        "KSM finds pages again that nobody may access",
        {"ksm_finds_closed": True}, ("6.4.13",),
    ),
    Change(
        "6.5", "f7b8f70ba44f", "memfd: pass argument of memfd_fcntl as int",
        "the seals that fcntl adds are an int: what a register has above its 32 bits is nothing; "
        "before, it was EINVAL",
        {"seals_are_ints": True},
    ),
    Change(
        "6.6", "49b0638502da", "mm: enable page walking API to lock vmas during the walk",
        "who walks page tables to change them write-locks the VMAs",
        {"walks_lock_vmas": True}, ("6.4.13",),
    ),
    Change(
        "6.6", "350f6bbca1de", "mm: allow per-VMA locks on file-backed VMAs",
        '"most" faults do with the VMA lock: on files, too, unless they need an anon_vma first',
        {"vma_lock_faults": "most"},
    ),
    Change(
        "6.6", "29f890d1050f", "x86/mm: Introduce MAP_ABOVE4G",
        "MAP_ABOVE4G is a flag that there is (MAP_SHARED_VALIDATE takes it), and a gap that is "
        "looked for from the top is not in the lowest 4 GiB",
        {"maps_above_4g": True},
    ),
    Change(
        "6.6", "fc71884a5f59", "mm: userfaultfd: add new UFFDIO_POISON ioctl",
        "a userfaultfd can let pages be poisoned: whoever touches them dies",
        {"uffd_poison": True},
    ),
    Change(
        "6.6", "435cdb41a76f",
        "mm: userfaultfd: extract file size check out into a helper",
        "UFFDIO_COPY into a private mapping of /dev/zero is EFAULT, as UFFDIO_ZEROPAGE was: a "
        "device has no size; before, it gave pages",
        {"uffd_sizes_devices": True},
    ),
    Change(
        "6.6", "1235ccd05b6d", "mm: handle swap page faults under per-VMA lock",
        "a fault on a swapped page does with the VMA lock",
    ),
    Change(
        "6.6", "29a22b9e08d7", "mm: handle userfaults under VMA lock",
        "a fault that a userfaultfd monitor answers does with the VMA lock",
        {"vma_lock_faults": "most"},
    ),
    Change(
        "6.6", "1d65b771bc08", "mm/khugepaged: retract_page_tables() without mmap or vma lock",
        "MADV_COLLAPSE of a file takes the page tables of all mappings away that mapped its pages; "
        "before, its own mapping's, which had to have one; of other processes without a lock of "
        "their address spaces",
        {"collapse_retracts_all": True},
    ),
    Change(
        "6.6", "1043173eb5eb", "mm/khugepaged: collapse_pte_mapped_thp() with mmap_read_lock()",
        "MADV_COLLAPSE of a file holds the lock for read, no longer for write",
        {"collapse_maps_shared": True},
    ),
    Change(
        "6.6", "bb3aadf7d446", "x86/mm: Start actually marking _PAGE_SAVED_DIRTY",
        "mprotect, and a userfaultfd that protects against writes, loses the dirty bit of a huge "
        "page that may be written to",
        {"keeps_huge_dirty": False},
    ),
    Change(
        "6.6", "79271476b336", "ksm: support unsharing KSM-placed zero pages",
        "where ksmd has put the zero page it can be told from others, and unmerging gives pages of "
        "one's own there, too",
        {"ksm_marks_zeros": True},
    ),
    Change(
        "6.7", "9b9143298585",
        "mm/mprotect: allow unfaulted VMAs to be unaccounted on mprotect()",
        "an mprotect that takes write permission from anonymous memory which was never touched "
        "gives back what was charged for it",
        {"uncharges_untouched": True},
    ),
    Change(
        "6.7", "c4608d1bf7c6", "mm: mmap: map MAP_STACK to VM_NOHUGEPAGE",
        "MAP_STACK keeps huge pages out of a mapping",
        {"stacks_nohugepage": True},
    ),
    Change(
        "6.7", "efa7df3e3bb5", "mm: align larger anonymous mappings on THP boundaries",
        "anonymous mappings of whole huge pages are placed so that huge pages fit",
        {"aligns_for_huge_pages": "memory"},
    ),
    Change(
        "6.7", "4a68fef16df9", "mm: handle write faults to RO pages under the VMA lock",
        "the last of the faults on files that took the mmap_lock",
    ),
    Change(
        "6.7", "a08c7193e4f1", "mm/filemap: remove hugetlb special casing in filemap.c",
        "the page cache knows huge pages of hugetlb by small pages; before, mincore where no table "
        "of huge pages is asked for huge pages by the numbers of small ones",
        {"huge_cache_by_page": True},
    ),
    Change(
        "6.7", "af8ca1c14906", "mm/mremap: optimize the start addresses in move_page_tables()",
        "a moving mremap takes a page table along that it covers only from the first mapping in it "
        "on, where both places have the same offset in their tables",
        {"realigns_moves": True},
    ),
    Change(
        "6.8", "adef440691ba", "userfaultfd: UFFDIO_MOVE uABI",
        "a userfaultfd can move pages of anonymous memory to where it watches",
        {"uffd_move": True},
    ),
    Change(
        "6.9", "631426ba1d45",
        "mm/madvise: make MADV_POPULATE_(READ|WRITE) handle VM_FAULT_RETRY properly",
        "MADV_POPULATE_READ and _WRITE stop at a hole; before, they went on behind it",
        {"populates_over_holes": False},
    ),
    Change(
        "6.9", "df7a6d1f6405", "mm/hugetlb: restore the reservation if needed",
        "a zap gives the owner of reserved huge pages (hugetlb, private) their reservation back; "
        "before, what it had touched once and lost was anybody's",
        {"zap_restores_reserve": True},
    ),
    Change(
        "6.9", "37641efaa3fa", "hugetlb: check for anon_vma prior to folio allocation",
        "a fault that makes a private huge page (hugetlb) gives its mapping an anon_vma first; "
        "before, one that got no page left it without, so that a fork copied nothing of it",
        {"huge_fault_takes_page_first": False},
    ),
    Change(
        "6.9", "867a43a34ff8", "userfaultfd: use per-vma locks in userfaultfd operations",
        "a userfaultfd fills pages under the VMA's lock; where the mapping has no anon_vma yet it "
        "gets one before anybody asks whether it is watched",
        {"uffd_prepares_first": True},
    ),
    Change(
        "6.9", "fa3bea4e1f82",
        "mm/mempolicy: introduce MPOL_WEIGHTED_INTERLEAVE for weighted interleaving",
        "mbind knows MPOL_WEIGHTED_INTERLEAVE",
        {"interleaves_by_weight": True},
    ),
    Change(
        "6.9", "ebb34f78d72c", "mm: convert folio_estimated_sharers() to "
        "folio_likely_mapped_shared()",
        "MADV_FREE, MADV_COLD and MADV_PAGEOUT let a folio be only when its first page is mapped "
        'more than once ("first page twice"), no longer when that is not mapped at all',
        {
            "cold_sharing": "first page twice", "free_sharing": "first page twice",
            "free_huge_sharing": "first page twice",
        },
    ),
    Change(
        "6.10", "3931b871c493", "mm: madvise: avoid split during MADV_PAGEOUT and MADV_COLD",
        "they let folios be that small entries map and their range covers, and go on behind one "
        "that others map; before, they split every one in a page table, and ended there at one of "
        "others",
        {"advice_splits_whole": False},
    ),
    Change(
        "6.10", "dce7d10be4bb",
        "mm/madvise: optimize lazyfreeing with mTHP in madvise_free",
        "... and so does MADV_FREE",
        {"advice_splits_whole": False},
    ),
    Change(
        "6.10", "eefb9b2725e3",
        "mm: improve folio_likely_mapped_shared() using the mapcount of large folios",
        "advice takes a folio for a shared one by the counts of all its pages, too, no longer of "
        'the first alone: a "guess"',
        {"cold_sharing": "guess", "free_sharing": "guess", "free_huge_sharing": "guess"},
    ),
    Change(
        "6.10", "133d04b1eee9",
        "mm/numa_balancing: allow migrate on protnone reference with MPOL_PREFERRED_MANY policy",
        "mbind takes MPOL_F_NUMA_BALANCING with MPOL_PREFERRED_MANY, too",
        {"balances_preferred": True},
    ),
    Change(
        "6.10", "a373baed5a9d", "mm: delay the check for a NULL anon_vma",
        'a first fault keeps the VMA lock and asks for the mmap_lock beside it: "all" do',
        {"vma_lock_faults": "all"},
    ),
    Change(
        "6.10", "8be7258aad44", "mseal: add mseal syscall",
        'sealed mappings can\'t be unmapped, moved, protected or discarded; the whole "range" is '
        "looked over before anything of it is changed",
        {"mseal": "range"},
    ),
    Change(
        "6.11", "ac90c56bbd73", "mm/ksm: refactor out try_to_merge_with_zero_page()",
        "with use_zero_pages ksmd maps the zero page in a page of zeros' place, also where it "
        "could merge it with a merged page of zeros",
        {"ksm_zeros_first": True},
    ),
    Change(
        "6.11", "43e027e41423", "mm: memory: extend finish_fault() to support large folio",
        "a fault that finds a folio of an \"unnamed\" file in memory and a page table maps all of "
        "it by small entries; before, one page",
        {"maps_whole_folios": "unnamed"},
    ),
    Change(
        "6.11", "9aac777aaf94", "filemap: Convert generic_perform_write() to support large folios",
        'a write to a file in memory is taken in pieces of a "huge page", and held against the '
        "file's seals as far as its piece goes; before, page by page",
        {"write_piece": "huge page"},
    ),
    Change(
        "6.11", "9651fcedf7b9",
        "mm: add MAP_DROPPABLE for designating always lazily freeable mappings",
        "mappings of the kind MAP_DROPPABLE",
        {"droppable": True},
    ),
    Change(
        "6.12", "cacded5e42b9", "mm: avoid using vma_merge() for new VMAs",
        "a new mapping between two that it fits to is looked at with both at once; before, first "
        "with the one behind",
        {"merges_anew": True},
    ),
    Change(
        "6.12", "22af8caff7d1", "mm/madvise: process_madvise() drop capability check if same mm",
        "process_madvise of oneself needs no capability",
        {"advises_itself": "some"},
    ),
    Change(
        "6.12", "df2a7df9a9aa", "mm/munmap: replace can_modify_mm with can_modify_vma",
        'a seal is looked for in each "vma" when its turn comes, so that what lies before it has '
        "been split or changed by then (siblings: 4a2dd02b0916, 38075679b5f1, 23c57d1fa2b9)",
        {"mseal": "vma"},
    ),
    Change(
        "6.12", "6898c9039bc8",
        "mm/vma: extract the gathering of vmas from do_vmi_align_munmap()",
        "munmap gathers, clears the tree, completes",
    ),
    Change(
        "6.12", None, "fs: sort out the fallocate mode vs flag mess",
        "fallocate is asked for one thing at a time, and knows no others (EOPNOTSUPP); before, "
        "what moves pages, or unshares them, was EINVAL beside another one",
        {"fallocate_mixes": "EOPNOTSUPP"},
        doubt="its id is not known: 6.1.192 gave EINVAL, 6.12.117 EOPNOTSUPP",
    ),
    Change(
        "6.12", "6beeab870e70", "mm: shmem: move shmem_huge_global_enabled() into "
        "shmem_allowable_huge_orders()",
        "a fault makes a huge page of a file in memory only where its mapping has room for one",
        {"folios_need_room": True}, ("6.11.6",),
    ),
    Change(
        "6.12", "2b0f922323cc",
        "mm: don't install PMD mappings when THPs are disabled by the hw/process/vma",
        "a fault maps a huge page of a file by small entries where huge pages are disabled",
        {"huge_maps_ask": True},
    ),
    Change(
        "6.12", "9c3ebeda8fb5", "mm/vma: track start and end for munmap in vma_munmap_struct",
        "floor and ceiling of the page-table freeing are taken while munmap gathers, so under "
        'write, "before" the downgrade',
        {"bounds_read": "before"},
    ),
    Change(
        "6.12", "f8d112a4e657", "mm/mmap: avoid zeroing vma tree in mmap_region()",
        "mmap over old mappings gathers (and splits) them first and takes them out of the tree "
        "with the new one's coming",
        {"gathers_first": True},
    ),
    Change(
        "6.12", "224c1c702c08", "mm: move may_expand_vm() check in mmap_region()",
        "... and asks the limits only then",
        {"gathers_first": True},
    ),
    Change(
        "6.12", "40b88644dd92", "mm: remove arch_unmap()",
        'the architecture\'s hook is "never" called',
        {"arch_unmap": "never"},
    ),
    Change(
        "6.12", "b1f202060afe",
        "mm: remap unused subpages to shared zeropage when splitting isolated thp",
        "splitting a huge page gives back those of its pages that hold zeros",
        {"finds_zeros": True},
    ),
    Change(
        "6.13", "7bd3f1e1a9ae",
        "mm: make hugetlb mappings go through mm_get_unmapped_area_vmflags",
        "a hint for huge pages of hugetlb is rounded up to whole ones, and MAP_32BIT heeded; "
        "before, x86 rounded it down, also to 0, which is EPERM",
        {"huge_hints_round_down": False},
    ),
    Change(
        "6.13", "662df3e5c376", "mm: madvise: implement lightweight guard page mechanism",
        "MADV_GUARD_INSTALL and _REMOVE, which hold the mmap_lock for read",
        {"guards": True},
    ),
    Change(
        "6.13", "5a90c155defa", "tmpfs: don't enable large folios if not supported",
        "a write to a file in memory is taken page by page where it has no huge pages, and "
        '"as its files" have them elsewhere',
        {"write_piece": "as its files"},
    ),
    Change(
        "6.13", "021781b01275",
        "mm/madvise: unrestrict process_madvise() for current process",
        'process_madvise takes "all" advice for oneself; before "some", as for others: WILLNEED, '
        "COLD, PAGEOUT and COLLAPSE",
        {"advises_itself": "all"},
    ),
    Change(
        "6.13", "1ced09e0331f", "mm: allocate THP on hugezeropage wp-fault",
        "a write to the huge zero page gets a huge page; before, that was split into small zero "
        "pages and one of them replaced",
        {"replaces_huge_zero": True},
    ),
    Change(
        "6.14", "8078486e1d53", "io_uring: use region api for SQ",
        "the pages of an io_uring itself count for RLIMIT_MEMLOCK, as its fixed buffers do",
        {"rings_are_locked": True},
    ),
    Change(
        "6.14", "81a4058e0cd0", "io_uring: use region api for CQ",
        "... those of either ring",
        {"rings_are_locked": True},
    ),
    Change(
        "6.14", "72d8f72631d2", "mm/hugetlb: drop vma_has_reserves()",
        "a page of those that a mount of hugetlbfs keeps (min_size=) counts as promised for "
        "whoever maps it; before, private mappings that reserve nothing took another of the "
        "pool, and one more stayed reserved for good each time",
        {"kept_pages_leak": False},
    ),
    Change(
        "6.14", "665575cff098", "filemap: move prefaulting out of hot write path",
        "a write looks at user memory when it has the file's page, and faults it in only then",
        {"prefaults_writes": False},
    ),
    Change(
        "6.14", "6375e95f381e", "mm: pgtable: reclaim empty PTE page in madvise(MADV_DONTNEED)",
        "MADV_DONTNEED frees the page tables that it has emptied",
        {"reclaims_tables": True},
    ),
    Change(
        "6.14", "acd7ccb284b8", "mm: shmem: add large folio support for tmpfs",
        "a write to a file of tmpfs with huge= makes a folio as large as itself (\"by write\"); "
        "before, a huge one or none",
        {"shmem_folios": "by write"},
    ),
    Change(
        "6.15", "a833a693a490", "mm: hugetlb: fix incorrect fallback for subpool",
        "a mount of hugetlbfs (size=, min_size=) that wants more than the pool has gives back what "
        "it kept only as far as it is short of that by then, and stays charged for the rest",
        {"huge_refusal": "leaks-used"},
    ),
    Change(
        "6.15", "f35ab95ca0af", "mm: replace vm_lock and detached flag with a reference count",
        "a VMA's lock and its being detached are one count",
    ),
    Change(
        "6.15", "3104138517fc", "mm: make vma cache SLAB_TYPESAFE_BY_RCU",
        "a VMA may be used anew, even by another mm, while somebody looks it up. Who has locked "
        'such a VMA and lets go of it wakes the other mm\'s writer, that mm "unpinned" '
        "(CVE-2025-38554)",
        {"vma_reuse": "unpinned"},
    ),
    Change(
        "6.15", "d5c8aec0542e", "mm/mremap: initial refactor of move_vma()",
        "by mistake Committed_AS keeps what a moving mremap has cut off",
        {"mremap_forgets_charge": True},
    ),
    Change(
        "6.15", "1da190f4d0a6",
        "mm: Copy-on-Write (COW) reuse support for PTE-mapped THP",
        "a write after a fork whose child has gone keeps its page also where that is one of a huge "
        "page mapped by small entries; before, it was copied (in the model to 5.8, too, where in "
        "Linux it was not)",
        {"reuses_large": True},
    ),
    Change(
        "6.15", "85ea6bdd88a2", "mm/mremap: refactor mremap() system call implementation",
        "an mremap to an address that is no page's is EINVAL, also where nothing is mapped",
        {"mremap_aligned_first": True},
    ),
    Change(
        "6.15", "b714ccb02a76", "mm/mremap: complete refactor of move_vma()",
        "by mistake what MREMAP_DONTUNMAP leaves is no longer accounted, and Committed_AS keeps "
        "its charge",
        {"dontunmap_unaccounts": True},
    ),
    Change(
        "6.15", "003fde4492c8",
        "mm: convert folio_likely_mapped_shared() to folio_maybe_mapped_shared()",
        'advice knows by "address space" whether others map a folio, so that one which a process '
        "maps twice is its own",
        {
            "cold_sharing": "address space", "free_sharing": "address space",
            "free_huge_sharing": "address space",
        },
    ),
    Change(
        "6.15", "7460b470a131", "mm/truncate: use folio_split() in truncate operation",
        "a hole or a truncation cuts a huge page of a file in memory in halves around where it "
        "begins and ends; before, it left single pages",
        {"cuts_folios_in_halves": True},
    ),
    Change(
        "6.16", "bfe125f1b187",
        "mmu_gather: move tlb flush for VM_PFNMAP/VM_MIXEDMAP vmas into free_pgtables()",
        "the flush of device memory is paid only where the rmap goes",
    ),
    Change(
        "6.16", "879bca0a2c4f", "mm/vma: fix incorrectly disallowed anonymous VMA merges",
        "what was touched merges with a neighbour that never was, too; before, only the other way "
        "round",
        {"merges_untouched": True},
    ),
    Change(
        "6.16", "c84bf6dd2b83", "mm: introduce new .mmap_prepare() file callback",
        "by mistake Committed_AS keeps what was charged for a mapping that its file system then "
        "refuses",
        {"mmap_forgets_charge": True},
    ),
    Change(
        "6.16", "43c4cfde7e37", "mm/madvise: batch tlb flushes for MADV_DONTNEED[_LOCKED]",
        "MADV_DONTNEED flushes once, behind all VMAs; from 6.17 on, of a single one, when it holds "
        "that no longer",
        {"dontneed_flushes_once": True},
    ),
    Change(
        "6.16", "01bef02bf930", "mm/madvise: batch tlb flushes for MADV_FREE",
        "... and so does MADV_FREE",
        {"free_flushes_once": True},
    ),
    Change(
        "6.17", "cac1db8c3aad", "mm: optimize mprotect() by PTE batching",
        "mprotect changes the small entries of a huge page together: where one was used, or "
        "written through, all those that were alike count as that",
        {"batches_entries": True},
    ),
    Change(
        "6.17", "a6fde7add78d", "mm: use per_vma lock for MADV_DONTNEED",
        'MADV_DONTNEED and MADV_FREE of one VMA hold that "vma" alone, no longer the mmap_lock',
        {"dontneed_lock": "vma"},
    ),
    Change(
        "6.17", "366a4532d96f",
        "mm: fix the race between collapse and PT_RECLAIM under per-vma lock",
        "a collapse write-locks the VMA before it looks at the page table for the last time, since "
        "MADV_DONTNEED may free that without the mmap_lock now",
        {"collapse_locks_first": True},
    ),
    Change(
        "6.17", "9bbffee67ffd",
        "mm: fix a UAF when vma->mm is freed after vma->vm_refcnt got dropped",
        'who finds that it has locked another mm\'s VMA has that mm "pinned" until it has let go',
        {"vma_reuse": "pinned"}, ("6.15.10", "6.16.1"),
    ),
    Change(
        "6.17", "5631da56c9a8", "fs/proc/task_mmu: read proc/pid/maps under per-vma lock",
        'a reader of /proc/PID/maps locks one "vma" after the other, no longer the mmap_lock',
        {"maps_lock": "vma"},
    ),
    Change(
        "6.17", "d23cb648e365", "mm/mremap: permit mremap() move of multiple VMAs",
        "one mremap may move a range of several VMAs",
        {"moves_many": True},
    ),
    Change(
        "6.17", "d0b47a6866f1", "mm/mseal: update madvise() logic",
        "a seal keeps private mappings of /dev/zero from being discarded, too",
        {"seals_devices": True},
    ),
    Change(
        "6.17", "a85dc37186a5", "mm/mremap: check remap conditions earlier",
        "an mremap looks at all its arguments before it looks for the mapping (a bad new address "
        "is EINVAL, also where nothing is mapped), and at the mapping before it clears the new "
        "place",
        {"mremap_checks_first": True},
    ),
    Change(
        "6.17", "7208cc6497c2",
        "userfaultfd: correctly prevent registering VM_DROPPABLE regions",
        "userfaultfd refuses mappings of the kind MAP_DROPPABLE, as it was meant to from the first",
        {"watches_droppable": False},
    ),
    Change(
        "6.17", "cf7e7a3503df", "mm: prevent KSM from breaking VMA merging for new VMAs",
        'what is mapped under PR_SET_MEMORY_MERGE is mergeable "early", before a neighbour is '
        "looked for, and merges with one that is, too",
        {"memory_merge": "early"},
    ),
    Change(
        "6.17", "e89d5bf3a4f9",
        "mm: fault in complete folios instead of individual pages for tmpfs",
        '... and of "all" files in memory',
        {"maps_whole_folios": "all"},
    ),
    Change(
        "6.18", "e1fad12dcb66", "sched/fair: Switch to task based throttle model",
        "a task whose group has used up its CPU time (cpu.max) is throttled on its way back to "
        '"user" mode, so never with a lock in its hands; before, anywhere in the "kernel"',
        {"throttled_in": "user"},
    ),
    Change(
        "6.18", "0e59f47c15ce",
        "mm/mremap: correctly account old mapping after MREMAP_DONTUNMAP remap",
        "what MREMAP_DONTUNMAP leaves is accounted again",
        {"dontunmap_unaccounts": False}, ("6.17.6",),
    ),
    Change(
        "6.18", "9dc21bbd62ed",
        "prctl: extend PR_SET_THP_DISABLE to optionally exclude VM_HUGEPAGE",
        "a process may have no huge pages but where MADV_HUGEPAGE asks for them, or MADV_COLLAPSE "
        "(8cdc4d270193)",
        {"disables_unadvised": True},
    ),
    Change(
        "6.18", "849d5cff4d48", "/dev/zero: try to align PMD_SIZE for private mapping",
        "private mappings of /dev/zero are placed so that huge pages fit, too",
        {"aligns_for_huge_pages": "devices"},
    ),
    Change(
        "6.18", "d9d1c2d81797",
        "fs/proc/task_mmu: execute PROCMAP_QUERY ioctl under per-vma locks",
        "the query of a mapping locks that VMA only",
    ),
    Change(
        "6.18", "69e0a3b49003", "mm: shmem: fix the strategy for the tmpfs 'huge=' options",
        "a write to a file of tmpfs with huge= makes a huge page, or the largest folio for which "
        'there is room ("written in any size")',
        {"shmem_folios": "written in any size"},
    ),
    Change(
        "6.18", "357b92761d94", "mm/filemap: map entire large folio faultaround",
        "a read fault maps all of a huge page of a file by small entries, where it fits; before, "
        "only the 64 KiB around",
        {"maps_folios_around": True},
    ),
    Change(
        "6.18", "f8a01513f574",
        "mm/khugepaged: do not fail collapse_pte_mapped_thp() on SCAN_PMD_NULL",
        "a huge page of a file is mapped at once also where no page table of the level above is",
        {"collapse_makes_tables": True},
    ),
    Change(
        "6.18", "62b98015d988",
        "mm: enable khugepaged anonymous collapse on non-writable regions",
        "MADV_COLLAPSE no longer needs one page at least that is mapped so that it can be written "
        "to, so what a fork has shared and page tables without pages are collapsed, too",
        {"collapse_needs_writable": False},
    ),
    Change(
        "6.19", "8826f09616b4",
        "mm: shmem: allow fallback to smaller large orders for tmpfs mmap() access",
        "... and so does a fault of a file that has a name",
        {"shmem_folios": "any size"},
    ),
    Change(
        "6.19", "ab04945f91bc", "mm: update mem char driver to use mmap_prepare",
        "a private mapping of /dev/zero under PR_SET_MEMORY_MERGE is mergeable before a neighbour "
        'is looked for, too: "always early"',
        {"memory_merge": "always early"},
    ),
    Change(
        "6.19", "2ab7f1bbafc9", "mm/madvise: allow guard page install/remove under VMA lock",
        'guards are put and taken under the "vma" lock, no longer the "mmap" lock, unless an '
        "anon_vma has to be made",
        {"guard_lock": "vma"},
    ),
    Change(
        "6.19", "2197bb60f890", "mm: add vma_start_write_killable()",
        "a fatal signal may end the wait for a VMA's write lock",
    ),
    Change(
        "6.19", "7370f8e1b3a8", "mm: use vma_start_write_killable() in dup_mmap()",
        "... in fork",
    ),
    Change(
        "6.19", "f1040f889882", "mm/khugepaged: continue to collapse on SCAN_PMD_NONE",
        "MADV_COLLAPSE goes on behind 2 MiB that have no page table, but one of the level above; "
        "before, it ended there",
        {"collapse_passes_holes": True},
    ),
    Change(
        "6.19", "49e14dabed7a", "mm: set the VM_MAYBE_GUARD flag on guard region install",
        "guards give a mapping of a file or of shared memory no anon_vma any more; before, two "
        "that had got one each stayed apart where they would have merged",
        {"guards_need_anon_vma": False}, ("6.18.37",),
    ),
    Change(
        "6.19", "6707915e030a", "mm: propagate VM_SOFTDIRTY on merge",
        "what has merged is soft-dirty if any of its parts was; before, if the part was whose "
        "flags were written last, or the neighbour that took it over",
        {"merges_keep_mark": True}, ("6.18.37",),
        doubt="6.18.37 by its review alone (25 June 2026, 40 of 60): no guest has that series",
    ),
    Change(
        "6.19", "c093cf451094", "mm: correctly handle UFFD PTE markers",
        "UFFDIO_COPY puts no page in a guard's place any more (EEXIST); before, in that of any "
        "marker",
        {"uffd_fills_guards": False},
    ),
    Change(
        "7.0", "1d3f9bb4c8af", "mm/hugetlb: restore failed global reservations to subpool",
        "a mount of hugetlbfs isn't charged any more for a mapping that the pool refused; what it "
        "kept may still be lost, and a fault that got no page is still charged",
        {"huge_refusal": "loses-kept"}, backported=("6.18.16", "6.19.6"),
    ),
    Change(
        "7.0", None, "(madvise: MADV_DOFORK of special mappings)",
        "MADV_DOFORK is EINVAL where a mapping is huge pages (hugetlb), as where it is a device's",
        {"dofork_refuses_special": True},
        doubt="its id and subject are not known: proposed and reviewed on 5 and 6 March 2026, in a "
        "thread on a pull for 7.0; 6.19.14 still takes it, 7.0.13 to 7.3.4 don't, in guests",
    ),
    Change(
        "7.0", "28f590f35da8", "mm/vma: clean up __vma_enter/exit_locked()",
        "a VMA's writer excludes readers and then waits for those that are there, in two parts",
    ),
    Change(
        "7.0", "9c8c02df3f87", "mm: make PT_RECLAIM depends on MMU_GATHER_RCU_TABLE_FREE",
        "other architectures' MADV_DONTNEED frees emptied page tables, too",
    ),
    Change(
        "7.0", "43873af772f8", "mm: change dup_mmap() recovery",
        "a fork that fails takes down only what it has made",
    ),
    Change(
        "7.1", "1ea4b473504b", "locking/rwsem: Remove the list_head from struct rw_semaphore",
        "the semaphore points to its first waiter; the order of service is the same. A waiter that "
        "is killed clears the flags of the count while others wait, by mistake",
    ),
    Change(
        "7.1", "68bcd8b6e0b1", "locking/rwsem: Fix logic error in rwsem_del_waiter()",
        "... and only when nobody else waits, which is what the list did",
    ),
    Change(
        "7.1", "0f48947c4232", "userfaultfd: introduce vm_uffd_ops",
        "a segment of System V shared memory can't be watched by a userfaultfd even if it is of "
        "huge pages (EINVAL): it has operations of its own, and none for that",
        {"watches_attached_huge": False},
    ),
    Change(
        "7.1", "f74991b4e383",
        "shmem, userfaultfd: implement shmem uffd operations using vm_uffd_ops",
        "UFFDIO_COPY and UFFDIO_ZEROPAGE beyond the end of a file in memory find no page (ENOMEM); "
        "before, they looked at the end when they had one (EFAULT). UFFDIO_CONTINUE there is "
        "EFAULT, and was EINVAL",
        {"uffd_beyond_end": "ENOMEM"},
    ),
    Change(
        "7.1", "161ce69c2c89",
        "userfaultfd: allow registration of ranges below mmap_min_addr",
        "userfaultfd takes ranges that begin below mmap_min_addr, too (before: EINVAL)",
        {"uffd_below_minimum": True},
        ("5.10.258", "5.15.209", "6.1.175", "6.6.140", "6.12.86", "6.18.27", "7.0.4"),
    ),
    Change(
        "7.1", "3b041514cb6e", "memfd: deny writeable mappings when implying SEAL_WRITE",
        "F_SEAL_EXEC, which seals an executable memfd against writing, too, is refused while "
        "somebody maps it so that it could be written to (EBUSY)",
        {"seal_exec_asks_writers": True}, ("6.6.143", "6.12.93", "6.18.35", "7.0.12"),
    ),
    Change(
        "7.1", "bee9ef4a40a2",
        "bpf: switch task_vma iterator from mmap_lock to per-VMA locks",
        "BPF's iterator over VMAs locks one after the other",
        backported=("6.12.91",),
    ),
    Change(
        "7.2", "eb92d97f7e6a", "Revert \"tmpfs: don't enable large folios if not supported\"",
        'a write to a file in memory is taken in pieces of a "huge page" again',
        {"write_piece": "huge page"},
    ),
    Change(
        "7.2", "ea3085dd7a4e",
        "fs/proc/task_mmu: read proc/pid/{smaps|numa_maps} under per-vma lock",
        'a reader of /proc/PID/smaps or numa_maps locks one "vma" after the other; smaps_rollup '
        "stays with the mmap_lock",
        {"smaps_lock": "vma"},
    ),
    Change(
        "7.2", None,
        "mm/madvise: reject invalid process_madvise() advice for zero-length vectors",
        "an advice that there is not is EINVAL also where nothing is to be advised; before, that "
        "was 0",
        {"process_advice_first": True},
        doubt="its id is not known: lists of April and May 2026 have it by a dozen, none by the "
        "last; 7.1.13 returns 0, 7.2.13 and 7.3.4 EINVAL",
    ),
    Change(
        "7.2", None, "(MADV_COLLAPSE of a range with no whole 2 MiB in it has nothing to do)",
        "MADV_COLLAPSE of a range that ends before the first 2 MiB that begins in it is 0; before, "
        "EINVAL",
        {"collapses_nothing": True},
        doubt="its id and subject are not known: 7.1.13 refuses, 7.2.13 and 7.3.4 do not, whose "
        "madvise_collapse returns early where no whole 2 MiB is",
    ),
    Change(
        "7.2", "b4e41050b212", "io_uring/rsrc: raise registered buffer 1GB limit",
        "an io_uring takes fixed buffers of almost 1 TiB, and refuses longer ones in other words "
        "(1 TiB: EOVERFLOW; more: EINVAL); before, what is longer than 1 GiB was EFAULT",
        {"registers_terabytes": True},
    ),
    Change(
        "7.3", "f7491d7c81db", "x86/mm: Fix user-space data loss with MADV_FREE and THP",
        "mprotect no longer loses the dirty bit of a huge page (it did from 6.6 on), so that what "
        "was written after MADV_FREE is not thrown away by reclaim",
        {"keeps_huge_dirty": True},
        backported=("6.12.111", "6.18.44", "7.2.7"),
        doubt="which of 6.18's releases was the first to take it is not confirmed; 6.16.12, "
        "6.17.13, 6.19.14, 7.0.13 and 7.1.13 were seen without",
    ),
    Change(
        "7.3", "6cc27d821963", "mm/vma: correctly unaccount on mmap_prepare() failure",
        "what was charged for a mapping that its file system refuses is given back",
        {"mmap_forgets_charge": False}, ("7.2.8",),
    ),
    Change(
        "7.3", "397432cab17b",
        "mm/mremap: account mm->locked_vm correctly for MREMAP_DONTUNMAP",
        "locked_vm no longer counts locked memory twice that MREMAP_DONTUNMAP has moved away: what "
        "moved is split off and alone unlocked, and merges neither again nor with its copy",
        {"dontunmap_leaks_locked": False}, ("6.1.191", "6.12.114", "7.2.8"),
    ),
    Change(
        "7.3", "35b0fb391b0d",
        "mm/mremap: reset unfaulted VMA page offset for MREMAP_DONTUNMAP",
        "what MREMAP_DONTUNMAP has emptied whole merges like memory that was never touched; "
        "before, it kept the page offset of the pages that have left",
        {"dontunmap_resets_offset": True}, ("6.1.191", "6.12.112", "7.2.6"),
        doubt="7.2.6 had it in a guest; whether an earlier release of 7.2 did is not confirmed",
    ),
    Change(
        "7.3", "6eab8f2cc646",
        "userfaultfd: add UFFDIO_REGISTER_MODE_RWP and UFFDIO_RWPROTECT plumbing",
        "userfaultfd refuses to register again, without write protection, what is registered with "
        "it (EBUSY)",
        {"uffd_keeps_wp": True},
    ),
    Change(
        "7.3", None, "mm: propagate VMA virtual page offset on map, remap, split + merge",
        "a private mapping of a file that has moved since it got anonymous pages merges only with "
        "what has moved as far",
        {"counts_anonymous_apart": True},
        doubt="its id is not known: 7.2.13 merges, 7.3.4 does not, whose mm/vma.c asks "
        "needs_adjacent_anon_pgoff; lists of mm-unstable have the subject by many ids",
    ),
    Change(
        "7.4", None, "mm/hugetlb: fix subpool minimum reservation rollback",
        "what a mount of hugetlbfs keeps stays its own where the pool refuses a mapping",
        {"huge_refusal": "kept"},
        backported=("7.3.4",),
        doubt="its id is not known: Debian's changelog of 7.3.4 names it, lists of September and "
        "October 2026 have it by several ids, none by the last",
    ),
    Change(
        "7.4", None, "mm/mremap: populate calculated fields in vrm state correctly",
        "an mremap to a fixed place that shrinks no longer charges what it has cut off, nor is it "
        "refused for that",
        {"mremap_forgets_charge": False},
        backported=("7.3.4",),
        doubt="its id is not known; Debian's changelog of 7.3.4 names it",
    ),
    Change(
        "7.4", None, "mm/vma: avoid broken uffd merge on mremap",
        "an mremap of what a userfaultfd watches, without its event for that, merges the copy with "
        "nothing; before, the copy could become one with watched neighbours, even with what it was "
        "cut from, and all of that was watched no more",
        {"moves_watched_apart": True},
        backported=("7.3.4",),
        doubt="its id is not known; Debian's changelog of 7.3.4 names it",
    ),
)  # fmt: skip
"""In the order of the releases; a row's rules override those of the rows before it."""
