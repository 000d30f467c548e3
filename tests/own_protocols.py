"""Random protocols of one's own, as their text, and an explorer that knows nothing of zaplock's.

A drawn case is a little program for each task (`zaplock.author`'s steps on own cells and locks, own
steps, branches, calls, loops) with invariants of its own. `source` writes it as a user would;
`Naive` reads the same program by itself and visits every state there is, with no reduction, no
memo and no footprint. So what both say of it has to be equal.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Place = tuple[int, int]
"""A cell: the number of its container, and its key."""
State = tuple[Any, Any, Any, Any]
"""Cells, locks, who was started, where the tasks stand."""
NAMES = "ABC"
UNBORN = ("unborn",)


class Case:
    """A drawn case; `bodies` has for each task its statements and what it returns."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.cells = rng.choice([1, 2, 2, 3])
        self.locks = rng.choice([0, 1, 2])
        self.keys = (1, 2) if rng.random() < 0.3 else (1,)
        self.loops = rng.random() < 0.35
        self.tasks = rng.choice([1, 2, 2, 2, 3])
        self.numbers = itertools.count()
        self.bodies = [self._body() for _ in range(self.tasks)]
        later = range(1, self.tasks)
        self.killed = [rng.random() < 0.1 for _ in range(self.tasks)]
        self.daemons = {task for task in later if rng.random() < 0.12}
        self.begun_later = {task for task in later if rng.random() < 0.1}
        for task in sorted(self.begun_later):
            if rng.random() < 0.9:
                first = self.bodies[0][0]
                first.insert(rng.randrange(len(first) + 1), ("start", task))
        self.always = (self._place(), self._place(), rng.randrange(1, 6), rng.random() < 0.4)
        self.at_end = (rng.randrange(self.tasks), self._place(), rng.randrange(4),
                       rng.random() < 0.5)  # fmt: skip
        self.at_task_end = (rng.randrange(self.tasks), self._place(), rng.randrange(4),
                            rng.random() < 0.3)  # fmt: skip
        self.sometimes = (self._place(), rng.randrange(5), rng.random() < 0.3)

    def _body(self) -> tuple[list[Any], Any]:
        self.held: dict[int, str] = {}
        self.outer: tuple[int, ...] = ()
        self.variables: list[str] = []
        body = self._block({1: 7, 2: 5, 3: 3}[self.tasks])
        rng = self.rng
        body += [("up", lock, mode) for lock, mode in self.held.items() if rng.random() < 0.93]
        named = self.variables and rng.random() < 0.6
        return body, rng.choice(self.variables) if named else rng.randrange(3)

    def _place(self) -> Place:
        return self.rng.randrange(self.cells), self.rng.choice(self.keys)

    def _variable(self) -> str:
        self.variables.append(f"v{next(self.numbers)}")
        return self.variables[-1]

    def _value(self) -> tuple[str, Any]:
        if self.variables and self.rng.random() < 0.5:
            return self.rng.choice(["is", "plus"]), self.rng.choice(self.variables)
        return "number", self.rng.randrange(3)

    def _block(self, most: int, depth: int = 0) -> list[Any]:
        return [self._statement(depth) for _ in range(self.rng.randrange(1, most + 1))]

    def _inner(self, depth: int) -> list[Any]:
        before = list(self.variables), self.outer, dict(self.held)
        self.outer = tuple(self.held)
        body = self._block(3, depth + 1)
        body += [("up", lock, mode) for lock, mode in self.held.items() if lock not in before[2]]
        self.variables, self.outer, self.held = before
        return body

    def _statement(self, depth: int) -> tuple[Any, ...]:
        rng = self.rng
        kinds = ["read"] * 3 + ["write"] * 2 + ["add"] * 2 + ["own"] * 2 + ["if"] * 2
        kinds += ["must", "wait", "call"]
        kinds += ["down"] * 3 + ["downgrade", "try", "up"] if self.locks else []
        kinds += ["spin", "spin for lock"] if self.loops else []
        kind = rng.choice(kinds)
        if (depth >= 2 and kind in ("if", "call", "try")) or (kind == "if" and not self.variables):
            kind = "write"
        if kind == "write":
            return kind, self._place(), self._value()
        if kind == "read":
            return kind, self._place(), self._variable()
        if kind == "add":
            return kind, self._place(), rng.choice([1, 1, 2, -1]), self._variable()
        if kind == "own":
            value = self._value()
            return (kind, self._place(), self._place(), self._place(), rng.randrange(3), value,
                    self._variable())  # fmt: skip
        if kind in ("must", "wait", "spin"):
            return kind, self._place(), rng.randrange(4)
        if kind == "if":
            condition = rng.choice(self.variables), rng.randrange(3)
            return kind, condition, self._inner(depth), self._inner(depth)
        if kind == "call":
            return kind, self._inner(depth), next(self.numbers)
        return self._locking(kind, depth)

    def _locking(self, kind: str, depth: int) -> tuple[Any, ...]:
        rng = self.rng
        free = [lock for lock in range(self.locks) if lock not in self.held]
        ours = [lock for lock in self.held if lock not in self.outer]
        exclusive = [lock for lock in ours if self.held[lock] == "write"]
        if kind == "try" and free:
            lock = rng.choice(free)
            self.held[lock] = "write"
            inner = self._inner(depth)
            del self.held[lock]
            return kind, lock, inner
        if kind in ("down", "spin for lock") and free:
            lock = rng.choice(free)
            mode = self.held[lock] = rng.choice(["read", "write"]) if kind == "down" else "write"
            return (kind, lock, mode, rng.random() < 0.3)
        if kind == "downgrade" and exclusive:
            lock = rng.choice(exclusive)
            self.held[lock] = "read"
            return kind, lock
        if kind == "up" and ours:
            lock = rng.choice(ours)
            return kind, lock, self.held.pop(lock)
        return "write", self._place(), self._value()


# The text


def source(case: Case) -> str:
    """Write the case as a user's file; its scenario is called S."""
    steps: list[str] = []
    tasks = []
    for number, (body, result) in enumerate(case.bodies):
        lines = list(_lines(body, "    ", steps))
        tasks.append("\n".join([f"async def t{number}(cx):", *lines, f"    return {result}", ""]))
    specs = "".join(
        f"TaskSpec(('op{number}',), name='T{number}', killed={case.killed[number]}, "
        f"daemon={number in case.daemons}, "
        f"begins={'when started' if number in case.begun_later else ''!r}), "
        for number in range(case.tasks)
    )
    operations = "".join(
        f"OwnOperation(name='op{number}', run=t{number}, arguments=(), summary='x'), "
        for number in range(case.tasks)
    )
    return "\n".join([
        "from zaplock.author import *",
        *(f"C{name} = OwnCells('cells_{name.lower()}', 0)" for name in NAMES),
        "L = LockClass('drawn_lock')",
        "MUST = OwnInvariant(name='MUST', says='x')",
        *steps, *tasks,
        f"S = Scenario(summary='x', task=({specs}), operations=({operations}), "
        f"invariants=({''.join(_invariants(case))}))", "",
    ])  # fmt: skip


def _get(place: Place) -> str:
    return f"C{NAMES[place[0]]}.get(m, {place[1]})"


def _invariants(case: Case) -> Iterator[str]:
    one, other, most, drawn = case.always
    if drawn:
        yield ("OwnInvariant(name='ALWAYS', says='x', always=lambda m: "
               f"'bad' if {_get(one)} + {_get(other)} > {most} else None), ")  # fmt: skip
    task, place, value, drawn = case.at_end
    if drawn:
        bad = f"results[{task}] == ({value},) or {_get(place)} == {value}"
        yield ("OwnInvariant(name='AT_END', says='x', at_end=lambda m, results: "
               f"'bad' if {bad} else None), ")  # fmt: skip
    task, place, value, drawn = case.at_task_end
    if drawn:
        bad = f"task.tid == {task + 1} and {_get(place)} == {value}"
        yield ("OwnInvariant(name='AT_TASK_END', says='x', at_task_end=lambda m, task, results: "
               f"'bad' if {bad} else None), ")  # fmt: skip
    place, value, drawn = case.sometimes
    if drawn:
        yield ("OwnInvariant(name='SOMETIMES', says='x', "
               f"sometimes=lambda m: {_get(place)} == {value}), ")  # fmt: skip


def _value(value: tuple[str, Any]) -> str:
    return f"min(9, {value[1]} + 1)" if value[0] == "plus" else str(value[1])


def _lines(body: list[Any], indent: str, steps: list[str]) -> Iterator[str]:
    for kind, *what in body:
        on_cell = kind in ("read", "write", "add", "wait", "spin")
        at, key = (f"C{NAMES[what[0][0]]}", what[0][1]) if on_cell else ("", 0)
        if kind == "read":
            yield f"{indent}{what[1]} = await {at}.read({key})"
        elif kind == "write":
            yield f"{indent}await {at}.write({key}, {_value(what[1])})"
        elif kind == "add":
            yield f"{indent}{what[2]} = await {at}.add({key}, {what[1]})"
        elif kind == "wait":
            yield f"{indent}await {at}.wait_for({key}, {what[1]})"
        elif kind == "spin":
            yield f"{indent}while await {at}.read({key}) != {what[1]}:\n{indent}    pass"
        elif kind == "start":
            yield f"{indent}await start_task('T{what[0]}')"
        elif kind in ("own", "must"):
            yield _step(kind, what, indent, steps)
        elif kind == "if":
            yield f"{indent}if {what[0][0]} == {what[0][1]}:"
            yield from _lines(what[1], indent + "    ", steps)
            yield f"{indent}else:"
            yield from _lines(what[2], indent + "    ", steps)
        elif kind == "call":
            yield f"{indent}async def inner{what[1]}():"
            yield from _lines(what[0], indent + "    ", steps)
            yield f"{indent}await inner{what[1]}()"
        else:
            yield from _lock_lines(kind, what, indent, steps)


def _step(kind: str, what: list[Any], indent: str, steps: list[str]) -> str:
    name = f"step{len(steps)}"
    if kind == "must":
        steps.append(f"@step\ndef {name}(m, task):\n    if {_get(what[0])} == {what[1]}:\n"
                     "        raise MUST.broken('bad')\n")  # fmt: skip
        return f"{indent}await {name}()"
    steps.append(
        f"@step\ndef {name}(m, task, value):\n    if {_get(what[0])} == {what[3]}:\n"
        f"        return {what[3]}\n    found = {_get(what[1])}\n"
        f"    C{NAMES[what[2][0]]}.put(m, {what[2][1]}, min(9, found + value))\n    return found\n"
    )
    return f"{indent}{what[5]} = await {name}({_value(what[4])})"


def _lock_lines(kind: str, what: list[Any], indent: str, steps: list[str]) -> Iterator[str]:
    lock = f"L({what[0]})"
    if kind == "down" and what[2]:
        yield f"{indent}if await down_{what[1]}_killable({lock}):\n{indent}    return -4"
    elif kind == "down":
        yield f"{indent}await down_{what[1]}({lock})"
    elif kind == "up":
        yield f"{indent}await up_{what[1]}({lock})"
    elif kind == "downgrade":
        yield f"{indent}await downgrade_write({lock})"
    elif kind == "spin for lock":
        yield f"{indent}while not await down_write_trylock({lock}):\n{indent}    pass"
    else:
        yield f"{indent}if await down_write_trylock({lock}):"
        yield from _lines(what[1], indent + "    ", steps)
        yield f"{indent}    await up_write({lock})"


# What it means


@dataclass
class Truth:
    """What is true of a case: the rules broken somewhere, ends, results, and whether it spins."""

    broken: set[str] = field(default_factory=set)
    ends: set[State] = field(default_factory=set)
    results: list[set[int]] = field(default_factory=list)
    is_seen: bool = False
    never_ends: bool = False


class TooLarge(Exception):
    """A case of more states than are worth the time."""


class Naive:
    """Every state of a case, one step at a time."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.codes = [[*_code(body), ("return", result)] for body, result in case.bodies]

    def initial(self) -> State:
        later = self.case.begun_later
        at = [UNBORN if task in later else self._on(task, 0, {}) for task in range(self.case.tasks)]
        return (), (), frozenset(), tuple(at)

    def _on(self, task: int, at: int, known: dict[str, int]) -> tuple[Any, ...]:
        """Go on to the next step that others could see, or to the end."""
        code = self.codes[task]
        while code[at][0] in ("unless", "go", "return"):
            kind, what, *more = code[at]
            if kind == "return":
                return "ended", known[what] if isinstance(what, str) else what
            skips = kind == "go" or known[what[0]] != what[1]
            at += (what if kind == "go" else more[0]) if skips else 1
        return at, tuple(sorted(known.items()))

    def step(self, state: State, task: int) -> set[str] | State | None:
        """Return the state after a task's next step, the rules that it breaks, None if it waits."""
        cells, locks, started, at = state
        if at[task][0] == "ended" or (at[task] is UNBORN and task not in started):
            return None
        if at[task] is UNBORN:
            return self._after(state, task, self._on(task, 0, {}))
        here, known = at[task][0], dict(at[task][1])
        kind, *what = self.codes[task][here]
        if kind == "start":
            started = started | {what[0]}
            return self._after((cells, locks, started, at), task, self._on(task, here + 1, known))
        if isinstance(what[0], tuple):
            held = dict(cells)
            goes = self._on_cells(kind, what, held, known)
            state = tuple(sorted(held.items())), locks, started, at
        else:
            taken = dict(locks)
            goes = self._on_locks(kind, what, taken, task)
            state = cells, tuple(sorted(taken.items())), started, at
        if goes == "broken":
            return {"MUST"}
        if goes == "killed":
            return self._after(state, task, self._killed(task, here, known))
        if goes is None:
            return None
        return self._after(state, task, self._on(task, here + goes, known))

    def _killed(self, task: int, here: int, known: dict[str, int]) -> tuple[Any, ...]:
        beyond = self.codes[task][here][4]  # the end of the protocol that was called
        return ("ended", -4) if beyond is None else self._on(task, here + beyond, known)

    def _on_cells(
        self, kind: str, what: list[Any], cells: dict[Place, int], known: dict[str, int]
    ) -> Any:
        now = cells.get(what[0], 0)
        if kind == "read":
            known[what[1]] = now
        elif kind == "write":
            cells[what[0]] = _worth(what[1], known)
        elif kind == "add":
            known[what[2]] = cells[what[0]] = now + what[1]
        elif kind == "wait":
            return 1 if now == what[1] else None
        elif kind == "spin":
            return int(now == what[1])
        elif kind == "must":
            return "broken" if now == what[1] else 1
        elif now == what[3]:
            known[what[5]] = now
        else:
            found = cells.get(what[1], 0)
            cells[what[2]] = min(9, found + _worth(what[4], known))
            known[what[5]] = found
        return 1

    def _on_locks(
        self, kind: str, what: list[Any], locks: dict[int, Any], task: int
    ) -> int | str | None:
        writer, readers = locks.get(what[0], (-1, ()))
        is_free = writer < 0 and not readers
        if kind in ("spin for lock", "try"):
            if is_free:
                locks[what[0]] = task, ()
            return 1 if is_free else 0 if kind == "spin for lock" else what[1]
        if kind == "downgrade":
            locks[what[0]] = -1, (task,)
        elif kind == "up":
            left = tuple(one for one in readers if one != task)
            locks[what[0]] = (-1, readers) if what[1] == "write" else (writer, left)
        elif is_free or (what[1] == "read" and writer < 0):
            locks[what[0]] = (
                (task, ()) if what[1] == "write" else (-1, tuple(sorted((*readers, task))))
            )
        else:
            return "killed" if what[2] and self.case.killed[task] else None
        return 1

    def _after(self, state: State, task: int, then: tuple[Any, ...]) -> set[str] | State:
        cells, locks, started, at = state
        held = dict(cells)
        broken = self._always(held)
        if then[0] == "ended":
            if any(task == writer or task in readers for _, (writer, readers) in locks):
                return {"LOCK_MODE"}
            whose, place, value, drawn = self.case.at_task_end
            if drawn and task == whose and held.get(place, 0) == value:
                return {"AT_TASK_END"}
        return broken or (cells, locks, started, (*at[:task], then, *at[task + 1 :]))

    def _always(self, cells: dict[Place, int]) -> set[str]:
        one, other, most, drawn = self.case.always
        is_broken = drawn and cells.get(one, 0) + cells.get(other, 0) > most
        return {"ALWAYS"} if is_broken else set()

    def explore(self, most: int = 20_000) -> Truth:
        """Visit everything; raises TooLarge."""
        truth = Truth(results=[set() for _ in range(self.case.tasks)])
        start = self.initial()
        todo, graph = deque([start]), dict[State, dict[int, Any]]()
        seen = {start}
        while todo:
            state = todo.popleft()
            moves = {task: self.step(state, task) for task in range(self.case.tasks)}
            graph[state] = moves = {task: one for task, one in moves.items() if one is not None}
            for after in moves.values():
                if isinstance(after, set):
                    truth.broken |= after
                elif after not in seen:
                    seen.add(after)
                    todo.append(after)
            if len(seen) > most:
                raise TooLarge
            self._look(truth, state, bool(moves))
        truth.never_ends = any(self._spins(part, graph) for part in _parts(graph))
        return truth

    def _look(self, truth: Truth, state: State, goes_on: bool) -> None:
        cells, at = dict(state[0]), state[3]
        place, value, _ = self.case.sometimes
        truth.is_seen |= cells.get(place, 0) == value
        for task, where in enumerate(at):
            if where[0] == "ended":
                truth.results[task].add(where[1])
        if goes_on:
            return
        if not all(self._may_rest(task, where) for task, where in enumerate(at)):
            truth.broken.add("NO_DEADLOCK")
            return
        truth.ends.add(state)
        whose, place, value, drawn = self.case.at_end
        if drawn and (at[whose] == ("ended", value) or cells.get(place, 0) == value):
            truth.broken.add("AT_END")

    def _may_rest(self, task: int, where: tuple[Any, ...]) -> bool:
        return where[0] == "ended" or where is UNBORN or task in self.case.daemons

    def _spins(self, part: set[State], graph: dict[State, dict[int, Any]]) -> bool:
        """Return whether a run may stay here for ever, everybody going on who always could."""
        inside = {
            task for one in part for task, after in graph[one].items()
            if not isinstance(after, set) and after in part
        }  # fmt: skip
        waits = {task for one in part for task in range(self.case.tasks) if task not in graph[one]}
        some = next(iter(part))[3]
        meant = any(not self._may_rest(task, where) for task, where in enumerate(some))
        return bool(inside) and meant and len(inside | waits) == self.case.tasks


def _worth(value: tuple[str, Any], known: dict[str, int]) -> int:
    kind, what = value
    return (
        int(what) if kind == "number" else known[what] if kind == "is" else min(9, known[what] + 1)
    )


def _code(body: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Flatten statements; jumps and the ends of called protocols are distances."""
    made: list[tuple[Any, ...]] = []
    for kind, *what in body:
        if kind == "if":
            one, other = list(_code(what[1])), list(_code(what[2]))
            made += [("unless", what[0], len(one) + 2), *one, ("go", len(other) + 1), *other]
        elif kind == "try":
            inner = list(_code(what[1]))
            made += [("try", what[0], len(inner) + 2), *inner, ("up", what[0], "write")]
        elif kind == "call":
            inner = list(_code(what[0]))
            made += [
                (*one[:4], len(inner) - at) if one[0] == "down" and one[4] is None else one
                for at, one in enumerate(inner)
            ]
        else:
            made.append((kind, *what, None) if kind == "down" else (kind, *what))
    yield from made


def _parts(graph: dict[State, dict[int, Any]]) -> Iterator[set[State]]:
    """List the strongly connected parts (Kosaraju: who reaches whom, there and back)."""
    after = {
        state: [one for one in moves.values() if not isinstance(one, set)]
        for state, moves in graph.items()
    }
    before: dict[State, list[State]] = {state: [] for state in graph}
    for state, ones in after.items():
        for one in ones:
            before[one].append(state)
    order = list(itertools.chain.from_iterable(_finished(graph, after)))
    left = set(graph)
    for root in reversed(order):
        if root in left:
            part, todo = {root}, [root]
            left.discard(root)
            while todo:
                for one in before[todo.pop()]:
                    if one in left:
                        left.discard(one)
                        part.add(one)
                        todo.append(one)
            yield part


def _finished(
    graph: dict[State, dict[int, Any]], after: dict[State, list[State]]
) -> Iterator[list[State]]:
    seen: set[State] = set()
    for root in graph:
        if root in seen:
            continue
        seen.add(root)
        order, path = [], [(root, iter(after[root]))]
        while path:
            for one in path[-1][1]:
                if one not in seen:
                    seen.add(one)
                    path.append((one, iter(after[one])))
                    break
            else:
                order.append(path.pop()[0])
        yield order
