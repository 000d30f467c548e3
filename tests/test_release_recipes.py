"""The recipes of docs/release.md, run as they stand: each gives its memory back."""

from __future__ import annotations

import gc
import importlib
import mmap
import re
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import pytest
from processes import resident_bytes

import zaplock

TEXT = (Path(__file__).parent.parent / "docs" / "release.md").read_text("utf-8")
SECTION = TEXT.partition("## Recipes")[2].partition("**Other languages.**")[0]
ZAP, *RECIPES = re.findall(r"```python\n(.*?)```", SECTION, re.S)
NEEDS = {"pa.": "pyarrow", "pl.": "polars", "torch.": "torch", "Image.": "PIL.Image"}
SLACK = 12 << 20
"""Of the 32 MiB that a recipe takes at least, what pools and caches may keep."""


def test_there_is_one_for_each_library() -> None:
    missing = [
        name for name in ("np.ones", "SharedMemory(", *NEEDS) if name not in "".join(RECIPES)
    ]
    assert not missing


@pytest.mark.parametrize("code", RECIPES, ids=lambda code: code.split(" =")[0].strip())
def test_a_recipe_gives_its_memory_back(code: str) -> None:
    known: dict[str, object] = {
        "mmap": mmap, "np": np, "zaplock": zaplock, "SharedMemory": SharedMemory,
    }  # fmt: skip
    for spelt, package in NEEDS.items():
        if spelt in code:
            pytest.importorskip(package)
            known[spelt.rstrip(".")] = importlib.import_module(package)
    exec(ZAP + code, known)  # now all is imported that it imports
    gc.collect()
    highest, before = 0, resident_bytes()
    for line in code.splitlines():
        exec(line, known)
        highest = max(highest, resident_bytes())
        if line.startswith(("zap(", "zaplock.release(")):
            kept = resident_bytes() - before
            assert kept < SLACK, "the call itself gives it back, not a later del"
    gc.collect()
    assert highest - before > 24 << 20, "it took no memory: nothing was shown"
    assert resident_bytes() - before < SLACK
