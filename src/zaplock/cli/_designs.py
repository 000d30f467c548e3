"""Designs as the command line names them: several, by commas or by repeating."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zaplock.cli._lists import items_of_all
from zaplock.errors import UserError

if TYPE_CHECKING:
    from zaplock.protocols.design import Design
    from zaplock.trace.quotas import CpuMax


def parse_designs(names: list[str] | None) -> list[Design]:
    """Return the designs of repeated --design options, all shipped ones for None.

    Raises UserError for a name that no design has, or one that comes twice.
    """
    from zaplock.designs import SHIPPED, load

    if names is None:
        return list(SHIPPED.values())
    return [load(name) for name in design_names(names)]


def judged(text: str) -> tuple[str, Design | None]:
    """Read KERNEL or KERNEL=DESIGN, what a kernel is judged as; a path may have an = in it."""
    from zaplock.designs import load

    name, given, design = text.rpartition("=")
    if not given or Path(text).exists():
        return text, None
    return name, load(design)


def design_names(options: Sequence[str]) -> list[str]:
    """List what --design options name, groups such as "proposals" spelled out."""
    from zaplock.designs.catalogue import named

    return named(items_of_all("--design", options))


def parse_cpu_max(text: str) -> CpuMax:
    """Read a quota as cpu.max has it, in microseconds: "10000/100000" or "10000 100000".

    Raises UserError for anything else.
    """
    from zaplock.trace.quotas import CpuMax

    parts = text.replace("/", " ").split()
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(
            f"--cpu-max {text!r} is not QUOTA/PERIOD in microseconds, such as 10000/100000 (10 %)"
        )
    quota_us, period_us = map(int, parts)
    return CpuMax(quota_us * 1000, period_us * 1000)
