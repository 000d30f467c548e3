"""Where a coroutine stands: a node in the trie of the results that it has received.

A protocol is a deterministic function of its results, so its history IS its position. Nothing else
is sound: two frames at the same line with equal locals may still differ in a hidden iterator. All
explored paths share one trie per task. It is determinised lazily: a live coroutine waits at the end
of the path walked last; where another child of an inner node is needed, a fresh coroutine is run
there from its beginning with the recorded results, which costs no state.

Tasks that have ended collapse to their result, since no history can matter any more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from zaplock.engines.checking.configuration import Protocol, TaskProgram
from zaplock.model.step import MarkStep, SleepStep, Step


class ProtocolError(Exception):
    """A protocol did what no protocol may: it isn't a function of the results it received."""


class Node:
    """One position of one task.

    `step` is what it is about to do, None when it has ended with `result`. `queued` tells that it
    waits in the queue of that step's lock.
    """

    __slots__ = ("_asleep", "_live", "children", "id", "parent", "queued", "result", "step")

    def __init__(self, number: int, parent: Node | None, result: Any, step: Step[Any] | None):
        self.id = number
        self.parent = parent
        self.result = result
        self.step = step
        self.queued = False
        self.children: dict[Any, Node] = {}
        self._live: Protocol | None = None
        self._asleep: Node | None = None

    def history(self) -> list[Any]:
        """List the results received on the way here, in order."""
        results = []
        node = self
        while node.parent is not None:
            results.append(node.result)
            node = node.parent
        return results[::-1]


class Trie:
    """All positions of one task that have been met so far."""

    def __init__(self, program: TaskProgram) -> None:
        self.program = program
        self.nodes: dict[int, Node] = {}
        self._ended: dict[Any, Node] = {}
        live = program.start()
        ended, step = resume(live, None)
        self.root = self._end(step) if ended else self._new(None, "step", None, step)
        if not ended:
            self.root._live = live

    def number(self, _parent: Node | None, _kind: str, _result: Any) -> int:
        """Number a position that was not met before ("step", "queued" or "end")."""
        return len(self.nodes)

    def _new(self, parent: Node | None, kind: str, result: Any, step: Step[Any] | None) -> Node:
        node = Node(self.number(parent, kind, result), parent, result, step)
        self.nodes[node.id] = node
        return node

    def _end(self, result: Any) -> Node:
        key = type(result), result
        if key not in self._ended:
            self._ended[key] = self._new(None, "end", result, None)
        return self._ended[key]

    def child(self, node: Node, result: Any) -> Node:
        """Return where the task stands after its step at `node` has returned `result`."""
        if node.queued:
            assert node.parent is not None
            return self.child(node.parent, result)
        # True equals 1, but a protocol may tell them apart.
        key = type(result), result
        found = node.children.get(key)
        if found is None:
            found = node.children[key] = self._grow(node, result)
        return found

    def _grow(self, node: Node, result: Any) -> Node:
        live, node._live = node._live or self._walk_to(node), None
        ended, step = resume(live, result)
        if ended:
            return self._end(step)
        child = self._new(node, "step", result, step)
        child._live = live
        return child

    def _walk_to(self, node: Node) -> Protocol:
        live = self.program.start()
        step = resume(live, None)[1]
        for result in node.history():
            step = resume(live, result)[1]
        if not _same(step, node.step):
            raise ProtocolError(
                f"{self.program.task} is not a function of its steps' results: the same results "
                f"led to {node.step} before and to {step} now"
            )
        return live

    def asleep(self, node: Node) -> Node:
        """Return the position of a task that queues for the lock of its step at `node`."""
        if node._asleep is None:
            waiting = self._new(node, "queued", None, node.step)
            waiting.queued = True
            node._asleep = waiting
        return node._asleep

    def close(self) -> None:
        """Drop every live coroutine without running its clean-up."""
        for node in self.nodes.values():
            abandon(node._live)
            node._live = None

    def end(self, result: Any) -> Node:
        """Return the position of a task that has ended with `result`."""
        return self._end(result)


def _same(step: Step[Any] | None, other: Step[Any] | None) -> bool:
    if step is None or other is None:
        return step is other
    return step.name == other.name and step.args == other.args


def resume(live: Protocol, result: Any) -> tuple[bool, Any]:
    """Go on to the next step that changes state: (False, step), or (True, result) at the end.

    Marks and sleeps are passed over: they change nothing that another task could see.
    """
    try:
        step = live.send(result)
        while isinstance(step, (MarkStep, SleepStep)):
            step = live.send(None)
    except StopIteration as end:
        return True, end.value
    return False, step


def abandon(live: Protocol | None) -> None:
    """Close a coroutine that will not be run to its end."""
    if live is not None:
        # RuntimeError: its `finally` awaits an unlock, and there is nothing left to unlock.
        with suppress(RuntimeError):
            live.close()
