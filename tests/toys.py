"""Small programs on a machine with a few counters: ground for tests of the checking engines."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from zaplock.engines.checking.configuration import Configuration, Rules, TaskProgram
from zaplock.model import rwsem
from zaplock.model.machine import Machine
from zaplock.model.spans import SpanDowngrade, SpanTry, lock_range, unlock_range
from zaplock.model.step import Task, WaitStep, step
from zaplock.model.store import Cells, OrderedCells
from zaplock.model.violations import Invariant, Violation

LOCKS = (("a", 0), ("b", 0))


class Toy(Machine):
    """Counters by name, and an ordered set of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.counters: Cells[str, int] = Cells(self.store, "counters")
        self.numbers: OrderedCells[str] = OrderedCells(self.store, "numbers")
        for name in "xyz":
            self.counters.put(name, 0)


@step
def load(m: Toy, _task: Task, name: str) -> int:
    return m.counters[name]


@step
def store(m: Toy, _task: Task, name: str, value: int) -> None:
    m.counters.put(name, value)


@step
def add(m: Toy, _task: Task, name: str, value: int) -> int:
    m.counters.put(name, m.counters[name] + value)
    return m.counters[name]


@step
def insert(m: Toy, task: Task, key: int) -> int:
    m.numbers.put(key, task.name)
    return len(m.numbers)


@step
def remove_first(m: Toy, _task: Task) -> int:
    first = m.numbers.at_or_after(0)
    if first is None:
        return -1
    m.numbers.drop(first)
    return first


@step
def must_equal(m: Toy, task: Task, name: str, value: int) -> None:
    if m.counters[name] != value:
        raise Violation(Invariant.BOOKS_BALANCE, f"{task} wants {name}={value}")


@step
def kill(m: Toy, _task: Task, tid: int) -> None:
    m.signals.put(tid, "SIGKILL")


def wait_for(name: str, value: int, killable: bool = False) -> WaitStep[int]:
    return WaitStep(
        load.run, (name,), lambda m, _t, _n: m.counters[name] >= value, ("x",), killable
    )


def tasks(*starts: Callable[[], Any]) -> tuple[TaskProgram, ...]:
    return tuple(TaskProgram(Task(i + 1, 1), start) for i, start in enumerate(starts))


def total_below(limit: int) -> Callable[[Any], None]:
    def promise(m: Toy) -> None:
        if m.counters["x"] + m.counters["y"] >= limit:
            raise Violation(Invariant.PRIVATE_UNDER_READ, f"x + y reached {limit}")

    return promise


def _random_body(rng: random.Random, length: int) -> Callable[[], Any]:
    """Make a protocol of random steps with well-nested, sometimes badly ordered locks."""
    plan: list[tuple[str, Any]] = []
    held: dict[tuple[str, int], bool] = {}
    for _ in range(length):
        kind = rng.choice(["load", "add", "store", "insert", "remove", "lock", "lock", "unlock",
                           "down", "branch", "wait", "kill"])  # fmt: skip
        if kind == "lock":
            lock = rng.choice(LOCKS)
            write = rng.random() < 0.5
            if lock not in held:
                held[lock] = write
                plan.append(("lock", (lock, write, rng.random() < 0.3)))
        elif kind == "unlock" and held:
            lock = rng.choice(sorted(held))
            plan.append(("unlock", (lock, held.pop(lock))))
        elif kind == "down" and any(held.values()):
            lock = rng.choice(sorted(k for k, w in held.items() if w))
            held[lock] = False
            plan.append(("downgrade", lock))
        elif kind in ("wait", "kill") and rng.random() < 0.8:
            continue
        else:
            name, number = rng.choice("xyz"), rng.randrange(3)
            is_unlock = kind == "unlock"  # of what is not held
            plan.append((kind, ((name, 0), bool(number)) if is_unlock else (name, number)))
    plan += [("unlock", (lock, write)) for lock, write in held.items()]

    async def body() -> int:
        seen = 0
        dead: set[Any] = set()
        for kind, args in plan:
            if kind == "lock":
                lock, write, killable = args
                if await rwsem.LockStep("down", lock, write, killable) != 0:
                    dead.add(lock)
            elif kind == "unlock":
                if args[0] not in dead:
                    await rwsem.LockStep("up", *args)
            elif kind == "downgrade":
                if args not in dead:
                    await rwsem.downgrade_write(args)
            elif kind == "load":
                seen = await load(args[0])
            elif kind == "branch":
                if seen % 2:
                    await add(args[0], args[1])
            elif kind == "add":
                await add(args[0], args[1])
            elif kind == "store":
                await store(args[0], seen + args[1])
            elif kind == "insert":
                await insert(args[1] * 8 + seen % 3)
            elif kind == "remove":
                seen = await remove_first()
            elif kind == "wait":
                await wait_for(args[0], args[1], killable=True)
            elif kind == "kill":
                await kill(1 + args[1])
        return seen

    return body


async def _book_keeping(kind: str, name: str, amount: int) -> int:
    if kind == "load":
        return await load(name)
    if kind == "add":
        return await add(name, amount)
    if kind == "insert":
        return await insert(amount)
    await kill(1 + amount)
    return 0


def _random_holder(rng: random.Random) -> Callable[[], Any]:
    """Make a protocol that holds random ranges of two locks, and counts meanwhile."""
    plan: list[tuple[Any, ...]] = []
    held: list[tuple[Any, ...]] = []
    for number in range(rng.randrange(4, 8)):
        kind = rng.choice(["load", "add", "insert", "kill", "lock", "lock", "try", "unlock"])
        start = rng.randrange(4)
        span = (rng.choice(LOCKS), start, start + rng.randrange(1, 4), rng.random() < 0.6)
        if kind == "lock":
            held.append((kind, number, (*span, rng.random() < 0.3, rng.random() < 0.3)))
            plan.append(held[-1])
        elif kind == "try":
            held.append((kind, number, (span[0], span[3], rng.random() < 0.5)))
            plan.append(held[-1])
        elif kind == "unlock":
            if held:
                plan.append((kind, number, held.pop(rng.randrange(len(held)))))
        else:
            plan.append((kind, number, (rng.choice("xy"), rng.randrange(1, 3))))
    plan += [("unlock", 0, one) for one in held]

    async def body() -> int:
        seen = 0
        has: set[int] = set()
        for kind, number, args in plan:
            if kind == "lock":
                if not await lock_range(*args):
                    has.add(number)
            elif kind == "try":
                lock, write, downgrades = args
                if await SpanTry(lock, write):
                    has.add(number)
                    if write and downgrades:
                        await SpanDowngrade(lock)
            elif kind == "unlock":
                how, taken_by, (lock, *span) = args
                if taken_by not in has:
                    continue
                if how == "lock":
                    start, end, write, _, piecewise = span
                    await unlock_range(lock, start, end, write, piecewise)
                else:
                    write, downgrades = span
                    await unlock_range(lock, write=write and not downgrades)
            else:
                seen = await _book_keeping(kind, *args)
        return seen

    return body


def random_ranges(seed: int, fair: bool) -> Configuration:
    """Make two or three random tasks that hold ranges, and some promises."""
    rng = random.Random(seed)
    bodies = [_random_holder(rng) for _ in range(rng.choice([2, 2, 3]))]
    limit = rng.randrange(3, 9)

    def nothing_is_held(m: Toy, _results: tuple[Any, ...]) -> None:
        if len(m.spans):
            raise Violation(Invariant.LOCK_MODE, "a range is held")

    return Configuration(
        Toy, tasks(*bodies), Rules(fair), always=(total_below(limit),), at_end=(nothing_is_held,)
    )


def random_configuration(seed: int, fair: bool) -> Configuration:
    """Make two or three random tasks, some promises and an end check."""
    rng = random.Random(seed)
    count = rng.choice([2, 2, 3])
    bodies = [_random_body(rng, rng.randrange(3, 9 if count == 2 else 6)) for _ in range(count)]
    limit = rng.randrange(3, 9)

    def at_end(m: Toy, results: tuple[Any, ...]) -> None:
        if sum(results) > limit:
            raise Violation(Invariant.BOOKS_BALANCE, f"results {results}")

    def two_numbers(m: Toy) -> bool:
        return len(m.numbers) > 1

    policy = rng.choice([rwsem.RWSEM_4_9, rwsem.RWSEM_5_3, rwsem.RWSEM_5_11])
    return Configuration(
        Toy,
        tasks(*bodies),
        Rules(fair, policy),
        always=(total_below(limit),),
        at_end=(at_end,),
        sometimes={"two numbers": two_numbers},
    )
