"""Files in memory: their page cache, and the rmap that says which VMAs map them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from zaplock.model import huge_pool
from zaplock.model.dirty import soil_file
from zaplock.model.flags import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, page_align
from zaplock.model.frames import alloc_frames, change_frames
from zaplock.model.shared_huge import cut_at, fill_with_zeroes, folio_around, split_evenly
from zaplock.model.step import Task, step
from zaplock.model.swap import swap_in_cached, swap_out_cached

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.rwsem import Lock


SEAL_SEAL, SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE, SEAL_EXEC = 1, 2, 4, 8, 16, 32
"""What a memfd can be sealed against (F_SEAL_*)."""


class File(msgspec.Struct, frozen=True):
    """A file: "shmem" (memfd, shared anonymous memory), "disk", "hugetlb" or "device".

    `size` is in bytes. `fails_after` of a device: how many pages its mmap maps before it fails
    (None: it doesn't). `uprobe` is an offset in bytes where a uprobe is installed, -1 for none.
    `seals` are those of a memfd (SEAL_WRITE and others). `refs` counts open descriptors and VMAs;
    with the last one a file without a name on disk goes, its pages and its `charged` pages with it.
    Where the pages of a file in memory are not charged as a whole, each is when it is made
    (`charged_by_page`: memfd, MAP_NORESERVE). One that counts its mappings (`counts_mappings`: a
    segment of System V shared memory) keeps every one of them apart. `read_ns`: how long a fault
    that finds a page missing in the cache waits for it, which then is a major fault; 0: pages come
    at once. `served`: the page comes from a process (FUSE) that has to answer. `saved` is the VMA
    that a device's driver remembers from mmap to the VMA's close(), 0 for none. `promised`: the
    huge pages that its mappings have reserved and nobody has faulted in, by their number in it;
    `huge_size`: how many bytes one of "hugetlb" has; `subpool`: whose share of the pool it uses, 0
    for a file of no mount that has one. `secret`: of memfd_secret, whose pages nobody but their
    mappings can reach. `noexec`: where it lies nothing may be executed. `huge`: of a file on a
    mount of tmpfs, its huge= (model.shared_folios), "" on the kernel's own; `named`: it has a name
    there. `fallocend`: of a file in memory, the page up to which fallocate has filled it, also
    beyond its size; `most_pages`: what a mount of tmpfs lets all its files have (size=), 0 for no
    bound. `stacked`: a file system that maps files of others (overlayfs) has it: what is mapped is
    the file below, so that a new mapping joins no neighbour, which has that one already
    (backing_file_mmap, since 4.19).
    """

    kind: str
    size: int
    name: str = ""
    fails_after: int | None = None
    uprobe: int = -1
    writable: bool = True
    readable: bool = True
    seals: int = 0
    refs: int = 1
    charged: int = 0
    charged_by_page: bool = False
    counts_mappings: bool = False
    read_ns: int = 0
    served: bool = False
    saved: int = 0
    promised: tuple[int, ...] = ()
    huge_size: int = PMD_SIZE
    subpool: int = 0
    secret: bool = False
    noexec: bool = False
    huge: str = ""
    named: bool = False
    fallocend: int = 0
    most_pages: int = 0
    stacked: bool = False

    @property
    def is_write_sealed(self) -> bool:
        """Whether nobody may map it shared and writable any more."""
        return bool(self.seals & (SEAL_WRITE | SEAL_FUTURE_WRITE))


def i_mmap_lock(file: int) -> Lock:
    """Name the lock of a file's rmap (i_mmap_rwsem)."""
    return ("i_mmap", file)


def new_file(m: Machine, file: int, kind: str, size: int, name: str = "", **more: object) -> int:
    """Make a file before a run starts."""
    m.files.put(file, File(kind, size, name, **more))  # type: ignore[arg-type]
    return file


def cached_frame(m: Machine, task: Task, file: int, pgoff: int) -> int:
    """Return the frame of a page of a file, reading (or making) it if it is not cached."""
    cache = m.page_cache(file)
    delta = cache.at(pgoff)
    if delta is not None:
        swap_in_cached(m, pgoff + delta)
        fill_with_zeroes(m, pgoff + delta)
        return pgoff + delta
    return fill_cache(m, task, file, pgoff, pgoff + 1)


def fill_cache(m: Machine, task: Task, file: int, first: int, last: int) -> int:
    """Bring pages [first, last) into the cache where they are missing; return the first's frame."""
    cache = m.page_cache(file)
    kind = m.files[file].kind
    at = first
    for low, high, _ in [*cache.overlapping(first, last), (last, last, 0)]:
        if at < low:
            frame = alloc_frames(m, task, "file" if kind == "disk" else kind, low - at)
            cache.set(at, low, frame - at)
            charge_pages(m, file, low - at)
        at = high
    delta = cache.at(first)
    assert delta is not None
    return first + delta


def charge_pages(m: Machine, file: int, pages: int) -> None:
    """Count pages into Committed_AS as they come into a file, or go, where that is done so."""
    if m.files[file].charged_by_page:
        m.commit(pages)


def drop_range(m: Machine, task: Task, file: int, low: int, high: int) -> None:
    """Drop bytes [low, high) of a file: whole pages leave its cache, of others a part is zeroes.

    Folios that only a part of the range is in are cut (truncate_inode_partial_folio).
    """
    for edge in (low >> PAGE_SHIFT, high - 1 >> PAGE_SHIFT):
        begin, end = folio_around(m, file, edge)
        if low <= begin << PAGE_SHIFT and end << PAGE_SHIFT <= high:
            continue
        zero_part(m, file, edge, low, high)
        cut_folio(m, task, file, max(begin, low >> PAGE_SHIFT))
        if high < end << PAGE_SHIFT:
            cut_folio(m, task, file, high >> PAGE_SHIFT)
    forget_pages(m, task, file, -(-low >> PAGE_SHIFT), high >> PAGE_SHIFT)


def zero_part(m: Machine, file: int, pgoff: int, low: int, high: int) -> None:
    """Let what bytes [low, high) of a file are of one of its pages be zeroes.

    The page is brought back from swap for that; in memory it is dirty then (shmem_undo_range). Its
    tag is its first eight bytes.
    """
    start = pgoff << PAGE_SHIFT
    first, last = max(low - start, 0), min(high - start, PAGE_SIZE)
    delta = m.page_cache(file).at(pgoff)
    if delta is None or first >= last:
        return
    pfn = pgoff + delta
    swap_in_cached(m, pfn)
    tag = m.content.at(pfn)
    if tag and first < TAG_BYTES:
        left = tag & ~((1 << 8 * last) - (1 << 8 * first))
        m.content.set(pfn, pfn + 1, left) if left else m.content.clear(pfn, pfn + 1)
    if m.files[file].kind == "shmem":
        soil_file(m, pfn, pfn + 1)


def forget_fallocated(m: Machine, file: int, low: int, high: int) -> None:
    """Note that bytes [low, high) of a file are dropped, to which fallocate may have filled it."""
    backing, start = m.files[file], -(-low >> PAGE_SHIFT)
    if start < backing.fallocend <= high >> PAGE_SHIFT:
        m.files.put(file, msgspec.structs.replace(backing, fallocend=start))


def forget_pages(m: Machine, task: Task, file: int, first: int, last: int) -> None:
    """Drop pages [first, last) of a file, in which folios lie whole."""
    cache = m.page_cache(file)
    for low, high, delta in cache.overlapping(first, last):
        cache.clear(low, high)
        charge_pages(m, file, low - high)
        change_frames(m, task, low + delta, high + delta, refs=-1)


def cut_folio(m: Machine, task: Task, file: int, pgoff: int) -> None:
    """Cut a folio around one of its pages; parts of it beyond the end of the file are dropped.

    What fallocate has filled beyond its end stays (shmem_fallocend).
    """
    begin, end = folio_around(m, file, pgoff)
    cut_at(m, task, file, pgoff)
    _drop_beyond(m, task, file, begin, end)


def split_folio(m: Machine, task: Task, file: int, pgoff: int) -> None:
    """Make single pages of a folio; those beyond the end of the file are dropped."""
    begin, end = folio_around(m, file, pgoff)
    split_evenly(m, task, file, begin, end)
    _drop_beyond(m, task, file, begin, end)


def _drop_beyond(m: Machine, task: Task, file: int, begin: int, end: int) -> None:
    """Drop what was pages [begin, end) of one folio and begins beyond the end of the file."""
    at, size = begin, kept_pages(m.files[file])
    while at < end:
        _, behind = folio_around(m, file, at)
        if at >= max(size, begin + 1):
            forget_pages(m, task, file, at, behind)
        at = behind


def kept_pages(backing: File) -> int:
    """Return how many pages of a file stay where a folio is cut: to its end, or what is filled."""
    return max(-(-backing.size >> PAGE_SHIFT), backing.fallocend)


@step
def drop_clean(m: Machine, task: Task, file: int, first: int, last: int) -> None:
    """Drop those of the pages [first, last) of a file that nobody has written to."""
    for low, high, delta in m.page_cache(file).overlapping(first, last):
        for page in range(low, high):
            if not m.dirty.at(page + delta):
                drop_range(m, task, file, page << PAGE_SHIFT, page + 1 << PAGE_SHIFT)


@step
def write_to_swap(m: Machine, _task: Task, file: int, first: int, last: int) -> None:
    """Move pages [first, last) of a file in memory to swap, as far as it has room."""
    swap_out_cached(m, file, first, last)


TAG_BYTES = 8
END_OF_FILES = 1 << 63
"""Where a range of a file ends that has no end, in bytes: no offset is as large (loff_t)."""


def disk_tag(file: int, pgoff: int) -> int:
    """Return the tag that a page of a file on disk holds before anybody writes to it."""
    return (file << 32) | (pgoff + 1)


@step
def truncate_pagecache(m: Machine, task: Task, file: int, size: int) -> None:
    """Drop what a file has from byte `size` on out of its page cache."""
    if m.page_cache(file).data:
        forget_fallocated(m, file, size, END_OF_FILES)
        drop_range(m, task, file, size, END_OF_FILES)
    if m.files[file].promised:
        unreserve(m, file, size)


def unreserve(m: Machine, file: int, size: int) -> None:
    """Give back what a file of huge pages was promised from byte `size` on."""
    backing = m.files[file]
    left = tuple(page for page in backing.promised if page * backing.huge_size < size)
    lost = len(backing.promised) - len(left)
    huge_pool.unreserve(m, backing.huge_size, backing.subpool, lost)
    m.files.put(file, msgspec.structs.replace(backing, promised=left))


class FileCut(NamedTuple):
    """Whether a change of a file's size drops pages of it, and unmaps what is beyond its end."""

    drops: bool
    unmaps: bool


@step
def set_file_size(m: Machine, _task: Task, file: int, size: int) -> FileCut:
    """Change i_size: from now on accesses beyond it raise SIGBUS. Returns what is to be cut off.

    That is nothing where a file in memory becomes longer; where its last page stays the same, what
    a folio has beyond that is cut off, but nothing unmapped before (shmem_setattr).
    """
    before = m.files[file]
    m.files.put(file, msgspec.structs.replace(before, size=size))
    in_memory = before.kind == "shmem"
    return FileCut(
        drops=not in_memory or size <= before.size,
        unmaps=not in_memory or page_align(size) < before.size,
    )


def get_file(m: Machine, file: int) -> None:
    """Count one user of a file more."""
    m.files.put(file, msgspec.structs.replace(m.files[file], refs=m.files[file].refs + 1))


def put_file(m: Machine, task: Task, file: int) -> None:
    """Count one user of a file less; with the last one an unnamed file is evicted."""
    backing = m.files[file]
    m.files.put(file, msgspec.structs.replace(backing, refs=backing.refs - 1))
    if backing.refs > 1 or backing.kind == "disk":
        return
    truncate_pagecache.run(m, task, file, 0)
    if backing.charged:
        m.commit(-backing.charged)


def link_vma(m: Machine, file: int, handle: int) -> None:
    """Put a VMA into its file's rmap."""
    m.i_mmap(file).put(handle, True)


def unlink_vma(m: Machine, file: int, handle: int) -> None:
    """Take a VMA out of its file's rmap."""
    if handle in m.i_mmap(file):
        m.i_mmap(file).drop(handle)
