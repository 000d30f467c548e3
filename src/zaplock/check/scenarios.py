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

from importlib import resources
from pathlib import Path
from typing import Final, Literal

import msgspec

from zaplock.errors import UserError

BASE_PAGE: Final = 1 << 18
PAGE_SHIFT: Final = 12
OLD_TAG: Final = 1000
"""Page p of the initial map holds the tag OLD_TAG + p, where it is populated."""

Kind = Literal["anon", "stack", "file", "shared", "private-file", "hugetlb", "pfn", "uffd", "heap"]
Numbers = tuple[int, ...]


def address_of(page: int) -> int:
    """Return the address of a scenario's page number."""
    return (BASE_PAGE + page) << PAGE_SHIFT


class InitialMapping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One VMA of the initial map.

    pages: first page and the page behind the last. populated: such a range of pages that are in
    the page tables, writable where `prot` allows it. cached: pages that the TLB of these tasks
    (counted from 0) holds. `file` numbers the file of the file kinds; its offset 0 is at the start.
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
    """

    do: tuple[str, ...]
    name: str = ""
    mm: int = 1
    daemon: bool = False
    killed: bool = False
    cached: tuple[int, ...] = ()


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A closed system to check under a design.

    fair: use the FIFO queue of the design's kernel instead of "any waiter".
    grain: pages per zap step. max_map_count, batch: limits of the mm and of an mmu_gather (pages).
    arch_unmap: (first, end, companion's first, companion's end) pages of the hook.
    cmdline: the page that /proc/PID/cmdline reads.
    sometimes: names of things that must happen in some interleaving (see `lab.promises`).
    may_fail: an operation that never succeeds does not make the scenario vacuous.
    unchanged: promise that nothing has changed at the end (for operations that fail).
    brk: the page where the heap ends, if not where its mapping does.
    device_fails_after: how many pages a device maps before its mmap fails.
    liveness: promise that readers wait for the exclusive part only (needs `fair`).
    bounded_hold: promise that who holds the mmap_lock neither waits nor works on pages without a
        bound.
    room: pages between which mmap looks for a gap.
    part: a part below the grain of the address space instead of a map: "rwsem", "stack-rot".
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
    room: tuple[int, int] | None = None
    part: Literal["", "rwsem", "stack-rot"] = ""


class ScenarioOperation(msgspec.Struct, frozen=True):
    """One operation of a task: its name, its numbers, and which results are right (() for any)."""

    name: str
    numbers: Numbers
    expected: tuple[int, ...] = ()


SIGNALS: Final = {"SIGSEGV": -11, "SIGBUS": -7, "EFAULT": -14, "ENOMEM": -12, "EINTR": -4,
                  "EAGAIN": -11, "EINVAL": -22}  # fmt: skip


def parse_operation(text: str) -> ScenarioOperation:
    """Read "munmap 8 4 -> 0"; raises UserError on words that mean nothing."""
    left, arrow, right = text.partition("->")
    words = left.split()
    if not words:
        raise UserError(f"operation {text!r} is empty; write a name and its numbers: munmap 8 4")
    try:
        numbers = tuple(int(word, 0) for word in words[1:])
    except ValueError as error:
        raise UserError(f"operation {text!r}: its arguments must be numbers") from error
    if arrow and not right.split():
        raise UserError(f"operation {text!r}: behind -> stand the results that are right")
    expected = tuple(_result(word, numbers, text) for word in right.replace("|", " ").split())
    return ScenarioOperation(words[0], numbers, expected)


def _result(word: str, numbers: Numbers, text: str) -> int:
    if word == "old":
        if not numbers:
            raise UserError(f"operation {text!r}: 'old' is the content of a page, but it has none")
        return OLD_TAG + numbers[0]
    if word in SIGNALS:
        return SIGNALS[word]
    try:
        return int(word, 0)
    except ValueError:
        known = ", ".join(["old", *SIGNALS])
        raise UserError(
            f"operation {text!r}: result {word!r} is neither a number nor one of {known}"
        ) from None


def expected_results(text: str) -> list[tuple[str, int]]:
    """List the results that are right for an operation, as they are written and as numbers."""
    operation = parse_operation(text)
    words = text.partition("->")[2].replace("|", " ").split()
    return list(zip(words, operation.expected))


def read_scenario(path: Path) -> Scenario:
    """Read a scenario from a TOML file; its name is the file's unless it says another."""
    try:
        text = path.read_text()
    except OSError as error:
        raise UserError(f"scenario {str(path)!r} can't be read: {error.strerror}") from error
    return _decode(text, path.stem, str(path))


def _decode(text: str, name: str, where: str) -> Scenario:
    try:
        scenario = msgspec.toml.decode(text, type=Scenario)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise UserError(f"scenario {where!r}: {error}") from error
    for task in scenario.task:
        for text_of_operation in task.do:
            parse_operation(text_of_operation)
    return scenario if scenario.name else msgspec.structs.replace(scenario, name=name)


def shipped_scenarios() -> dict[str, Scenario]:
    """Return the scenarios that come with zaplock, by name, pairs apart (see `lab.pairs`)."""
    folder = resources.files("zaplock.check") / "scenario_files"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=str)
    found = {}
    for file in files:
        name = file.name.removesuffix(".toml")
        found[name] = _decode(file.read_text(), name, file.name)
    return found
