"""Protocols as plain functions: the same source, and the same outcome as when they are awaited."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from zaplock.designs.linux import LINUX_6_18
from zaplock.engines import sequential
from zaplock.engines.direct import PlainForms
from zaplock.engines.sequential import run
from zaplock.model.machine import Machine
from zaplock.model.step import StepKind, Task
from zaplock.model.violations import Violation
from zaplock.protocols import munmap
from zaplock.protocols.design import Cx
from zaplock.protocols.served_calls import SERVED

T1 = Task(1, 1)
PAGE = 4096
SOURCE = """
import json
from zaplock.model.rwsem import down_read, down_write, up_write
from zaplock.model.step import MarkStep, step

@step
def note(machine, task, what):
    machine.signals.put(len(machine.signals), what)
    return len(machine.signals)

async def twice(what, *, last=""):
    await note(what)
    return await note(last or what)

async def story(what, times=2):
    await MarkStep("op_begin", (what, 0, 0, 0))
    await down_write(("mmap_lock", 1))
    counts = [await twice(what, last=str(n)) for n in range(times)]

    async def within(more):
        return await note(what + more)

    counts.append(await within("!"))
    await up_write(("mmap_lock", 1))
    return counts

async def forgetful():
    await down_write(("mmap_lock", 1))
    await down_read(("mmap_lock", 1))

async def from_a_module(what):
    return await twice(json.dumps(what))

async def each_of(whats, visit):
    return [await visit(what) for what in whats]

async def counted(whats):
    count = 0

    async def visit(what, *, end="."):
        nonlocal count
        count += 1
        return await note(what + end * count)

    await each_of(whats, visit)
    return count

async def careful(what):
    try:
        return await note(what)
    finally:
        await note("finally")
"""


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> PlainForms:
    """The engine's forms, afresh, and from the first run on."""
    fresh = PlainForms(sequential._take)
    fresh.runs_left = 0
    monkeypatch.setattr(sequential, "PLAIN_FORMS", fresh)
    return fresh


@pytest.fixture
def stories(tmp_path: Path) -> Iterator[ModuleType]:
    path = tmp_path / "stories.py"
    path.write_text(SOURCE)
    yield _imported(path)
    del sys.modules["stories"]


def _imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_plain(forms: PlainForms, module: ModuleType, name: str) -> bool:
    program = getattr(module, name)("a")
    try:
        return forms.call_of(program) is not None
    finally:
        program.close()


def _told(module: ModuleType, name: str, *arguments: object) -> tuple[object, list[str]]:
    machine = Machine()
    result = run(machine, T1, getattr(module, name)(*arguments))
    return result, list(machine.signals.data.values())


def test_a_protocol_does_the_same_as_a_plain_function(
    forms: PlainForms, stories: ModuleType
) -> None:
    forms.runs_left = 1
    awaited = _told(stories, "story", "a", 3)
    assert stories.twice not in forms
    assert _told(stories, "story", "a", 3) == awaited == ([2, 4, 6, 7], ["a", "0", "a", "1", "a",
                                                                         "2", "a!"])  # fmt: skip
    assert stories.twice in forms


def test_what_is_replaced_in_a_module_is_replaced_in_its_plain_functions(
    forms: PlainForms, stories: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _told(stories, "twice", "a")
    body = stories.note.run
    monkeypatch.setattr(stories.note, "run", lambda m, task, what: body(m, task, what.upper()))
    assert _told(stories, "twice", "a") == (plain[0], ["A", "A"])

    async def nothing(_what: str) -> str:
        return "nothing"

    monkeypatch.setattr(stories, "note", nothing)
    assert _told(stories, "twice", "a") == ("nothing", [])


def test_a_protocol_that_calls_a_module_s_functions_is_what_its_file_says(
    forms: PlainForms, stories: ModuleType
) -> None:
    assert _is_plain(forms, stories, "from_a_module")
    assert _told(stories, "from_a_module", "a") == (2, ['"a"', '"a"'])


def test_a_closure_has_a_plain_form_over_the_same_variables(
    stories: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []

    def take(machine: Machine, task: Task, awaited: object) -> object:
        taken.append(awaited)
        return sequential._take(machine, task, awaited)

    forms = PlainForms(take)
    monkeypatch.setattr(sequential, "PLAIN_FORMS", forms)
    awaited = _told(stories, "counted", ["a", "b"])
    forms.runs_left = 0
    assert _told(stories, "counted", ["a", "b"]) == awaited == (2, ["a.", "b.."])
    assert not taken, "each was called, and no coroutine was made"
    known = len(forms)
    assert _told(stories, "counted", ["c"]) == (1, ["c."])
    assert len(forms) == known, "no closure is kept"


def test_a_wait_that_nobody_ends_is_a_violation(forms: PlainForms, stories: ModuleType) -> None:
    with pytest.raises(Violation, match="waits for mmap_lock"):
        _told(stories, "forgetful")


def test_a_protocol_that_awaits_within_try_stays_as_it_is(
    forms: PlainForms, stories: ModuleType
) -> None:
    assert _told(stories, "careful", "a") == (1, ["a", "finally"])
    assert not _is_plain(forms, stories, "careful")
    assert _is_plain(forms, stories, "twice")


@pytest.mark.parametrize("now", [SOURCE.replace("last or what", "what or last"), "no ( python", ""])
def test_a_file_that_was_changed_since_is_not_what_runs(
    forms: PlainForms, tmp_path: Path, now: str
) -> None:
    path = tmp_path / "stories.py"
    path.write_text(SOURCE)
    before = _imported(path)
    path.write_text(now)
    assert _told(before, "twice", "a") == (2, ["a", "a"])
    assert not _is_plain(forms, before, "twice")
    del sys.modules["stories"]


def test_a_file_that_was_loaded_again_has_its_own_names(forms: PlainForms, tmp_path: Path) -> None:
    path = tmp_path / "stories.py"
    own = "async def end(what):\n    return await twice(LAST)\n"
    path.write_text(f"{SOURCE}LAST = 'old'\n{own}")
    old = _imported(path)
    assert _told(old, "end", "a") == (2, ["old", "old"])
    path.write_text(path.read_text().replace("'old'", "'newer'"))
    new = _imported(path)
    assert _told(new, "end", "a") == (2, ["newer", "newer"])
    assert _told(old, "end", "a") == (2, ["old", "old"])
    assert _is_plain(forms, new, "end")
    del sys.modules["stories"]


def test_a_design_s_own_protocols_are_plain_too(forms: PlainForms) -> None:
    machine, results = Machine(), []
    cx = Cx(LINUX_6_18, T1)
    for start in range(1 << 30, (1 << 30) + 8 * PAGE, 2 * PAGE):
        results.append(run(machine, T1, SERVED["mmap"](cx, start, PAGE, 3, 0x32, 0, 0)))
    results.append(run(machine, T1, SERVED["munmap"](cx, 1 << 30, 4 * PAGE)))
    assert results == [*range(1 << 30, (1 << 30) + 8 * PAGE, 2 * PAGE), 0]
    assert len(machine.mm(1).tree) == 2
    assert munmap.vms_gather_munmap_vmas in forms
    assert not any(isinstance(called, StepKind) for called in forms), "a step's body may change"
