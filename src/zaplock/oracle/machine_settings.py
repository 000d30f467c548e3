"""What others may change under a campaign: how huge pages are made, what ksmd merges.

The model knows one machine, so a sequence that differs after such a change says nothing about it.
What only says how fast something is done is no such setting.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FOLDERS = (Path("/sys/kernel/mm/transparent_hugepage"), Path("/sys/kernel/mm/ksm"))
_PACE = ("pages_to_scan", "millisecs", "advisor")
Settings = Mapping[str, str]
"""From a setting's name below /sys/kernel/mm to its value."""


def read_settings(folders: tuple[Path, ...] = FOLDERS) -> Settings:
    """Read every setting of huge pages and of ksmd that this kernel has."""
    return {name: _value(path) for name, path in _settings_in(folders).items()}


@cache
def _settings_in(folders: tuple[Path, ...]) -> dict[str, str]:
    """Find the settings; they are looked for once, since that takes longer than all the rest."""
    paths = [
        (folder.parent, Path(place, name))
        for folder in folders
        for place, _, names in os.walk(folder)
        for name in names
    ]
    return {str(path.relative_to(base)): str(path) for base, path in paths if is_setting(path)}


def is_setting(path: Path) -> bool:
    """Return whether a file of sysfs can be written to, and changes what is done."""
    is_writable = bool(path.stat().st_mode & 0o200)
    return is_writable and not any(word in path.name for word in _PACE)


def _value(path: str) -> str:
    """Return a setting's value: of several to choose from, the one in brackets."""
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    return text.partition("[")[2].partition("]")[0] or text


def changes(before: Settings, now: Settings) -> str:
    """Say in words what has another value than before; "" where nothing has."""
    return ", ".join(
        f"{name} went from {before.get(name, 'nothing')} to {now.get(name, 'nothing')}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    )
