"""Where a coroutine stands: a node in the trie of the results that it has received.

A protocol is a deterministic function of its results, so its history determines its position. All
explored paths share one trie per task. It is determinised lazily: a live coroutine waits at the end
of the path walked last; where another child of an inner node is needed, a fresh coroutine is run
there from its beginning with the recorded results, which costs no state.

Tasks that have ended collapse to their result, since no history can matter any more. And a task
that goes round a loop comes back to a position where it has been, if all of its frames stand at the
same instructions, with equal locals, and if each either has nothing else on its value stack or has
not moved since (`depicting`): then what follows is the same, and a retry loop has a finite number
of positions. Two frames at the same line with equal locals may still differ in a hidden iterator;
those are never taken for one.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Hashable
from contextlib import suppress
from itertools import pairwise
from typing import Any, Final

from zaplock.engines.checking.configuration import Protocol, TaskProgram
from zaplock.engines.checking.depicting import (
    Records,
    Stand,
    Undepictable,
    depict,
    depict_frames,
    is_same_place,
    stands_bare,
)
from zaplock.engines.checking.faults import guarded
from zaplock.engines.checking.purity import Surroundings
from zaplock.errors import ProtocolError
from zaplock.model.frozen import ATOMS, NotFrozen, exact, same
from zaplock.model.step import MarkStep, SleepStep, Step, StepWatch, Task, watching
from zaplock.model.violations import Violation

POSITION_BITS: Final = 20
"""Bits that the number of a position takes in a state."""

Place = tuple[int, ...]
"""The identity of the code and the instruction of each frame, the outermost first."""

Halt = tuple[Place, Hashable]
"""A place, and what stands for the step that is taken there."""


class Node:
    """One position of one task.

    `step` is what it is about to do, None when it has ended with `result`. `queued` tells that it
    waits in the queue of that step's lock. `captured` is what the step's function saw beside its
    arguments when it was made. `further` is the first position that this one has led on to.
    """

    __slots__ = ("_asleep", "_live", "captured", "children", "depth", "further", "halt", "id",
                 "parent", "queued", "result", "stands", "step")  # fmt: skip

    def __init__(self, number: int, parent: Node | None, result: Any, step: Step[Any] | None):
        self.id = number
        self.parent = parent
        self.result = result
        self.step = step
        self.queued = False
        self.captured: Hashable = None
        self.children: dict[Any, Node] = {}
        self.further: Node | None = None
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.halt: Halt | None = None
        self.stands: tuple[Stand, ...] = ()
        self._live: LiveProtocol | None = None
        self._asleep: Node | None = None

    def path(self) -> list[Node]:
        """List the positions on the way here, from the first one to this."""
        nodes = [self]
        while nodes[-1].parent is not None:
            nodes.append(nodes[-1].parent)
        return nodes[::-1]


class LiveProtocol:
    """A running coroutine, watched for steps that it makes and does not await."""

    __slots__ = ("chain", "is_opaque", "protocol", "received", "task", "watch")

    def __init__(self, program: TaskProgram) -> None:
        self.task = program.task
        self.watch = StepWatch()
        self.chain: list[tuple[Any, int]] = []
        self.received = -1
        self.is_opaque = False
        self.protocol: Protocol = self._watched(lambda _result: program.start(), None)

    def _watched(self, act: Any, result: Any) -> Any:
        before, watching.watch = watching.watch, self.watch
        try:
            return act(result)
        finally:
            watching.watch = before

    def resume(self, result: Any) -> tuple[bool, Any]:
        """Go on to the next step that changes state: (False, step), or (True, result) at the end.

        Marks and sleeps are passed over: they change nothing that another task could see.
        """
        self.received += 1
        try:
            step = self._watched(self.protocol.send, result)
            while isinstance(step, (MarkStep, SleepStep)):
                self.watch.awaited(step)
                step = self._watched(self.protocol.send, None)
        except StopIteration as end:
            if self.watch.pending:
                self._forgotten(next(iter(self.watch.pending.values())))
            return True, end.value
        if not isinstance(step, Step):
            raise ProtocolError(
                f"{self.task} awaits {step!r}, which is no step: a protocol awaits steps and "
                "protocols and nothing else"
            )
        self.watch.awaited(step)
        if self.watch.pending:
            self._look_for_forgotten()
        return False, step

    def _look_for_forgotten(self) -> None:
        for number in list(self.watch.pending):
            # References: from `pending`, and from the call that counts them.
            if sys.getrefcount(self.watch.pending[number]) <= 2:
                self._forgotten(self.watch.pending[number])

    def _forgotten(self, step: Step[Any]) -> None:
        raise ProtocolError(f"{self.task} makes the step {step} and never awaits it: `await` it")

    def place(self) -> Place:
        """Name the instructions at which the protocol and those that it awaits stand.

        An awaitable of a class of its own keeps where it stands to itself: it is opaque.
        """
        found: list[int] = []
        before, chain = self.chain, list[tuple[Any, int]]()
        self.chain = chain
        known = len(before)
        level, since = 0, 0
        at: Any = self.protocol
        while at is not None:
            # A frame that awaits what it awaited before has not moved; since when stands one below.
            if level:
                stays = level < known and before[level][0] is at
                since = before[level][1] if stays else self.received
            if type(at) is types.CoroutineType:
                frame, inner = at.cr_frame, at.cr_await
            else:
                frame, inner = _frame_of(at)
            if frame is None:
                break
            chain.append((at, since))
            found += (id(frame.f_code), frame.f_lasti)
            level, at = level + 1, inner
        self.is_opaque = at is not None
        return tuple(found)

    def stands(self, records: Records) -> tuple[Stand, ...]:
        """Depict all frames, as `place` found them; raises Undepictable."""
        ones = [one for one, _ in self.chain]
        awaits_since = [since for _, since in self.chain[1:]] + [self.received]
        return depict_frames(list(zip(ones, awaits_since)), records)

    def shows_all_since(self, had: int) -> bool:
        """Return whether each frame shows all of itself or has not moved since `had` results."""
        if self.is_opaque:
            return False
        chain = self.chain
        for number, (one, _) in enumerate(chain):
            is_last = number + 1 == len(chain)
            since = self.received if is_last else chain[number + 1][1]
            if since > had and not stands_bare(one):
                return False
        return True

    def close(self) -> None:
        """Let go of it without running its clean-up."""
        abandon(self.protocol)


def _frame_of(at: Any) -> tuple[Any, Any]:
    """Return the frame of a generator and what that awaits; (None, None) of others."""
    if isinstance(at, types.GeneratorType) and at.gi_frame is not None:
        # A filter of steps (check.mutations) drives the protocol that it calls `inner`.
        return at.gi_frame, at.gi_yieldfrom or at.gi_frame.f_locals.get("inner")
    return None, None


class Trie:
    """All positions of one task that have been met so far.

    merged: (position, result received there, the earlier position that it leads back to).
    ends: (position, result received there, how the task then ended).
    failed: what its protocol broke before its first step; then it has no positions.
    """

    def __init__(self, program: TaskProgram, surroundings: Surroundings | None = None) -> None:
        self.program = program
        self.surroundings = surroundings or Surroundings()
        self.surroundings.add(program.start, str(program.task))
        self.nodes: dict[int, Node] = {}
        self.merged: list[tuple[Node, Any, Node]] = []
        self.ends: list[tuple[Node, Any, Node]] = []
        self._ended: dict[Any, Node] = {}
        self._halts: set[Halt] = set()
        self._codes: set[tuple[int, ...]] = set()
        """Of the frames that stood at once."""
        self._records: Records = {}
        self.failed: Violation | None = None
        live = LiveProtocol(program)
        try:
            ended, step = guarded(live.resume, None)
        except Violation as violation:
            self.failed, ended, step = violation, True, None
        if ended:
            self.root = self._end(step)
        else:
            self.root = self._new(None, "step", None, step, live)

    def number(self, _parent: Node | None, _kind: str, _result: Any) -> int:
        """Number a position that was not met before ("step", "queued" or "end")."""
        return len(self.nodes)

    def _new(
        self,
        parent: Node | None,
        kind: str,
        result: Any,
        step: Step[Any] | None,
        live: LiveProtocol | None = None,
        halt: Halt | None = None,
    ) -> Node:
        node = Node(self.number(parent, kind, result), parent, result, step)
        self.nodes[node.id] = node
        if live is not None and step is not None:
            node._live = live
            node.halt = halt or self._halt(live, step)
            self._halts.add(node.halt)
            self.surroundings.add(step, step.name)
            self.surroundings.locks.add(step, self.program.task)
            codes = node.halt[0][::2]
            if codes not in self._codes:
                self._codes.add(codes)
                self.surroundings.add_frames(live.protocol)
            node.captured = captured_by(step)
        return node

    def _end(self, result: Any) -> Node:
        key = self._exact(result, None)
        if key not in self._ended:
            self._ended[key] = self._new(None, "end", result, None)
        return self._ended[key]

    def _exact(self, result: Any, node: Node | None) -> Hashable:
        try:
            return exact(result)
        except NotFrozen as error:
            how = f"gets from {node.step} what can be changed:" if node else "ends with"
            raise ProtocolError(f"{self.program.task} {how} {error}") from None

    def child(self, node: Node, result: Any) -> Node:
        """Return where the task stands after its step at `node` has returned `result`."""
        if node.queued:
            assert node.parent is not None
            return self.child(node.parent, result)
        # True equals 1, but a protocol may tell them apart.
        key = result if type(result) in ATOMS else self._exact(result, node)
        found = node.children.get(key)
        if found is None:
            found = node.children[key] = self._grow(node, result, key)
        return found

    def _grow(self, node: Node, result: Any, key: Hashable) -> Node:
        live, node._live = node._live or self.walk_to(node), None
        ended, step = guarded(live.resume, result)
        if ended:
            end = self._end(step)
            self.ends.append((node, result, end))
            return end
        halt = self._halt(live, step)
        stands, before = self._been_here(node, live, halt)
        if before is not None:
            self.merged.append((node, result, before))
            live.close()
            return before
        child = self._new(node, "step", result, step, live, halt)
        child.stands = stands
        node.further = node.further or child
        return child

    def _halt(self, live: LiveProtocol, step: Step[Any]) -> Halt:
        arguments = look_at_step(step, self.program.task)
        code = id(getattr(step.run, "__code__", step.run))
        return live.place(), (type(step), step.name, code, arguments)

    def _been_here(
        self, node: Node, live: LiveProtocol, halt: Halt
    ) -> tuple[tuple[Stand, ...], Node | None]:
        """Return how the frames stand, and the earlier position on this path that is the same.

        Only where this path has come to an equal step at the same place before: elsewhere nothing
        repeats, and a loop that gets on takes no look at all of its frames.
        """
        if halt not in self._halts:
            return (), None
        at: Node | None = node
        stands: tuple[Stand, ...] = ()
        while at is not None:
            if at.halt == halt and live.shows_all_since(at.depth):
                if not stands:
                    try:
                        stands = live.stands(self._records)
                    except Undepictable:
                        return (), None
                if at.stands and is_same_place(stands, at.stands, at.depth):
                    return stands, at
            at = at.parent
        return stands, None

    def walk_to(self, node: Node, every_step: bool = False) -> LiveProtocol:
        """Run a fresh coroutine to a position; raises ProtocolError where it comes out elsewhere.

        every_step: compare the steps on the way, too.
        """
        live = LiveProtocol(self.program)
        path = node.path()
        step: Any = live.resume(None)[1]
        for at, then in pairwise(path):
            if every_step and not same_step(step, at.step):
                raise self._differs(at, str(step))
            live.place()
            ended, step = live.resume(then.result)
            if ended:
                raise self._differs(then, f"its end with {step!r}")
        if not same_step(step, node.step):
            raise self._differs(node, str(step))
        return live

    def walk_again(self, node: Node, result: Any, then: Node | None) -> None:
        """Walk to a position and, if `then` is given, one result further; compare every step."""
        live = self.walk_to(node, every_step=True)
        if then is not None:
            ended, step = live.resume(result)
            if ended != (then.step is None):
                raise self._differs(then, f"its end with {step!r}" if ended else str(step))
            if not (same(step, then.result) if ended else same_step(step, then.step)):
                raise self._differs(then, repr(step))
        live.close()

    def walk_round(self, node: Node, result: Any, back_at: Node) -> None:
        """Go round a loop and on, as it was gone on from the first time; compare every step."""
        live = self.walk_to(node)
        step: Any = live.resume(result)[1]
        at = back_at
        while same_step(step, at.step):
            if at.further is None:
                return live.close()
            at = at.further
            step = live.resume(at.result)[1]
        raise self._differs(at, str(step))

    def _differs(self, node: Node, now: str) -> ProtocolError:
        return ProtocolError(
            f"{self.program.task} is not a function of its steps' results: the same results led to "
            f"{node.step or node.result} before and to {now} now (results: {_brief(node)})"
        )

    def asleep(self, node: Node) -> Node:
        """Return the position of a task that queues for the lock of its step at `node`."""
        if node._asleep is None:
            waiting = self._new(node, "queued", None, node.step)
            waiting.queued = True
            waiting.captured = node.captured
            node._asleep = waiting
        return node._asleep

    def close(self) -> None:
        """Drop every live coroutine without running its clean-up."""
        for node in self.nodes.values():
            if node._live is not None:
                node._live.close()
                node._live = None

    def ended(self) -> list[Node]:
        """List the ends that the task has come to."""
        return list(self._ended.values())

    def end(self, result: Any) -> Node:
        """Return the position of a task that has ended with `result`."""
        return self._end(result)


def _brief(node: Node) -> str:
    results = [at.result for at in node.path()[1:]]
    text = ", ".join(map(repr, results[-6:]))
    return f"{'..., ' if len(results) > 6 else ''}{text}"


def look_at_step(step: Step[Any], task: Task) -> Hashable:
    """Return a step's exact arguments; raises ProtocolError where one can be changed later."""
    try:
        return exact(step.args)
    except NotFrozen as error:
        raise ProtocolError(f"{task}: the step {step.name} has an argument that {error}") from None


def captured_by(step: Step[Any]) -> Hashable:
    """Depict what the functions of a step see beside their arguments, None if nothing."""
    ready = getattr(step, "ready", None)
    if _captures(step.run) or (ready is not None and _captures(ready)):
        return depict((step.run, ready))
    return None


def _captures(function: Any) -> bool:
    if getattr(function, "__closure__", True):
        return True
    defaults, keywords = function.__defaults__, function.__kwdefaults__
    if not defaults and not keywords:
        return False
    try:
        exact((*(defaults or ()), *(keywords or {}).values()))
    except NotFrozen:
        return True
    return False


def look_at_captured(node: Node, task: Task) -> None:
    """Raise ProtocolError where what a step captured has changed since it was made."""
    step = node.step
    assert step is not None
    if captured_by(step) != node.captured:
        names = ", ".join(getattr(getattr(step.run, "__code__", None), "co_freevars", ()))
        raise ProtocolError(
            f"{task}: the step {step.name} captures {names or 'a value'}, which has changed since "
            "the step was made; pass values to a step as arguments"
        )


def same_step(step: Any, other: Step[Any] | None) -> bool:
    """Return whether two steps do the same: one function, equal captured values and arguments."""
    if not isinstance(step, Step) or other is None:
        return step is other
    if type(step) is not type(other) or step.name != other.name:
        return False
    if getattr(step.run, "__code__", step.run) != getattr(other.run, "__code__", other.run):
        return False
    try:
        return exact(step.args) == exact(other.args)
    except NotFrozen:
        return False


def abandon(live: Protocol | None) -> None:
    """Close a coroutine that will not be run to its end."""
    if live is not None:
        # RuntimeError: its `finally` awaits an unlock, and there is nothing left to unlock.
        with suppress(RuntimeError):
            live.close()
