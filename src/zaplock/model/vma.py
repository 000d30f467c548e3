"""VMAs and the tree that finds them.

A VMA is named by a handle, which outlives it: a step that is given the handle of a freed VMA
reports a use after free and names both sides. Its fields are one immutable `Vma` in one cell.

Sources: mm/mmap.c (4.9 to 6.1), mm/vma.c (6.11 on). Linux keeps an rbtree and a list (to 6.0) or a
maple tree (6.1 on); the model has one ordered index for both, since at the grain of a step nobody
sees the difference (the one bug that lives below that grain, CVE-2023-3269, has its own protocol).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from errno import EINVAL, ENOMEM
from typing import TYPE_CHECKING, Literal, final

import msgspec

from zaplock.model.files import get_file, link_vma, put_file, unlink_vma
from zaplock.model.flags import (
    PAGE_SHIFT,
    PMD_SIZE,
    VM_ACCESS_FLAGS,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_GROWSUP,
    VM_HUGETLB,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_SPECIAL,
    VM_STICKY,
    VM_WRITE,
    names,
)
from zaplock.model.huge_pool import LEVEL_OF, unreserve
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.files import File
    from zaplock.model.machine import Machine
    from zaplock.model.mm import Mm


class Vma(msgspec.Struct, frozen=True):
    """A mapping: addresses [start, end) in bytes, vm_flags, what it maps and how it is found.

    `pgoff` in pages; `file` and `anon_vma` are handles, 0 for none; `shared_anon_vma` says that
    the anon_vma chain has more than one link (after a fork). `uffd` is a userfaultfd context.
    `attached`: in the tree, so a lookup finds it. `lock_seq`: write-locked while it equals the
    mm's. `leaving`: who read-locked it when it was taken out of the tree, where an unmap does not
    wait for them. `cut`: out of the tree, its pages not zapped yet and not found by address.
    `reserves`: the huge pages that it has not mapped are promised to it (model.huge_pool); those in
    `spent`, by their number in the file, are no more, where a zap gives none back (None: it does).
    `name` is that of what is no file of the model; a private mapping of a device is anonymous but
    keeps its file, so there it tells of which open, too (see `zero_name`). `anon_name`:
    PR_SET_VMA_ANON_NAME.
    `anon_shift`: by how many pages the anonymous pages of a private mapping of a file that has
    moved count from another place than where it is (0 unless the kernel counts them apart, 7.3).
    `huge_size`: how many bytes a page has where VM_HUGETLB is set. `ops`: whose it is, where
    its vm_ops say what may be done with it: "special" is the kernel's own ([vvar], [vdso]), which
    can't be cut (special_mapping_split, 5.11), "secret" is memfd_secret's, always locked, "shm:N"
    the N-th attached segment's: each shmat opens it anew (`opened_as`).
    """

    mm: int
    start: int
    end: int
    flags: int
    pgoff: int = 0
    file: int = 0
    anon_vma: int = 0
    shared_anon_vma: bool = False
    uffd: int = 0
    attached: bool = True
    lock_seq: int = -1
    leaving: tuple[int, ...] = ()
    cut: bool = False
    name: str = ""
    anon_name: str = ""
    reserves: bool = False
    anon_shift: int = 0
    huge_size: int = PMD_SIZE
    spent: tuple[int, ...] | None = None
    ops: str = ""

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def nr_pages(self) -> int:
        return self.end - self.start >> PAGE_SHIFT

    @property
    def huge_level(self) -> int:
        """The level of page tables whose entries map its huge pages."""
        return LEVEL_OF[self.huge_size]

    def pgoff_of(self, address: int) -> int:
        """Return the page offset of an address."""
        return self.pgoff + (address - self.start >> PAGE_SHIFT)

    def __str__(self) -> str:
        return f"VMA [{self.start:#x}, {self.end:#x}) {names(self.flags)}"


@final
class FreedVma(msgspec.Struct, frozen=True):
    """What is left of a freed VMA: enough to say whose it was."""

    start: int
    end: int
    freed_by: str


change = msgspec.structs.replace


def vma_of(m: Machine, task: Task, handle: int) -> Vma:
    """Return the fields of a VMA; one that was freed is a violation."""
    vma = m.vmas.data[handle]
    if type(vma) is FreedVma:
        raise Violation(
            Invariant.USE_AFTER_FREE,
            f"{task} uses the VMA [{vma.start:#x}, {vma.end:#x}), which {vma.freed_by} freed",
        )
    return vma


def found_vma(m: Machine, task: Task, handle: int) -> Vma:
    """Return the fields of a VMA that must still be in the tree."""
    vma = vma_of(m, task, handle)
    if not vma.attached and task.tid not in vma.leaving:
        raise Violation(
            Invariant.NO_STALE_VMA, f"{task} uses {vma}, which is no longer in the tree"
        )
    return vma


def walked_vma(m: Machine, task: Task, handle: int, address: int) -> Vma:
    """Return the fields of a VMA in the tree for a walk to `address`, which must lie inside."""
    vma = found_vma(m, task, handle)
    if not vma.start <= address < vma.end:
        raise Violation(
            Invariant.WALK_INSIDE_VMA, f"{task} walks to {address:#x}, outside the {vma} it found"
        )
    return vma


def lookup(m: Machine, space: Mm, address: int) -> int:
    """Return the handle of the first VMA that ends above `address`, or 0."""
    tree = space.tree
    order = tree.order
    i = bisect_right(order, address)
    if i:
        handle = tree.data[order[i - 1]]
        if m.vmas.data[handle].end > address:
            return handle
    return tree.data[order[i]] if i < len(order) else 0


def previous(space: Mm, start: int) -> int:
    """Return the handle of the VMA before address `start`, or 0."""
    tree = space.tree
    i = bisect_left(tree.order, start)
    return tree.data[tree.order[i - 1]] if i else 0


def following(space: Mm, start: int) -> int:
    """Return the handle of the first VMA that starts at or above `start`, or 0."""
    tree = space.tree
    i = bisect_left(tree.order, start)
    return tree.data[tree.order[i]] if i < len(tree.order) else 0


def overlapping(m: Machine, space: Mm, start: int, end: int) -> list[int]:
    """List the handles of the VMAs that overlap [start, end), in order."""
    order, data = space.tree.order, space.tree.data
    i = bisect_right(order, start)
    handles = [data[at] for at in order[i : bisect_left(order, end)]]
    if i and m.vmas.data[first := data[order[i - 1]]].end > start:
        handles.insert(0, first)
    return handles


def tombstones_over(space: Mm, start: int, end: int) -> list[int]:
    """List where the tombstones that overlap [start, end) begin, in order."""
    dying = space.dying
    found = dying.between(start + 1, end)
    first = dying.at_or_before(start)
    return [first, *found] if first is not None and dying.data[first][0] > start else found


@step
def find_vma(m: Machine, _task: Task, mm: int, address: int) -> int:
    """Return the first VMA that ends above `address`, or 0."""
    m.spend("vma_find")
    return lookup(m, m.mm(mm), address)


@step
def find_vmas(m: Machine, _task: Task, mm: int, start: int, end: int) -> tuple[int, ...]:
    """Return all VMAs that overlap [start, end)."""
    m.spend("vma_find")
    return tuple(overlapping(m, m.mm(mm), start, end))


@step
def read_vma(m: Machine, task: Task, handle: int) -> Vma:
    """Return the fields of a VMA."""
    return vma_of(m, task, handle)


def write_vma(m: Machine, handle: int, vma: Vma) -> None:
    """Replace the fields of a VMA in the tree, moving it in the index where its start moved."""
    old = m.vmas[handle]
    tree = m.mm(vma.mm).tree
    if isinstance(old, Vma) and old.attached and vma.attached and old.start != vma.start:
        tree.drop(old.start)
        tree.put(vma.start, handle)
    m.vmas.put(handle, vma)


def insert(m: Machine, task: Task, vma: Vma) -> int:
    """Put a new VMA into the tree and its file's rmap; return its handle."""
    handle = m.new_handle(task, "vma")
    forbid_torn_down(m, task, vma.mm, vma.start, vma.end)
    m.spend("vma_alloc")
    space = m.mm(vma.mm)
    if vma.mm == task.mm:
        # Write-locked from its first instant: nobody takes it by its own lock before the unlock.
        vma = change(vma, lock_seq=space.count("lock_seq"))
    m.vmas.put(handle, vma)
    space.tree.put(vma.start, handle)
    space.add("map_count", 1)
    if vma.file:
        get_file(m, vma.file)
        link_vma(m, vma.file, handle)
    return handle


def forbid_torn_down(m: Machine, task: Task, mm: int, start: int, end: int) -> None:
    """Report a VMA that would come to lie over a range whose page tables are being freed."""
    for low, high in m.mm(mm).teardown.data.values():
        if start < high and low < end:
            raise Violation(
                Invariant.NO_VMA_OVER_FREED_TABLES,
                f"{task} puts a VMA over [{max(start, low):#x}, {min(end, high):#x}) "
                "while that range is torn down",
            )


def remove(m: Machine, task: Task, handle: int) -> Vma:
    """Take a VMA out of the tree; it lives on, detached."""
    vma = vma_of(m, task, handle)
    detach(m, handle, vma)
    return vma


def detach(m: Machine, handle: int, vma: Vma) -> Vma:
    """Take a VMA, with its fields, out of the tree; return what it is now."""
    space = m.mm(vma.mm)
    space.tree.drop(vma.start)
    space.add("map_count", -1)
    detached = change(vma, attached=False)
    m.vmas.put(handle, detached)
    return detached


def free(m: Machine, task: Task, handle: int) -> None:
    """Free a VMA; its handle stays recognisable."""
    vma = vma_of(m, task, handle)
    if vma.attached:
        raise Violation(Invariant.TEARDOWN_ORDER, f"{task} frees {vma}, still in the tree")
    if vma.file and handle in m.i_mmap(vma.file):
        raise Violation(Invariant.TEARDOWN_ORDER, f"{task} frees {vma}, still in the rmap")
    if vma.file and m.files[vma.file].saved == handle:
        raise Violation(Invariant.TEARDOWN_ORDER, f"{task} frees {vma} without its close()")
    m.spend("vma_free")
    if vma.reserves:
        unreserve(m, vma.huge_size, subpool_of(m, vma), len(unspent(vma)))
    if vma.file:
        put_file(m, task, vma.file)
    m.vmas.put(handle, FreedVma(vma.start, vma.end, task.name))


def unspent(vma: Vma) -> range | list[int]:
    """List the huge pages of a reserve's owner that are promised to it once nothing is mapped."""
    pages = vma.huge_size >> PAGE_SHIFT
    every = range(vma.pgoff // pages, (vma.pgoff + vma.nr_pages) // pages)
    return [one for one in every if one not in vma.spent] if vma.spent else every


def subpool_of(m: Machine, vma: Vma) -> int:
    """Return whose share of the pool the file of a mapping uses, 0 for none."""
    return m.files[vma.file].subpool if vma.file else 0


def unlink_rmap(m: Machine, task: Task, handle: int) -> None:
    """Take a VMA out of its file's rmap."""
    vma = vma_of(m, task, handle)
    if vma.file:
        unlink_vma(m, vma.file, handle)


def split(m: Machine, task: Task, handle: int, address: int, new_below: bool) -> int:
    """Cut a VMA in two at `address`; return the new one's handle, or -ENOMEM at the limit.

    `new_below` says which part is the new VMA. The limit is max_map_count (mm/mmap.c split_vma);
    callers that may go over it call `split_unlimited`.
    """
    space = m.mm(vma_of(m, task, handle).mm)
    if space.count("map_count") >= space.limits.max_map_count:
        return -ENOMEM
    return split_unlimited(m, task, handle, address, new_below)


def split_unlimited(m: Machine, task: Task, handle: int, address: int, new_below: bool) -> int:
    """Cut a VMA in two as __split_vma does, whatever the number of mappings.

    -EINVAL inside a huge page of hugetlb (hugetlb_vm_op_split), or in what the kernel has mapped.
    """
    vma = vma_of(m, task, handle)
    if vma.ops == "special" or (vma.flags & VM_HUGETLB and address % vma.huge_size):
        return -EINVAL
    assert vma.start < address < vma.end, (vma, hex(address))
    space = m.mm(vma.mm)
    m.spend("vma_split")
    split_huge_entry(m, task, space, address)
    below = change(vma, end=address)
    above = change(vma, start=address, pgoff=vma.pgoff_of(address))
    new = m.new_handle(task, "vma")
    write_vma(m, handle, above if new_below else below)
    m.vmas.put(new, below if new_below else above)
    space.tree.put(m.vmas[new].start, new)
    space.add("map_count", 1)
    if vma.file:
        get_file(m, vma.file)
        link_vma(m, vma.file, new)
    return new


def split_huge_entry(m: Machine, task: Task, space: Mm, address: int) -> None:
    """Map a huge page by small entries where a VMA now ends inside it (vma_adjust_trans_huge)."""
    from zaplock.model.pagetable import split_huge_at

    split_huge_at(m, task, space, address >> PAGE_SHIFT)


@step
def split_vma(m: Machine, task: Task, handle: int, address: int, new_below: bool) -> int:
    """Cut a VMA in two at `address`; return the new one's handle, or -ENOMEM at the limit."""
    return split(m, task, handle, address, new_below)


@step
def split_vma_unlimited(m: Machine, task: Task, handle: int, address: int, new_below: bool) -> int:
    """Cut a VMA in two whatever the number of mappings (__split_vma); return the new one."""
    return split_unlimited(m, task, handle, address, new_below)


# Merging


def can_merge(m: Machine, left: Vma, right: Vma) -> bool:
    """Return whether two neighbours can be one VMA (is_mergeable_vma and its kin)."""
    return (not left.file or may_join(m.files[left.file])) and are_alike(left, right)


def zero_name(file: int) -> str:
    """Return the name of a private mapping of /dev/zero, which two opens have two of.

    Linux compares vm_file, a struct file, in all releases (is_mergeable_vma; mmap_zero leaves it).
    """
    return f"zero:{file}"


_ATTACHED = "shm:"


def opened_as(attached: int) -> str:
    """Return whose the mapping is that an shmat has made, the `attached`-th one."""
    return f"{_ATTACHED}{attached}"


def is_attached(vma: Vma) -> bool:
    """Return whether a mapping is of a segment of System V shared memory, or a part of one."""
    return vma.ops.startswith(_ATTACHED)


def device_of(name: str) -> str:
    """Return which device the name of a private mapping is of, the name itself for other ones."""
    return name.partition(":")[0]


def can_shift(m: Machine, left: Vma, right: Vma) -> bool:
    """Return whether the border between two neighbours may move, though neither may go.

    So it is with mappings that count themselves: one that goes would have to be closed.
    """
    return bool(left.file) and m.files[left.file].counts_mappings and are_alike(left, right)


def are_alike(left: Vma, right: Vma) -> bool:
    """Return whether two neighbours are so equal that they could be one, whatever they map."""
    return (
        left.end == right.start
        and not (left.flags ^ right.flags) & ~VM_STICKY
        and left.file == right.file
        and left.uffd == right.uffd
        and left.name == right.name
        and left.anon_name == right.anon_name
        and left.pgoff + left.nr_pages == right.pgoff
        and left.anon_shift == right.anon_shift
        and left.ops == right.ops
        and anon_vmas_agree(left, right)
        and not left.flags & VM_SPECIAL
    )


def may_join(file: File) -> bool:
    """Return whether mappings of a file may become one: a driver or a count may forbid it."""
    return file.kind != "device" and not file.counts_mappings


def anon_vmas_agree(left: Vma, right: Vma) -> bool:
    """Return whether two VMAs may share an anon_vma (is_mergeable_anon_vma)."""
    if left.anon_vma and right.anon_vma:
        return left.anon_vma == right.anon_vma
    only = left if left.anon_vma else right
    return not only.shared_anon_vma


def accepts(vma: Vma, neighbour: Vma) -> bool:
    """Return whether a kernel before 6.16 lets a VMA merge with a neighbour, by their anon_vmas."""
    return bool(neighbour.anon_vma or not vma.anon_vma)


def absorb(m: Machine, task: Task, left: int, right: int, paid: bool = False) -> int:
    """Make two neighbours one VMA and return its handle; the right one is freed.

    `paid`: the right one is in Linux no VMA before it merges, and what that costs is spent already.
    """
    first, second = vma_of(m, task, left), vma_of(m, task, right)
    if not paid:
        m.spend("vma_merge")
    detach(m, right, second)
    if second.file:
        unlink_vma(m, second.file, right)
    free(m, task, right)
    donor = first if first.anon_vma else second
    grown = change(
        first,
        end=second.end,
        flags=first.flags | second.flags & VM_STICKY,
        anon_vma=donor.anon_vma,
        shared_anon_vma=donor.shared_anon_vma,
    )
    m.vmas.put(left, grown)
    return left


MergedMark = Literal["any", "own", "neighbour"]
"""Whose soft-dirty mark (VM_SOFTDIRTY) a VMA has that came of several: that of "any" of them, its
"own" if that was changed, or that of the "neighbour" that took it over."""


def merge_around(
    m: Machine,
    task: Task,
    handle: int,
    apart: int = 0,
    untouched: bool = True,
    new: bool = False,
    mark: MergedMark = "any",
    unopened: bool = False,
) -> int:
    """Merge a VMA with its neighbours where it can; return the handle of what it is now.

    A `new` one has `paid` for its first merge (absorb). Of two neighbours the left one takes over.
    It does not merge with the VMA `apart`, nor, having an anon_vma, with one that has none unless
    they merge with the `untouched` too (6.16). One that is `unopened`, which nobody would have to
    close, may join one neighbour of those that count themselves, too.
    """
    original = vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    neighbour = None
    left = previous(space, vma.start)
    if left and left != apart:
        before = vma_of(m, task, left)
        joins = can_merge(m, before, vma) or (unopened and can_shift(m, before, vma))
        if joins and (untouched or accepts(original, before)):
            neighbour = before
            handle = absorb(m, task, left, handle, new)
            vma, new = vma_of(m, task, handle), False
    right = following(space, vma.end)
    if right and right != apart:
        behind = vma_of(m, task, right)
        joins = unopened and neighbour is None and can_shift(m, vma, behind)
        joins = joins or can_merge(m, vma, behind)
        if joins and (untouched or accepts(original, behind)):
            neighbour = neighbour or behind
            handle = absorb(m, task, handle, right, new)
    if neighbour and mark != "any":
        keep_mark(m, task, handle, neighbour if mark == "neighbour" else original)
    return handle


def merges_around(m: Machine, task: Task, handle: int, untouched: bool) -> bool:
    """Return whether `merge_around` merges a VMA with any neighbour."""
    vma = vma_of(m, task, handle)
    space = m.mm(vma.mm)
    left, right = previous(space, vma.start), following(space, vma.end)
    pairs = []
    if left:
        pairs.append((before := vma_of(m, task, left), vma, before))
    if right:
        pairs.append((vma, behind := vma_of(m, task, right), behind))
    return any(
        can_merge(m, first, second) and (untouched or accepts(vma, other))
        for first, second, other in pairs
    )


def keep_mark(m: Machine, task: Task, handle: int, of: Vma) -> None:
    """Mark what has merged as soft-dirty if, and only if, one of its parts was."""
    vma = vma_of(m, task, handle)
    if (vma.flags ^ of.flags) & VM_SOFTDIRTY:
        m.vmas.put(handle, change(vma, flags=vma.flags ^ VM_SOFTDIRTY))


# Accounting


def account(space: Mm, flags: int, nr_pages: int) -> None:
    """Count pages of a mapping into total_vm and its parts (vm_stat_account)."""
    space.add("total_vm", nr_pages)
    account_parts(space, flags, nr_pages)


def account_parts(space: Mm, flags: int, nr_pages: int) -> None:
    """Count pages of a mapping into exec_vm, stack_vm or data_vm."""
    if flags & (VM_EXEC | VM_WRITE | VM_GROWSDOWN | VM_GROWSUP) == VM_EXEC:
        space.add("exec_vm", nr_pages)
    elif flags & (VM_GROWSDOWN | VM_GROWSUP):
        space.add("stack_vm", nr_pages)
    elif flags & (VM_WRITE | VM_SHARED) == VM_WRITE:
        space.add("data_vm", nr_pages)


def fits_limits(space: Mm, flags: int, nr_pages: int) -> bool:
    """Return whether RLIMIT_AS and RLIMIT_DATA allow more pages (may_expand_vm).

    Where RLIMIT_DATA is 0 its hard limit counts, as Valgrind needs it.
    """
    limits = space.limits
    if space.count("total_vm") + nr_pages > limits.rlimit_as >> PAGE_SHIFT:
        return False
    if flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) != VM_WRITE:
        return True
    most = limits.rlimit_data or limits.rlimit_data_hard
    return space.count("data_vm") + nr_pages <= most >> PAGE_SHIFT


def reusable_anon_vma(m: Machine, space: Mm, vma: Vma) -> int:
    """Return the anon_vma of a neighbour that a first fault can share, or 0.

    Source: find_mergeable_anon_vma; access flags may differ, since mprotect could make them equal.
    """
    for handle, is_left in (
        (following(space, vma.end), False),
        (previous(space, vma.start), True),
    ):
        if not handle:
            continue
        other = m.vmas[handle]
        assert isinstance(other, Vma)
        left, right = (other, vma) if is_left else (vma, other)
        if (
            other.anon_vma
            and not other.shared_anon_vma
            and left.end == right.start
            and left.file == right.file
            and not (left.flags ^ right.flags) & ~(VM_ACCESS_FLAGS | VM_STICKY)
            and left.pgoff + left.nr_pages == right.pgoff
            and left.anon_shift == right.anon_shift
        ):
            return other.anon_vma
    return 0


@step
def anon_vma_prepare(m: Machine, task: Task, handle: int) -> int:
    """Give a VMA an anon_vma if it has none; return it."""
    vma = found_vma(m, task, handle)
    if vma.anon_vma:
        return vma.anon_vma
    anon_vma = reusable_anon_vma(m, m.mm(vma.mm), vma) or m.new_handle(task, "anon_vma")
    m.vmas.put(handle, change(vma, anon_vma=anon_vma))
    return anon_vma
