"""The VMA tree at the grain of its nodes, where CVE-2023-3269 ("StackRot") lived.

Everywhere else the tree is one ordered index (`model.vma`): at the grain of a step nobody sees the
difference. Here a lookup is two steps, from the root to a node and from the node to an entry, as a
walk of a maple tree is. Its nodes are never changed in place: who moves a boundary makes a new
node, hangs it in, and gives the old one back after a grace period of RCU. Readers that hold only
the mmap_lock are no RCU readers, so the grace period doesn't wait for them: a stack that grows
under the shared lock frees the node on which another shared holder stands.

Sources: lib/maple_tree.c, mm/mmap.c expand_downwards; 6.1.0 to 6.1.36 and 6.2 to 6.4.0; mended by
8d7071af8907 (growth under write). Not covered: deep trees; a lookup under RCU alone (6.4 on) is
safe, since then the grace period does wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zaplock.model.rwsem import down_read, down_write, up_read, up_write
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.store import Cells

MMAP_LOCK: Final = ("mmap_lock", 1)
ROOT: Final = "root"

Entries = tuple[tuple[int, int], ...]
"""What a node holds: (start, end) of each VMA."""


def nodes(m: Machine) -> Cells[int, Entries | str]:
    """Return the nodes: what each holds, or the name of who freed it."""
    return m.cells("maple_nodes")


def root(m: Machine) -> Cells[str, int]:
    """Return the root: which node hangs there."""
    return m.cells("maple_root")


def plant(m: Machine, entries: Entries) -> None:
    """Let a tree of one node stand before a run starts."""
    root(m).put(ROOT, 1)
    nodes(m).put(1, entries)


@step
def mas_start(m: Machine, _task: Task) -> int:
    """Go from the root to the node."""
    return root(m)[ROOT]


@step
def mas_walk(m: Machine, task: Task, node: int, address: int) -> tuple[int, int]:
    """Look an address up in a node: the first VMA that ends above it, or (0, 0)."""
    for start, end in entries_of(m, task, node):
        if address < end:
            return start, end
    return 0, 0


def entries_of(m: Machine, task: Task, node: int) -> Entries:
    """Return what a node holds; a freed one is a use after free."""
    held = nodes(m)[node]
    if isinstance(held, str):
        raise Violation(
            Invariant.USE_AFTER_FREE, f"{task} reads the tree node {node}, which {held} freed"
        )
    return held


@step
def mas_replace_node(m: Machine, task: Task, node: int, old: tuple[int, int], start: int) -> None:
    """Hang in a copy of a node in which one VMA starts lower (mas_store_prealloc)."""
    grown = tuple((start, old[1]) if entry == old else entry for entry in entries_of(m, task, node))
    new = m.next_serial(task, "maple node") + 10 * task.tid
    nodes(m).put(new, grown)
    root(m).put(ROOT, new)


@step
def mt_free_rcu(m: Machine, task: Task, node: int) -> None:
    """The grace period is over: the old node's memory goes."""
    nodes(m).put(node, task.name)


async def find_vma(address: int) -> int:
    """Look an address up under the shared lock: its VMA's end, or 0."""
    await down_read(MMAP_LOCK)
    node = await mas_start()
    _, end = await mas_walk(node, address)
    await up_read(MMAP_LOCK)
    return end


async def expand_stack(address: int, under_write: bool) -> int:
    """Let the stack begin lower: its new start, or 0."""
    await (down_write(MMAP_LOCK) if under_write else down_read(MMAP_LOCK))
    node = await mas_start()
    stack = await mas_walk(node, address)
    if stack[0] > address:
        await mas_replace_node(node, stack, address)
    await (up_write(MMAP_LOCK) if under_write else up_read(MMAP_LOCK))
    if stack[0] > address:
        await mt_free_rcu(node)
    return address
