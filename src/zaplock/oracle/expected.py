"""What each operation of a sequence returns by the model of Linux 6.18, in an ordinary process.

Ordinary is: no limits but the machine's, huge pages for who asks for them and enough of the pool's,
swap, and every file on a disk, as a C program has them (`reproducer`).
"""

from __future__ import annotations

from collections.abc import Sequence

from zaplock.designs.linux import LINUX_6_18
from zaplock.model.shared_folios import Sizes
from zaplock.oracle import ops, ring
from zaplock.oracle.modelside import NOTHING, ModelSide
from zaplock.oracle.ops import Environment, Op

_PLENTY = 1 << 20
_UNLIMITED = 1 << 63
ORDINARY = Environment(
    ring=ring.RING, ring_length=ring.RING_SIZE, mmap_base=0x7FFF_F7FF_F000,
    start_brk=0x5555_5555_9000, data_length=0, max_map_count=65530, mmap_min_addr=1 << 16,
    mmap_min_hint=1 << 16, limits=dict.fromkeys(ops.LIMITED, (_UNLIMITED, _UNLIMITED)),
    task_size=ring.TASK_SIZE, overcommit_pages=_PLENTY << 10, hugetlb_pages=_PLENTY,
    gigantic_pages=_PLENTY, swap_pages=_PLENTY, group_pages=0, filled_pages=0, kills_all=False,
    has_mounts=False, huge_faults=1, shared_huge=0, shared_sizes=Sizes(), shows_peak=False,
    has_keys=False, poison_code=4, shows_protection=False, shows_lazyfree=False,
    shows_references=False, shows_soft_dirty=False, baseline=NOTHING,
)  # fmt: skip


def results(sequence: Sequence[Op]) -> list[int]:
    """Return what the operations give, minus errno for what fails; fewer where the model breaks."""
    model = ModelSide(ORDINARY, LINUX_6_18)
    try:
        steps = model.run([_on_a_disk(op) for op in sequence])
    finally:
        model.close()
    found = [step.outcome.result for step in steps]
    return found[: found.index(ops.BROKEN)] if ops.BROKEN in found else found


def _on_a_disk(op: Op) -> Op:
    """Let an mmap have the file on the disk for any file."""
    if op.name != "mmap" or op.args[4] in (ops.NO_FILE, ops.BAD_FILE):
        return op
    return Op(op.name, (*op.args[:4], ops.DISK_SLOT, *op.args[5:]))
