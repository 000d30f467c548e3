"""A scenario: an initial map, and tasks that do operations on it at the same time.

Written as TOML (`check/scenario_files/*.toml`, or a user's own file) or made in Python. Addresses
are page numbers from `BASE_PAGE`, so that a scenario reads in small numbers; pages 0 to 511 share
one page-table page, 512 to 1023 the next.

    summary = "munmap of the lower part of a stack, which grows meanwhile"
    sometimes = ["munmap downgraded"]

    [[map]]
    pages = [8, 16]
    kind = "stack"
    populated = [8, 10]

    [[task]]
    name = "A"
    do = ["munmap 8 4 -> 0"]

    [[task]]
    name = "B"
    do = ["write 11 7 -> 0 SIGSEGV", "read 11 -> 7 SIGSEGV"]

An operation is a name, its numbers, and behind `->` the results that are right; "old" is what the
page held before the run.
"""

from __future__ import annotations

import errno
import functools
import re
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec

from zaplock.errors import UserError
from zaplock.inputs import read_text
from zaplock.model.words import MemoryModel
from zaplock.untrusted_names import visible

BASE_PAGE: Final = 1 << 18
PAGE_SHIFT: Final = 12
MOST_PAGES: Final = 1 << 14
"""The largest number in a scenario: two levels of page tables, and walked in no time."""
MOST_TASKS: Final = 8
MOST_FAILING: Final = 4
NAMES: Final = "ABCDEFGH"
"""What tasks are called that have no name of their own."""
OLD_TAG: Final = 1000
"""Page p of the initial map holds the tag OLD_TAG + p, where it is populated."""

Kind = Literal[
    "anon", "stack", "file", "shared", "private-file", "slow-file", "served-file", "hugetlb", "pfn",
    "uffd", "heap",
]  # fmt: skip
Part = Literal[
    "", "rwsem", "rwsem-acquire", "rwsem-sleep", "rwsem-writers", "rwsem-readers", "rwsem-leavers",
    "stack-rot", "vma-reuse",
]  # fmt: skip
Numbers = tuple[int, ...]


def address_of(page: int) -> int:
    """Return the address of a scenario's page number."""
    return (BASE_PAGE + page) << PAGE_SHIFT


def page_of(address: int) -> int:
    """Return the number that a scenario would give the page of an address."""
    return (address >> PAGE_SHIFT) - BASE_PAGE


class InitialMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VMA of the initial map.

    pages: first page and the page behind the last. populated: such a range of pages that are in
    the page tables, writable where `prot` allows it. cached: pages that the TLB of these tasks
    (counted from 0) holds. `file` numbers the file of the file kinds; its offset 0 is at the start.
    Pages of a "slow-file" that aren't populated have to be read from a disk first, those of a
    "served-file" come from a process (the operation `serve`); both are mapped shared.
    """

    pages: tuple[int, int]
    kind: Kind = "anon"
    prot: Literal["r", "rw", "none"] = "rw"
    populated: tuple[int, int] | None = None
    locked: bool = False
    file: int = 1
    mm: int = 1


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One task: what it does, in which address space, and what its TLB holds at the beginning.

    `daemon`: may wait for ever at the end. `killed`: has a fatal signal from the beginning.
    `begins`: "TASK.N" where the Nth operation of another task creates it (fork, clone), if that
        succeeds; "when started" where a protocol does (`zaplock.author.start_task`).
    `again`: does it all again and again for ever, so others must get in beside it. Only operations
    that bring the machine back to where it was can be done so: readers, not mmap or munmap.
    """

    do: tuple[str, ...]
    name: str = ""
    mm: int = 1
    daemon: bool = False
    killed: bool = False
    again: bool = False
    begins: str = ""
    cached: tuple[int, ...] = ()


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A closed system to check under a design.

    fair: use the FIFO queue of the design's kernel instead of "any waiter".
    grain: pages per zap step. max_map_count, batch: limits of the mm and of an mmu_gather (pages).
    arch_unmap: (first, end, companion's first, companion's end) pages of the hook.
    cmdline: the page that /proc/PID/cmdline reads.
    sometimes: names of things that must happen in some interleaving (see `check.invariants`).
    may_fail: an operation that never succeeds does not make the scenario vacuous.
    unchanged: promise that nothing has changed at the end (for operations that fail).
    brk: the page where the heap ends, if not where its mapping does.
    device_fails_after: how many pages a device maps before its mmap fails.
    liveness: promise that readers wait for the exclusive part only (needs `fair`).
    bounded_hold: promise that who holds the mmap_lock neither waits nor works on pages without a
        bound.
    disk_apart: promise that who holds the mmap_lock exclusively waits for nobody who waits for I/O.
    shown_once: promise that a reader of maps shows nothing twice of what was there throughout.
    room: pages between which mmap looks for a gap.
    part: a part below the grain of the address space instead of a map (`check.below_the_grain`).
    operations, invariants: of one's own (`check.own_operations`); a scenario in Python has them,
        one in TOML gets them by `--operation` and `--invariant`.
    memory: what stands between a CPU and the words of `model.words`. words: the names of those that
        a design's own protocols use; a number in an operation stands for a word of its own.
    failing_allocations: how many allocations may fail, any of those that are made
        (`protocols.shortage`); a call that fails for it must leave no trace.
    forbidden: what no run may end with, possible: what some run has to end with, as in
        "A.1 == 0 and B.2 != 7" (a task's result, its operations counted from 1) or "word.0 == 1".
    """

    summary: str
    task: tuple[TaskSpec, ...] = ()
    map: tuple[InitialMapping, ...] = ()
    name: str = ""
    fair: bool = False
    grain: int = 1
    max_map_count: int = 64
    batch: int = 1000
    arch_unmap: tuple[int, int, int, int] | None = None
    cmdline: int | None = None
    sometimes: tuple[str, ...] = ()
    may_fail: bool = False
    unchanged: bool = False
    brk: int | None = None
    device_fails_after: int | None = None
    liveness: bool = False
    bounded_hold: bool = False
    disk_apart: bool = False
    shown_once: bool = False
    room: tuple[int, int] | None = None
    part: Part = ""
    memory: MemoryModel = "sc"
    words: tuple[str, ...] = ()
    failing_allocations: int = 0
    forbidden: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()
    operations: tuple[Any, ...] = ()
    invariants: tuple[Any, ...] = ()


class ScenarioOperation(msgspec.Struct, frozen=True):
    """One operation of a task: its name, its numbers, and which results are right (() for any).

    words: those results as they are written.
    """

    name: str
    numbers: Numbers
    expected: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


_LONGEST = 20
SIGNALS: Final = {"SIGSEGV": -11, "SIGBUS": -7, "EFAULT": -14, "ENOMEM": -12, "EINTR": -4,
                  "EAGAIN": -11, "EINVAL": -22}  # fmt: skip
RESULTS: Final = {name: -number for number, name in errno.errorcode.items()} | SIGNALS
"""The results that have names."""


PAGE_ARGUMENT: Final = {"peek": 1}
"""Which number of an operation is the page whose old content `old` stands for, if not the first."""


def parse_operation(text: str) -> ScenarioOperation:
    """Read "munmap 8 4 -> 0"; raises UserError on words that mean nothing."""
    left, arrow, right = text.partition("->")
    words = left.split()
    if not words:
        raise UserError(f"operation {text!r} is empty; write a name and its numbers: munmap 8 4")
    try:
        numbers = tuple(_number(word) for word in words[1:])
    except ValueError as error:
        raise UserError(f"operation {text!r}: its arguments must be numbers") from error
    if arrow and not right.split():
        raise UserError(f"operation {text!r}: behind -> stand the results that are right")
    results = tuple(right.replace("|", " ").split())
    expected = tuple(_result(word, words[0], numbers, text) for word in results)
    return ScenarioOperation(words[0], numbers, expected, results)


def _number(word: str) -> int:
    if len(word) > _LONGEST:  # Python refuses to read more digits than that, or takes long
        raise ValueError(word)
    return int(word, 0)


def _result(word: str, name: str, numbers: Numbers, text: str) -> int:
    if word == "old":
        if len(numbers) <= PAGE_ARGUMENT.get(name, 0):
            raise UserError(f"operation {text!r}: 'old' is the content of a page, but it has none")
        return OLD_TAG + numbers[PAGE_ARGUMENT.get(name, 0)]
    if word in RESULTS:
        return RESULTS[word]
    try:
        return _number(word)
    except ValueError:
        known = ", ".join(["old", *SIGNALS])
        raise UserError(
            f"operation {text!r}: result {word!r} is neither a number nor one of {known}, nor "
            "another errno's name"
        ) from None


def expected_results(text: str) -> list[tuple[str, int]]:
    """List the results that are right for an operation, as they are written and as numbers."""
    operation = parse_operation(text)
    return list(zip(operation.words, operation.expected))


def check(scenario: Scenario) -> None:
    """Raise UserError unless every number of a scenario is one that can be checked in good time.

    One step of a protocol may walk a whole range, and nothing can interrupt a step; so it is the
    ranges that are bounded.
    """
    if len(scenario.task) > MOST_TASKS:
        raise UserError(f"{len(scenario.task)} tasks are more than {MOST_TASKS}: leave some out")
    for name, many in Counter(names_of(scenario)).items():
        if many > 1:
            raise UserError(f"{many} tasks are called {name!r}: give each a name of its own")
    for name in ("grain", "max_map_count", "batch"):
        _bounded(name, getattr(scenario, name), 1)
    if not 0 <= scenario.failing_allocations <= MOST_FAILING:
        raise UserError(
            f"failing_allocations, {scenario.failing_allocations}, must lie between 0 and "
            f"{MOST_FAILING}"
        )
    for name in ("cmdline", "brk", "device_fails_after"):
        if (value := getattr(scenario, name)) is not None:
            _bounded(name, value, 0)
    for page in scenario.arch_unmap or ():
        _bounded("a page of arch_unmap", page, 0)
    _check_map(scenario)
    creators(scenario)
    for task in scenario.task:
        _bounded("mm", task.mm, 1)
        for page in task.cached:
            _bounded("a cached page", page, 0)
        for text in task.do:
            operation = parse_operation(text)
            for number in operation.numbers:
                _bounded(f"a number of {text!a}", number, -1)
            if task.again and operation.expected:
                raise UserError(
                    f"operation {text!a} is done again and again, and results are judged where a "
                    "task ends: leave `again` or what stands behind -> out"
                )


WHEN_STARTED: Final = "when started"
_CREATED_BY: Final = re.compile(r"([\w-]+)\.(\d{1,4})")


def names_of(scenario: Scenario) -> list[str]:
    """Return what the tasks are called."""
    return [spec.name or NAMES[number] for number, spec in enumerate(scenario.task)]


def creators(scenario: Scenario) -> dict[tuple[str, int], tuple[str, ...]]:
    """Return which tasks an operation creates, by task and number of the operation (from 0).

    Raises UserError where a task begins with what there isn't.
    """
    names = names_of(scenario)
    found: dict[tuple[str, int], tuple[str, ...]] = {}
    for name, spec in zip(names, scenario.task):
        if not spec.begins or spec.begins == WHEN_STARTED:
            continue
        parts = _CREATED_BY.fullmatch(spec.begins)
        creator = parts[1] if parts else ""
        does = scenario.task[names.index(creator)] if creator in names else None
        if parts is None or does is None or creator == name or does.again:
            others = ", ".join(other for other in names if other != name)
            raise UserError(
                f"task {name!r} begins {spec.begins!r}: give TASK.N, the Nth operation of one of "
                f"{others} that is not done again and again, or {WHEN_STARTED!r}"
            )
        if not 1 <= int(parts[2]) <= len(does.do):
            raise UserError(f"task {name!r} begins {spec.begins!r}: {creator} does 1 to "
                            f"{len(does.do)}")  # fmt: skip
        at = creator, int(parts[2]) - 1
        found[at] = (*found.get(at, ()), name)
    return found


def validated(scenario: Scenario, name: str) -> Scenario:
    """Return a scenario that was made in Python as one that a file has, under another name.

    Raises UserError where a field is of a wrong type, or a number is none that can be checked.
    """
    own = {"operations": scenario.operations, "invariants": scenario.invariants}
    fields = {key: plain(value) for key, value in msgspec.structs.asdict(scenario).items()
              if key not in own}  # fmt: skip
    try:
        found = msgspec.convert(fields, Scenario)
        check(found)
    except (msgspec.ValidationError, UserError) as error:
        raise UserError(f"scenario {name!a}: {visible(str(error))}") from None
    return msgspec.structs.replace(found, name=name, **own)


def plain(value: Any) -> Any:
    """Return a value with all structs in it as dictionaries."""
    if isinstance(value, msgspec.Struct):
        return {key: plain(part) for key, part in msgspec.structs.asdict(value).items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def _check_map(scenario: Scenario) -> None:
    taken: list[tuple[int, int, int]] = []
    for mapping in scenario.map:
        for name, pages in (("pages", mapping.pages), ("populated", mapping.populated)):
            for page in pages or ():
                _bounded(f"a page of {name}", page, 0)
        first, last = mapping.pages
        if first >= last:
            raise UserError(f"mapping {list(mapping.pages)} is empty; give [first page, end page]")
        low, high = mapping.populated or (first, first)
        if not first <= low <= high <= last:
            raise UserError(f"populated {[low, high]} does not lie in pages {[first, last]}")
        _bounded("mm", mapping.mm, 1)
        _bounded("file", mapping.file, 1)
        taken.append((mapping.mm, first, last))
    for (mm, _, end), (other, start, _) in pairwise(sorted(taken)):
        if mm == other and start < end:
            raise UserError(f"two mappings of mm {mm} overlap at page {start}: move one")


def _bounded(name: str, value: int, least: int) -> None:
    if not least <= value <= MOST_PAGES:
        raise UserError(f"{name}, {value}, must lie between {least} and {MOST_PAGES}")


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file; its name is the file's unless it says another."""
    return _decode(read_text(path, "a scenario in TOML"), path.stem, str(path))


def _decode(text: str, name: str, where: str) -> Scenario:
    try:
        scenario = msgspec.toml.decode(text, type=Scenario)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UserError(f"scenario {where!a}: {visible(str(error))}") from None
    try:
        if scenario.operations or scenario.invariants:
            raise UserError(
                "operations and invariants of one's own are Python: give them by --operation and "
                "--invariant FILE.py:NAME"
            )
        check(scenario)
    except UserError as error:
        raise UserError(f"scenario {where!a}: {error}") from None
    return scenario if scenario.name else msgspec.structs.replace(scenario, name=name)


@functools.cache
def shipped_scenarios() -> Mapping[str, Scenario]:
    """Return the scenarios that come with zaplock, by name, pairs apart (see `check.pairs`)."""
    return _shipped("scenario_files", "")


@functools.cache
def litmus_tests() -> Mapping[str, Scenario]:
    """Return the litmus tests of memory that come with zaplock, by name: "litmus/sb"."""
    return _shipped("litmus", "litmus/")


def _shipped(directory: str, prefix: str) -> Mapping[str, Scenario]:
    folder = resources.files("zaplock.check") / directory
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=str)
    found = {}
    for file in files:
        name = prefix + file.name.removesuffix(".toml")
        found[name] = _decode(file.read_text(), name, file.name)
    return MappingProxyType(found)
