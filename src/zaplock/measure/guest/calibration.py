"""What a munmap costs in an exact guest, as units of a cost profile.

A guest whose time is its count of instructions says the same every time, so a mapping of one page
and one of many tell what each page costs and what the call costs as a whole. How either is shared
out among its units (zap, free, page table; lock, VMA, flush) nothing tells from outside: that is
taken from another profile, a `base`, whose other units are kept in proportion. A munmap's whole is
measured; the parts are as good as the base.

Not covered: memory other than anonymous and the zero page's, VMAs by the thousand, other CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from zaplock.errors import UserError
from zaplock.measure.calibrate import Calibration
from zaplock.measure.calibration.derive import PER_TABLE
from zaplock.measure.guest.experiment import GuestPlan, run
from zaplock.trace.quotas import CpuMax
from zaplock.units import number

SIZES = {"anonymous": (4096, 256 << 20), "zero": (4096, 1 << 30)}
"""The mappings that are unmapped, two of each backing: a page, and many."""
MEMORY = 1 << 30
"""Of one size, since a page costs up to a fifth more in a guest of another."""
CALL = ("syscall", "lock", "vma_find", "vma_detach", "downgrade", "flush", "vma_free", "unlock")
"""The units of a munmap that don't depend on its size."""

Costs = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class GuestCosts:
    """What a munmap takes in a guest: each page of two backings, and the call.

    In nanoseconds, with their fractions as in a cost profile.
    """

    anonymous: float
    zero: float
    call: float


def calibrate(
    kernel: str,
    base: Costs,
    base_name: str,
    *,
    cpu_max: CpuMax | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Calibration:
    """Measure munmaps in exact guests of `kernel`, a guest each; `base` is as the module says.

    Under a quota (`cpu_max`) a munmap was seen to take less time on its CPU than without; why is
    not known. So the profile for a quota is made under it.
    `progress` is told the guests done and the guests in all. Raises UserError where QEMU or the
    kernel can't be had, or a guest fails.
    """
    took: dict[str, list[int]] = {}
    release, done, of = "", 0, sum(len(sizes) for sizes in SIZES.values())
    for backing, sizes in SIZES.items():
        for length in sizes:
            capsule = run(plan_of(kernel, backing, length, cpu_max)).capsule
            took.setdefault(backing, []).append(capsule.fact("cpu_ns"))
            release, done = capsule.facts["release"], done + 1
            progress(done, of)
    costs, notes = units(guest_costs(took), base, base_name)
    return Calibration(costs, {}, notes, release, "QEMU, exact (4 ns an instruction)", 1, 256)


def plan_of(kernel: str, backing: str, length: int, cpu_max: CpuMax | None) -> GuestPlan:
    """Plan one munmap in an exact guest of `MEMORY` bytes, of more where it needs more."""
    plan = GuestPlan(
        length, kernel=kernel, backing=backing, bystanders=(), exact=True, nr_cpus=1,
        cpu_max=cpu_max,
    )  # fmt: skip
    return replace(plan, memory=max(MEMORY, plan.machine.memory))


def guest_costs(took: Mapping[str, list[int]]) -> GuestCosts:
    """Tell each page from the call by two sizes of a backing, in nanoseconds of CPU time."""
    slopes, calls = {}, []
    for backing, (small_ns, large_ns) in took.items():
        small, large = (length // 4096 for length in SIZES[backing])
        slopes[backing] = (large_ns - small_ns) / (large - small)
        calls.append(small_ns - slopes[backing] * small)
    if min(slopes.values()) <= 0:
        raise UserError(
            "the guest unmapped more pages in less time: it counts no instructions; "
            "see 'zaplock measure 64M --kernel KERNEL --exact'"
        )
    return GuestCosts(slopes["anonymous"], slopes["zero"], max(0.0, min(calls)))


def units(
    guest: GuestCosts, base: Costs, base_name: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Share the whole out as in `base`; return every unit of it, and how each was chosen."""
    table = base["free_table"] / PER_TABLE
    of_zero = guest.zero / (base["zap_zero"] + table)
    free_table = base["free_table"] * of_zero
    of_anon = (guest.anonymous - free_table / PER_TABLE) / (base["zap_anon"] + base["free_anon"])
    if of_anon <= 0:
        raise UserError(f"{base_name} doesn't fit this guest: give another --profile to start from")
    of_call = guest.call / sum(base[unit] for unit in CALL)
    ratios = {
        **dict.fromkeys(("zap_anon", "free_anon"), of_anon),
        **dict.fromkeys(("zap_zero", "free_table"), of_zero),
        **dict.fromkeys(CALL, of_call),
    }
    costs = {unit: round(cost * ratios.get(unit, of_anon), 2) for unit, cost in base.items()}
    notes = {
        unit: f"a part of a munmap in the guest, shared out as in {base_name}"
        if unit in ratios
        else f"not measured in the guest: as in {base_name}, times {number(of_anon)} as its pages"
        for unit in base
    }
    return costs, notes
