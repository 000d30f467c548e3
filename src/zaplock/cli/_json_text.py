"""What `--json` prints: a document, or with `lines` one on each line, and nothing but JSON."""

from __future__ import annotations

from typing import Any


def print_json(document: Any, *, lines: bool = False) -> None:
    """Print a document. JSON has no NaN and no infinity: ValueError where there is one."""
    import json  # not for those who ask for help

    print(json.dumps(document, indent=None if lines else 1, allow_nan=False), flush=lines)
