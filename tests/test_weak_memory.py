"""Words in weak memory: litmus tests, a witness of x86-TSO, locks, and a read with no ACQUIRE."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest

from zaplock.check.verdicts import check, find_design, find_scenario
from zaplock.cli import main
from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.memory import with_memory
from zaplock.engines.checking.reference import explore_plainly
from zaplock.model import relaxed
from zaplock.model.machine import Machine
from zaplock.model.rwsem import down_read, down_read_relaxed, down_write, up_read, up_write
from zaplock.model.step import Task, step
from zaplock.model.violations import Invariant, Violation
from zaplock.model.words import (
    MEMORY_MODELS,
    READ_ONCE,
    WRITE_ONCE,
    MemoryModel,
    smp_load_acquire,
    smp_mb,
    smp_store_release,
    value_of,
    xchg,
)

# Is the outcome allowed under sc, tso, relaxed? x86-TSO as in Owens, Sarkar, Sewell 2009 (SB is
# allowed; MP, LB, IRIW, 2+2W are not); relaxed as model/relaxed.py says what it leaves out.
LITMUS = {
    "sb": (False, True, True),
    "sb-mb": (False, False, False),
    "mp": (False, False, True),
    "mp-release-acquire": (False, False, False),
    "lb": (False, False, False),
    "iriw": (False, False, True),
    "2+2w": (False, False, False),
}


@pytest.mark.parametrize("test", LITMUS)
def test_litmus_tests_have_the_verdicts_of_the_literature(test: str) -> None:
    scenario = find_scenario(f"litmus/{test}")
    for memory, allowed in zip(MEMORY_MODELS, LITMUS[test], strict=True):
        found = check(_in(scenario, memory), LINUX_6_18)
        assert found.verdict == ("broken" if allowed else "proved"), memory
        if allowed:
            assert found.invariants == ("FORBIDDEN_OUTCOME",)


def _in(scenario, memory):
    return scenario.__class__(**{**_fields(scenario), "memory": memory})


def _fields(scenario):
    return {name: getattr(scenario, name) for name in scenario.__struct_fields__}


Program = tuple[tuple[str, ...], ...]
WORDS = {"x": 0, "y": 0}


def _random_program(seed: int, tasks: int, steps: int) -> Program:
    draw = random.Random(seed)
    kinds = ["r x", "r y", "w x", "w y", "r x", "r y", "w x", "w y", "mb", "xchg x"]
    return tuple(tuple(draw.choice(kinds) for _ in range(steps)) for _ in range(tasks))


async def _run(number: int, does: tuple[str, ...]) -> tuple[int, ...]:
    got = []
    for at, what in enumerate(does):
        kind, _, word = what.partition(" ")
        value = 10 * number + at + 1
        if kind == "r":
            got.append(await READ_ONCE(word))
        elif kind == "w":
            await WRITE_ONCE(word, value)
        elif kind == "xchg":
            got.append(await xchg(word, value))
        else:
            await smp_mb()
    return tuple(got)


def _outcomes(program: Program, memory: MemoryModel) -> set[tuple[object, ...]]:
    """All ends of a program: what each task read, and what the words hold."""
    tasks = [Task(number, 1) for number in range(1, len(program) + 1)]

    def of(number: int) -> TaskProgram:
        return TaskProgram(tasks[number], lambda: _run(number, program[number]))

    possible = {"x": [0], "y": [0]}
    for number, does in enumerate(program):
        for at, what in enumerate(does):
            if what[0] in "wx":
                possible[what[-1]].append(10 * number + at + 1)
    words = [
        [what[-1] for what in does if what[0] in "rx"] for does in program
    ] + [["x"], ["y"]]  # fmt: skip
    ends = {
        str(end): _ends_so(end)
        for end in itertools.product(
            *(tuple(itertools.product(*(possible[word] for word in read))) for read in words)
        )
    }
    programs = tuple(of(number) for number in range(len(program)))
    system = Configuration(Machine, programs, sometimes_at_end=ends)
    never = explore(with_memory(system, memory, WORDS)).never
    return set(ends) - set(never)


def _ends_so(end):
    *read, x, y = end

    def is_so(m: Machine, results) -> bool:
        got = [result for result in results if result is not None]
        return (*got, (value_of(m, "x"),), (value_of(m, "y"),)) == (*read, x, y)

    return is_so


def _tso_by_hand(program: Program) -> set[str]:
    """x86-TSO once more, with nothing of zaplock: every order of steps and of drains."""
    ends, seen = set(), set()
    todo = [((0,) * len(program), (("x", 0), ("y", 0)), ((),) * len(program), ((),) * len(program))]
    while todo:
        state = todo.pop()
        if state in seen:
            continue
        seen.add(state)
        at, memory, buffers, got = state
        stuck = True
        for cpu, buffer in enumerate(buffers):
            if buffer:
                stuck = False
                after = dict(memory) | dict(buffer[:1])
                todo.append((at, tuple(after.items()), _put(buffers, cpu, buffer[1:]), got))
            if at[cpu] == len(program[cpu]):
                continue
            kind, _, word = program[cpu][at[cpu]].partition(" ")
            value, on = 10 * cpu + at[cpu] + 1, _put(at, cpu, at[cpu] + 1)
            if kind == "r":
                seen_value = dict(memory) | dict(buffer)
                read = _put(got, cpu, (*got[cpu], seen_value[word]))
                todo.append((on, memory, buffers, read))
            elif kind == "w":
                todo.append((on, memory, _put(buffers, cpu, (*buffer, (word, value))), got))
            elif not buffer and kind == "xchg":
                read = _put(got, cpu, (*got[cpu], dict(memory)[word]))
                todo.append((on, tuple((dict(memory) | {word: value}).items()), buffers, read))
            elif not buffer:
                todo.append((on, memory, buffers, got))
            stuck = stuck and bool(buffer) and kind in ("mb", "xchg")
        if stuck and all(where == len(does) for where, does in zip(at, program)):
            ends.add(str((*got, *((value,) for _, value in memory))))
    return ends


def _put(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


@pytest.mark.parametrize("seed", range(16))
def test_random_programs_end_as_x86_lets_them_and_weaker_memory_allows_more(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _random_program(seed, 2 + (seed % 5 == 0), 3 - (seed % 5 == 0))
    in_order, buffered = _outcomes(program, "sc"), _outcomes(program, "tso")
    late = _outcomes(program, "relaxed")
    assert in_order <= buffered <= late
    assert buffered == _tso_by_hand(program)
    monkeypatch.setattr(relaxed, "_tidy", lambda memory: memory)
    assert _outcomes(program, "relaxed") == late, "forgetting what nobody can read changes nothing"


def test_both_engines_see_the_same_of_weak_memory() -> None:
    for memory in MEMORY_MODELS:
        system = with_memory(_message(smp_store_release, READ_ONCE), memory, WORDS)
        fast, plain = explore(system, all_violations=True), explore_plainly(system)
        assert (fast.answer, fast.states if memory != "relaxed" else 0) == (
            plain.answer, plain.states if memory != "relaxed" else 0,
        )  # fmt: skip


@step
def expect(_m: Machine, task: Task, flag: int, data: int) -> None:
    """A flag that is up has its data with it."""
    if flag and not data:
        raise Violation(Invariant.HOLDER_SEES, f"{task} sees the flag and no data")


def _message(store, load) -> Configuration:
    async def send() -> None:
        await WRITE_ONCE("x", 1)
        await store("y", 1)

    async def receive() -> None:
        flag = await load("y")
        await expect(flag, await READ_ONCE("x"))

    return Configuration(Machine, (TaskProgram(Task(1, 1), send), TaskProgram(Task(2, 1), receive)))


@pytest.mark.parametrize(
    ("store", "load", "answer"),
    [
        (WRITE_ONCE, READ_ONCE, "broken"),
        (smp_store_release, READ_ONCE, "broken"),
        (WRITE_ONCE, smp_load_acquire, "broken"),
        (smp_store_release, smp_load_acquire, "proved"),
    ],
)
def test_a_message_needs_a_release_and_an_acquire(store, load, answer: str) -> None:
    system = _message(store, load)
    assert explore(with_memory(system, "relaxed", WORDS)).answer == answer
    assert explore(with_memory(system, "tso", WORDS)).answer == "proved"


LOCK = ("mmap_lock", 1)


@pytest.mark.parametrize(
    ("lock", "memory", "answer"),
    [
        (down_read, "relaxed", "proved"),
        (down_read_relaxed, "relaxed", "broken"),
        (down_read_relaxed, "tso", "proved"),
    ],
)
def test_what_is_read_under_a_lock_without_acquire_may_have_been_read_before(
    lock, memory: MemoryModel, answer: str
) -> None:
    async def writes() -> None:
        await down_write(LOCK)
        await WRITE_ONCE("x", 1)
        await WRITE_ONCE("y", 1)
        await up_write(LOCK)

    async def reads() -> None:
        await lock(LOCK)
        await expect(await READ_ONCE("x"), await READ_ONCE("y"))
        await up_read(LOCK)

    programs = TaskProgram(Task(1, 1), writes), TaskProgram(Task(2, 1), reads)
    assert explore(with_memory(Configuration(Machine, programs), memory, WORDS)).answer == answer


@pytest.mark.parametrize("memory", MEMORY_MODELS)
def test_the_missing_acquire_of_down_read_is_found_where_reads_may_be_early(
    memory: MemoryModel,
) -> None:
    for scenario, had in (("rwsem-acquire", {"4.20", "5.2.11"}), ("rwsem-sleep", None)):
        for release in ("4.18", "4.20", "5.2.11", "5.2.12", "5.3"):
            had_it = release in had if had else release not in ("5.2.12", "5.3")
            found = check(_in(find_scenario(scenario), memory), find_design(f"linux-{release}"))
            broken = had_it and memory == "relaxed"
            assert found.invariants == (("HOLDER_SEES",) if broken else ()), (scenario, release)
            assert found.verdict == ("broken" if broken else "proved")


def test_a_counterexample_names_its_memory_and_replays(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "litmus/sb", "--design", "linux-6.18", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == "tso"
    assert {row["task"] for row in found["steps"]} == {
        "A", "B", "A's store buffer", "B's store buffer",
    }  # fmt: skip
    assert main(["check", "--replay", found["token"]]) == 1
    assert "FORBIDDEN_OUTCOME" in capsys.readouterr().out


def test_weak_memory_where_nothing_is_in_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "expand", "--memory", "tso"]) == 2
    assert "no task reads or writes a word" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        ("C.1 == 0", "no task 'C'; there are A, B, and word"),
        ("A.3 == 0", "A does operations 1 to 2"),
        ("A.1 = 0", "is neither TASK.OPERATION == VALUE nor word.N == VALUE"),
        ("A.1 == SIGFOO", "neither a number nor a result's name"),
        ("word.9 == 0", "words are word.0 to word.7"),
    ],
)
def test_an_outcome_that_means_nothing_is_told(
    outcome: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        f'summary = "x"\nforbidden = ["{outcome}"]\n'
        '[[task]]\ndo = ["write-once 0 1", "mb"]\n[[task]]\ndo = ["read-once 0"]\n'
    )
    assert main(["check", str(path)]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("operation", "told"),
    [
        ("munmap 0 1 -> 0 SIGSEGV", "no signal ends munmap"),
        ("gup 0 -> old SIGBUS", "no signal ends gup"),
        ("read 0 -> old EAGAIN", "read gives no errno"),
    ],
)
def test_a_scenario_tells_a_signal_from_an_errno_of_the_same_number(
    operation: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'summary = "x"\n[[map]]\npages = [0, 4]\n[[task]]\ndo = ["{operation}"]\n')
    assert main(["check", str(path)]) == 2
    assert told in capsys.readouterr().err


def test_old_is_the_content_of_the_page_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'summary = "x"\n[[map]]\npages = [0, 4]\nmm = 7\npopulated = [2, 3]\n'
        '[[task]]\ndo = ["peek 7 2 -> old"]\n'
    )
    assert main(["check", str(path), "--design", "linux-6.18"]) == 0
