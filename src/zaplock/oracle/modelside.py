"""The model as a side of the comparison: design linux-6.18 under the sequential engine.

Every operation is the protocol that the design names, run to its end by one task. A snapshot is
read straight from the state; nothing of the real side flows in but its environment (where mappings
go, what the limits are, and the ring, which the model maps too).
"""

from __future__ import annotations

import platform
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zaplock.designs.linux import design_of
from zaplock.engines.sequential import LockCall
from zaplock.model.shared_folios import FOLIOS
from zaplock.model.shared_huge import MAPPED
from zaplock.oracle import ops
from zaplock.oracle.modelops import apply
from zaplock.oracle.ops import (
    CallOutcome,
    Environment,
    Op,
    OracleStep,
    Promised,
    Ref,
    Snapshot,
    slots_used,
)
from zaplock.oracle.real import RealSide
from zaplock.oracle.scope import Scope
from zaplock.oracle.world import World
from zaplock.protocols.design import Design

NOTHING = Snapshot((), b"", b"", (0,) * len(ops.COUNTERS))
_MASK = (1 << 64) - 1

COVERED = Scope()


def model_side(real: RealSide) -> ModelSide:
    """Make the model side for what the real side found out about its process."""
    return ModelSide(real.environment)


class ModelSide:
    """Run sequences on the model, each in a machine as it was at first.

    `limit_s`: an operation that takes more CPU time counts as broken (0: no limit); for a model
    that has been broken on purpose and may never end. In the main thread only.
    """

    def __init__(self, environment: Environment, design: Design | None = None) -> None:
        self.environment = environment
        self.design = design or design_of(platform.release()).design
        self.lock_calls: list[list[LockCall]] | None = None
        self.promised: list[Promised] | None = None
        self.limit_s = 0.0

        self._world: World | None = None

    def close(self) -> None:
        """Let go of the machine."""
        if self._world is not None:
            self._world.machine.close()
            self._world = None

    def run(self, sequence: Sequence[Op]) -> list[OracleStep]:
        """Run a sequence in a fresh address space; return every operation's step."""
        return self._steps(self._begun(sequence), sequence)

    def _begun(self, sequence: Sequence[Op]) -> World:
        """Have what a sequence begins with; what it shows is what is compared in that one."""
        world = self._world
        if world is None or world.design is not self.design:
            self.close()
            world = self._world = World(self.environment, self.design)
        untouched = ops.shows_references(sequence)
        references = self.environment.shows_references and untouched
        huge_segment = "huge_shmat" in ops.segments_used(sequence)
        world.begin(slots_used(sequence), references, huge_segment)
        if self.environment.shows_peak:
            world.machine.globals.put("peaks", 1)
        if self.environment.shows_soft_dirty and untouched:
            world.machine.globals.put("soft_dirty", 1)
        if self.design.batches_entries:
            world.machine.globals.put("batches", 1)
        if not self.design.ksm_unshares:
            world.machine.globals.put("ksm_writes", 1)
        if not self.design.keeps_huge_dirty:
            world.machine.globals.put("forgets_dirty", 1)
        if not self.design.maps_folios_around:
            world.machine.globals.put("one_by_one", 1)
        if not self.design.cuts_folios_in_halves:
            world.machine.globals.put("cuts_evenly", 1)
        world.machine.globals.put("shmem_folios", FOLIOS.index(self.design.shmem_folios))
        world.machine.globals.put("maps_single", MAPPED.index(self.design.maps_whole_folios))
        if not self.design.huge_maps_ask:
            world.machine.globals.put("maps_disabled", 1)
        if not self.design.folios_need_room:
            world.machine.globals.put("shmem_anywhere", 1)
        world.view.shows_references = references
        world.view.untouched = untouched
        world.view.shows_lazyfree = self.environment.shows_lazyfree and ops.shows_lazyfree(sequence)
        world.view.end = ops.CROWD if ops.is_crowded(sequence) else 1 << 63
        return world

    def _steps(self, world: World, sequence: Sequence[Op]) -> list[OracleStep]:
        results: list[int] = []
        steps: list[OracleStep] = []
        if self.promised is not None:
            self.promised.append(_promised(world))
        for index, (name, asked) in enumerate(sequence):
            arguments: Any = asked
            if Ref in map(type, asked):
                arguments = [
                    (results[a.op] + a.delta) & _MASK if isinstance(a, Ref) else a for a in asked
                ]
            calls: list[LockCall] | None = None if self.lock_calls is None else []
            try:
                if self.limit_s:
                    with at_most(self.limit_s):
                        outcome = apply(world, index, name, arguments, calls)
                else:
                    outcome = apply(world, index, name, arguments, calls)
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                steps.append(OracleStep(CallOutcome(ops.BROKEN, told.encode()), NOTHING))
                return steps
            if self.lock_calls is not None and calls is not None:
                self.lock_calls.append(calls)
            if self.promised is not None:
                self.promised.append(_promised(world))
            results.append(outcome.result)
            steps.append(OracleStep(outcome, world.view.snapshot()))
        return steps


def _promised(world: World) -> Promised:
    """Return what the model's machine has promised so far."""
    figure = world.machine.globals.get
    return Promised(
        figure("committed_as", 0), figure("hugetlb_free", 0), figure("hugetlb_reserved", 0)
    )


@contextmanager
def at_most(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in the block after so many seconds of its own CPU time."""

    def stop(_number: int, _frame: object) -> None:
        raise TimeoutError(f"still running after {limit_s} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
