"""What a protocol awaits: a step, the atom of everything that an engine schedules.

A protocol is an `async def` function that awaits steps and nothing else. Between two awaits nobody
else runs. A step carries a plain function `run(machine, task, *args)` that changes the state at one
instant and returns an immutable result; so the results which a protocol has received determine
where it stands, and an engine may hold it there, run it again from its beginning with the same
results, or let time pass.

A protocol must be a deterministic function of its arguments and of those results: it never reads
the state behind the steps' back, never asks a clock or a random generator.

Forgetting an `await` is an error: mypy reports it (`unused-awaitable`), and tests/test_protocols.py
looks for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar

if TYPE_CHECKING:
    from zaplock.model.machine import Machine

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Task:
    """Who takes a step: a thread with the address space it runs in and the CPU of its TLB.

    Identity only, no state: what a task changes is in the machine, and nothing here can be changed.
    """

    __slots__ = ("cpu", "mm", "name", "tid")

    is_constant = True

    cpu: int
    mm: int
    name: str
    tid: int

    def __init__(self, tid: int, mm: int, name: str = "", cpu: int | None = None) -> None:
        keep = object.__setattr__
        keep(self, "tid", tid)
        keep(self, "mm", mm)
        keep(self, "name", name or f"task{tid}")
        keep(self, "cpu", tid if cpu is None else cpu)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{name} = {value!r}: a task has no state; keep it in a cell")

    def __repr__(self) -> str:
        return self.name


class StepWatch:
    """The steps that were made and not awaited yet: what a forgotten `await` leaves behind.

    Looking for a watch takes as long as awaiting a step, so steps do from the first watch of a
    process on.
    """

    __slots__ = ("pending",)

    def __init__(self) -> None:
        self.pending: dict[int, Step[Any]] = {}
        if not watching.is_possible:
            watching.is_possible = True
            Step.__init__ = _init_watched  # type: ignore[method-assign, assignment]
            Step.__await__ = _await_watched  # type: ignore[method-assign, assignment]

    def made(self, step: Step[Any]) -> None:
        """Note a new step."""
        self.pending[id(step)] = step

    def awaited(self, step: Step[Any]) -> None:
        """Note that a step was awaited."""
        self.pending.pop(id(step), None)


class _Watching:
    """Who watches steps being made: the checker while it resumes a protocol, nobody else."""

    __slots__ = ("is_possible", "watch")

    def __init__(self) -> None:
        self.is_possible = False
        self.watch: StepWatch | None = None


watching = _Watching()


class Step(Generic[R_co]):
    """One atomic transition, ready whenever its task is."""

    __slots__ = ("args", "run")

    may_last = False
    """Whether a task may stand before it for ever, and all is well."""

    def __init__(self, run: Callable[..., R_co], args: tuple[Any, ...] = ()) -> None:
        self.run = run
        self.args = args

    def __await__(self) -> Generator[Step[R_co], R_co, R_co]:
        return (yield self)

    @property
    def name(self) -> str:
        name: str | None = getattr(self.run, "__name__", None)
        return str(self.run) if name is None else name

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(_show, self.args))})"


def _init_watched(made: Step[R], run: Callable[..., R], args: tuple[Any, ...] = ()) -> None:
    made.run = run
    made.args = args
    if watching.watch is not None:
        watching.watch.made(made)


def _await_watched(made: Step[R]) -> Generator[Step[R], R, R]:
    if watching.watch is not None:
        watching.watch.awaited(made)
    return (yield made)


def _show(value: object) -> str:
    return hex(value) if isinstance(value, int) and value >= 4096 else str(value)


TAKEN_ALONE: Final[dict[Callable[..., Any], Callable[..., Any]]] = {}
"""How a task that is alone takes what a function makes, by that function: (machine, task, *its
arguments) -> the step's result, as the sequential engine would come to it."""

STEP_NAMES: Final[set[str]] = set()
"""What the step functions are called that have been made so far."""


class StepKind(Generic[P, R]):
    """A step function: calling it gives a step to await, `.run` is its body.

    The body of one step may call the body of another, which makes both one atomic transition.
    """

    __slots__ = ("__dict__", "run")

    def __init__(self, run: Callable[Concatenate[Machine, Task, P], R]) -> None:
        self.run = run
        update_wrapper(self, run)
        STEP_NAMES.add(run.__name__)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Step[R]:
        assert not kwargs, "step arguments are positional"
        return Step(self.run, args)


def step(run: Callable[Concatenate[Machine, Task, P], R]) -> StepKind[P, R]:
    """Make a function `(machine, task, *args) -> result` a step that a protocol can await."""
    return StepKind(run)


class WaitStep(Step[R_co]):
    """A transition that has to wait until `ready(machine, task, *args)` is true.

    `channel` names what to watch: a step that may make it true calls `machine.wake(channel)`. The
    exhaustive engine needs no channel, it asks `ready` in every state. A killable wait ends with
    `EINTR` (as the step's result) when its task has a fatal signal. One that `may_last` is no
    deadlock if nothing ever ends it.

    `announce` is what a task that has to wait does first, so that nobody newer overtakes it for
    ever, and `withdraw` what it does if it is killed meanwhile. The timed engine runs them; the
    exhaustive one lets others overtake, but for interval locks (model.spans) under the fair rule.
    """

    __slots__ = ("announce", "channel", "killable", "may_last", "ready", "withdraw")

    def __init__(
        self,
        run: Callable[..., R_co],
        args: tuple[Any, ...],
        ready: Callable[..., bool],
        channel: tuple[Any, ...],
        killable: bool = False,
        announce: Callable[..., None] | None = None,
        withdraw: Callable[..., None] | None = None,
        may_last: bool = False,
    ) -> None:
        super().__init__(run, args)
        self.announce = announce
        self.withdraw = withdraw
        self.may_last = may_last
        self.ready = ready
        self.channel = channel
        self.killable = killable


class MarkStep(Step[None]):
    """A note to the engine that changes no state: an operation or a fault begins or ends.

    `what` is one of "op_begin" (name, address, length, detail), "op_end" (name, result),
    "fault_begin" (address, code), "fault_end" (result). Engines that don't record pass over it.
    """

    __slots__ = ("what",)

    def __init__(self, what: str, args: tuple[Any, ...]) -> None:
        super().__init__(_nothing, args)
        self.what = what


class SleepStep(Step[None]):
    """Let `ns` nanoseconds pass off the CPU. Only the timed engine takes it at its word."""

    __slots__ = ("ns",)

    def __init__(self, ns: int) -> None:
        super().__init__(_nothing, ())
        self.ns = ns

    @property
    def name(self) -> str:
        return "sleep"


def _nothing(_machine: Machine, _task: Task, *_args: Any) -> None:
    return None
