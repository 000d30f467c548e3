"""Cost profiles: what each elementary piece of work costs on some machine, in nanoseconds.

A profile is a TOML file with a name, where its figures come from, and one cost for each unit of
`UNITS`. The timed engine multiplies these costs by the counts of what it does; it knows no other
time. Profiles are read strictly: an unknown or missing unit, a negative or infinite cost, a missing
file is one UserError line that names the file, the key and the rule.

Names are looked up among the user's own profiles first (`zaplock calibrate` writes there:
$XDG_CONFIG_HOME/zaplock/profiles/), then among those shipped in lab/data. A path (with a slash or
ending in .toml) is read as it is.

`predict` is the plain formula for one munmap, by which calibration checks itself: it has no lock,
no queue and no other task; those are the engine's.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from zaplock import outputs
from zaplock.errors import UserError, no_such
from zaplock.experiment import BACKINGS
from zaplock.inputs import read_text
from zaplock.untrusted_names import visible

DEFAULT = "e5-2680-rfc"
"""The profile of a user who has not calibrated."""

THIS_MACHINE = "this-machine"
"""The name under which `zaplock calibrate` keeps this machine's profile."""

UNITS: dict[str, str] = {
    "zap_anon": "clear the PTE of an anonymous 4 KiB page and drop its rmap",
    "zap_zero": "clear a PTE of the shared zero page",
    "zap_file": "clear the PTE of a page-cache page and drop its rmap",
    "zap_thp": "clear the PMD of a transparent huge page (2 MiB)",
    "zap_hugetlb": "clear the PMD of a hugetlb page (2 MiB)",
    "zap_pfn": "clear a PTE of a PFN mapping",
    "free_anon": "return a 4 KiB anonymous page to the allocator",
    "free_file": "drop a reference to a page-cache page",
    "free_thp": "return a transparent huge page",
    "free_hugetlb": "return a hugetlb page to its pool",
    "free_table": "free one page-table page",
    "fault_minor": "a page fault that finds everything: the base of every fault",
    "fault_anon": "beyond fault_minor: allocate and clear a 4 KiB page",
    "fault_zero": "beyond fault_minor: map the zero page",
    "fault_file": "beyond fault_minor: look up and map a page-cache page",
    "fault_thp": "beyond fault_minor: allocate and clear a 2 MiB page",
    "fault_hugetlb": "beyond fault_minor: take and clear a hugetlb page",
    "fault_cow": "beyond fault_minor: allocate and copy a 4 KiB page",
    "populate_anon": "one page of MAP_POPULATE or MADV_POPULATE_WRITE",
    "copy_pte": "one PTE of fork or of a move by mremap",
    "protect_pte": "one PTE of mprotect",
    "vma_find": "look up a VMA",
    "vma_alloc": "make a VMA and put it into the tree",
    "vma_split": "split a VMA",
    "vma_merge": "merge two VMAs",
    "vma_detach": "take a VMA out of the tree",
    "vma_free": "unlink and free a detached VMA",
    "lock": "acquire the uncontended mmap_lock",
    "unlock": "release the mmap_lock",
    "downgrade": "downgrade the mmap_lock from write to read",
    "flush": "flush this CPU's TLB once",
    "flush_remote": "per other CPU that runs the mm: the interrupt and its answer",
    "munlock_page": "munlock one page",
    "mlock_page": "mlock one present page",
    "syscall": "entry to and exit from a system call",
    "proc_read": "the own work of a read of /proc/PID/cmdline",
    "gup_page": "get_user_pages of one present page",
    "userfaultfd_event": "hand one event to a userfaultfd monitor and await its read",
    "uprobe": "remove one uprobe with the mapping it is in",
    "wakeup": "wake a task: the cost to the waker",
    "wakeup_latency": "from the wake-up until the task runs on an idle CPU",
    "context_switch": "switch a CPU from one task to another",
}
"""Every unit that a model may spend, and what it stands for; costs are in nanoseconds each."""


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One machine's costs in nanoseconds by unit, and where they come from.

    `spread` gives the least and the greatest of the repeated measurements of a unit, where it was
    measured; `notes` says how a unit that was not measured by itself was chosen.
    """

    name: str
    description: str
    source: str
    costs: dict[str, float]
    kernel: str = ""
    cpu: str = ""
    spread: dict[str, tuple[float, float]] = {}
    notes: dict[str, str] = {}

    def __getitem__(self, unit: str) -> float:
        return self.costs[unit]


def load(name_or_path: str | Path) -> Profile:
    """Return a checked profile; raise UserError naming the file, the key and the rule."""
    path = find(name_or_path)
    try:
        plain = msgspec.toml.decode(read_text(path, "a profile"))
        _check_numbers(plain, str(path))
        profile = msgspec.convert(plain, Profile)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"profile {path}: {visible(' '.join(str(error).split()))}") from None
    check(profile, str(path))
    return profile


def _check_numbers(plain: Any, where: str) -> None:
    """Name the cost that is no number; msgspec names only its table."""
    costs = plain.get("costs")
    for unit, cost in costs.items() if isinstance(costs, dict) else ():
        if isinstance(cost, bool) or not isinstance(cost, int | float):
            raise UserError(f"profile {where}: costs.{unit} = {cost!r} must be a number")


def check(profile: Profile, where: str) -> None:
    """Raise UserError unless every unit has one finite cost that is not negative."""
    for unit, cost in profile.costs.items():
        if unit not in UNITS:
            raise UserError(
                f"profile {where}: costs.{unit} is no unit: see zaplock calibrate --units"
            )
        if not (math.isfinite(cost) and cost >= 0):
            raise UserError(
                f"profile {where}: costs.{unit} = {cost} must be finite and not negative"
            )
    missing = [unit for unit in UNITS if unit not in profile.costs]
    if missing:
        raise UserError(f"profile {where}: costs.{missing[0]} is missing: give it in nanoseconds")
    for table in ("spread", "notes"):
        for unit in getattr(profile, table):
            if unit not in UNITS:
                raise UserError(
                    f"profile {where}: {table}.{unit} is no unit: see zaplock calibrate --units"
                )


def find(name_or_path: str | Path) -> Path:
    """Return the file of a profile that is named or given by its path."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or os.sep in text or text.endswith(".toml"):
        return Path(text)
    known = available()
    if text not in known:
        raise no_such("profile", text, sorted(known))
    return known[text]


def shipped() -> list[str]:
    """Name the profiles that come with zaplock."""
    return sorted(_in(Path(__file__).parent / "data"))


def available() -> Mapping[str, Path]:
    """Return every profile that can be named, the user's own before shipped ones, with its file."""
    own = _base()
    return {**_in(Path(__file__).parent / "data"), **(_in(_directory(own)) if own else {})}


def _in(directory: Path) -> dict[str, Path]:
    try:
        return {path.stem: path for path in directory.glob("*.toml")}
    except PermissionError:  # the home of somebody else, as `sudo -u` leaves it in $HOME
        return {}


def user_directory() -> Path:
    """Return the directory of the user's own profiles. Raises UserError where they have no home."""
    if not (base := _base()):
        raise UserError(f"user {os.getuid()} has no home for profiles: set HOME, or give a path")
    return _directory(base)


def _base() -> str:
    """Say where this user's settings are; "" where nothing tells (a container's bare number)."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return "" if base.startswith("~") else base


def _directory(base: str) -> Path:
    return Path(base) / "zaplock" / "profiles"


def dump(profile: Profile) -> str:
    """Write a profile as TOML that `load` reads back to the same value."""
    heads = ("name", "description", "source", "kernel", "cpu")
    lines = [f"{head} = {_quoted(getattr(profile, head))}" for head in heads]
    lines += ["", "[costs]  # nanoseconds each"]
    lines += [f"{unit} = {profile.costs[unit]!r}  # {UNITS[unit]}" for unit in UNITS]
    if profile.spread:
        lines += ["", "[spread]  # least and greatest of the repeated rounds"]
        lines += [f"{unit} = [{low!r}, {high!r}]" for unit, (low, high) in profile.spread.items()]
    if profile.notes:
        lines += ["", "[notes]"]
        lines += [f"{unit} = {_quoted(note)}" for unit, note in profile.notes.items()]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return json.dumps(text)  # a JSON string is a TOML basic string


def require_writable(path: Path) -> None:
    """Raise UserError, before any long work, unless a file can be written there."""
    outputs.require_writable(path, parents=True)


def save(profile: Profile, path: Path) -> None:
    """Write a profile's file whole or not at all; raise UserError where it can't be written."""
    check(profile, str(path))
    require_writable(path)
    outputs.write(path, dump(profile), parents=True)


PAGES_PER_TABLE = 512


def predict(profile: Profile, length: int, backing: str = "anonymous", *, nr_vmas: int = 1) -> int:
    """Return the nanoseconds of one undisturbed munmap of `length` populated bytes.

    With n pages: n * (zap + free) + tables * free_table, and once the call, lock and VMA work.
    """
    made = BACKINGS[backing]
    nr_pages = length // made.page
    nr_tables = nr_pages / PAGES_PER_TABLE
    each = profile[made.zap] + (profile[made.free] if made.free else 0.0)
    vmas = nr_vmas * (profile["vma_detach"] + profile["vma_free"])
    fixed = sum(
        profile[unit] for unit in ("syscall", "lock", "vma_find", "downgrade", "flush", "unlock")
    )
    return round(nr_pages * each + nr_tables * profile["free_table"] + vmas + fixed)
