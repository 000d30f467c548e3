"""The agent's log: a line of JSON on stdout for whatever is worth one."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Say = Callable[..., None]
"""Takes the name of what happened, and fields."""


def log_line(event: str, **fields: Any) -> None:
    """Write a line of the log, with the time in UTC."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    print(json.dumps({"time": at, "event": event, **fields}), flush=True)
