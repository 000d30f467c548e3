"""From a round's raw figures to the units of a cost profile: differences, each said in its note.

Raw figures are what an experiment took as a whole; a unit is what a model spends for one step
of it. So each unit is a raw figure less the units that it contains. The sum always comes out: what
can't be told apart is shared out, never lost. A difference that noise made negative is 0.

Pages: an unmap per page is zap + free + free_table / 512, where free_table comes from a mapping
with one page in each table, and zap from an unmap while a forked child keeps the pages. Of huge
pages the raw figures are without the call already.
"""

from __future__ import annotations

from collections.abc import Mapping

PER_TABLE = 512
Raw = Mapping[str, float]

NOTES = {
    "free_file": "0: the page stays in the page cache, its reference goes with the zap",
    "zap_pfn": "not measured: taken as zap_zero (neither has an rmap)",
    "lock": "half of an uncontended lock and unlock",
    "unlock": "half of an uncontended lock and unlock",
    "downgrade": "not measured by itself: taken as unlock",
    "vma_detach": "half of what a VMA adds to a munmap of many",
    "vma_free": "half of what a VMA adds to a munmap of many",
    "flush": "one for each pair of mprotect calls to read-only and back",
    "context_switch": "contains a wake-up on the same CPU",
    "userfaultfd_event": "not measured: two wake-ups with their latency and two system calls",
    "uprobe": "not measured: taken as vma_find (a look into a tree)",
    "fault_minor": "the cheapest of: a write fault that reuses its page, a read of the zero page",
}
"""How the units that were not measured by themselves were chosen."""

ONE_CPU = "one CPU here: not measured"
NO_HUGETLB = "no huge pages in the pool: taken as thp"
NO_MLOCK = "RLIMIT_MEMLOCK forbids it: taken as protect_pte"


def _left(value: float, *parts: float) -> float:
    return max(0.0, value - sum(parts))


def page_units(raw: Raw) -> dict[str, float]:
    """Return zap_*, free_*, populate, copy, protect and lock units."""
    zero, table = raw["unmap_zero"], raw["unmap_table"]
    free_table = _left(table, zero) * PER_TABLE / (PER_TABLE - 1)
    share = free_table / PER_TABLE
    units = {
        "free_table": free_table,
        "zap_zero": _left(zero, share),
        "zap_pfn": _left(zero, share),
        "zap_file": _left(raw["unmap_file"], share),
        "free_file": 0.0,
        "populate_anon": raw["populate"],
        "copy_pte": _left(raw["fork_page"]),
        "protect_pte": raw["protect_page"],
        "mlock_page": raw.get("mlock_page", raw["protect_page"]),
        "munlock_page": raw.get("munlock_page", raw["protect_page"]),
    }
    for unit, backing in (("anon", "anonymous"), ("thp", "thp"), ("hugetlb", "hugetlb")):
        units |= _zap_and_free(raw, unit, _had(raw, backing), share)
    return units


def _had(raw: Raw, backing: str) -> str:
    return backing if f"unmap_{backing}" in raw else "thp" if "unmap_thp" in raw else "anonymous"


def _zap_and_free(raw: Raw, unit: str, backing: str, share: float) -> dict[str, float]:
    whole = _left(raw[f"unmap_{backing}"], share)
    zap = min(whole, _left(raw[f"zap_shared_{backing}"], share))
    return {f"zap_{unit}": zap, f"free_{unit}": whole - zap}


def fault_units(raw: Raw) -> dict[str, float]:
    """Return the fault units: the base, and what each kind of page adds."""
    base = min(raw["fault_reuse"], raw["fault_zero"])
    extra = {
        "fault_anon": "fault_anonymous",
        "fault_zero": "fault_zero",
        "fault_file": "fault_file",
        "fault_cow": "fault_copy",
        "fault_thp": f"fault_{_had(raw, 'thp')}",
        "fault_hugetlb": f"fault_{_had(raw, 'hugetlb')}",
    }
    return {"fault_minor": base} | {unit: _left(raw[name], base) for unit, name in extra.items()}


def call_units(raw: Raw, protect_pte: float) -> dict[str, float]:
    """Return system call, lock, VMA, flush and reader units."""
    syscall = _left(raw["getppid"], raw["call"])
    pair = _left(raw["brk"], raw["call_one"], syscall)
    find = _left(raw["msync"], raw["call_three"], syscall, pair)
    around = raw["vma_loop"] + syscall + pair + find
    gone = raw["vma_unmap_at_once"]
    return {
        "syscall": syscall,
        "lock": pair / 2,
        "unlock": pair / 2,
        "downgrade": pair / 2,
        "vma_find": find,
        "vma_alloc": _left(raw["vma_make"], around),
        "vma_split": _left(raw["vma_split"], around),
        "vma_merge": _left(raw["vma_merge"], around),
        "vma_detach": gone / 2,
        "vma_free": gone / 2,
        "flush": _left(raw["protect_present"], raw["protect_absent"], 2 * protect_pte),
        "flush_remote": _left(raw.get("protect_remote", 0.0), raw["protect_present"]),
        "proc_read": _left(raw["read_cmdline"], raw["read_null"], pair),
        "gup_page": _left(raw["gup_page"]),
        "uprobe": find,
    }


def task_units(raw: Raw, syscall: float) -> dict[str, float]:
    """Return wake-up, latency and switch units."""
    both = raw["write_and_read"]
    switch = _left(raw["hand_over"], both)
    wakeup = _left(raw.get("write_to_sleeper", raw["write_alone"] + switch / 2), raw["write_alone"])
    latency = _left(raw.get("hand_over_remote", 0.0), both, wakeup)
    return {
        "wakeup": wakeup,
        "wakeup_latency": latency,
        "context_switch": switch,
        "userfaultfd_event": 2 * (wakeup + latency + syscall),
    }


def units(raw: Raw) -> dict[str, float]:
    """Return every unit of a profile from one round's raw figures, in nanoseconds."""
    pages = page_units(raw)
    calls = call_units(raw, pages["protect_pte"])
    return pages | fault_units(raw) | calls | task_units(raw, calls["syscall"])


def notes(raw: Raw) -> dict[str, str]:
    """Return the notes on units that were not measured by themselves on this machine."""
    found = dict(NOTES)
    if "unmap_hugetlb" not in raw:
        found |= dict.fromkeys(("zap_hugetlb", "free_hugetlb", "fault_hugetlb"), NO_HUGETLB)
    if "mlock_page" not in raw:
        found |= dict.fromkeys(("mlock_page", "munlock_page"), NO_MLOCK)
    if "protect_remote" not in raw:
        found |= dict.fromkeys(("flush_remote", "wakeup", "wakeup_latency"), ONE_CPU)
    return found
