"""What an agent is told: where to put what, when something is trouble, and how much it may keep."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError

SECOND = 10**9
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,199}")


def clock_offset_ns() -> int:
    """Return what has to be added to the monotonic clock to get the wall clock."""
    return time.time_ns() - time.monotonic_ns()


@dataclass(frozen=True, slots=True)
class Settings:
    """An agent's settings. Times are nanoseconds, sizes bytes.

    A wait of `limit_ns` is trouble: then `after_ns` are recorded, at most `per_hour` times an hour.
    In the store this host keeps `keep` recordings, `keep_bytes` and `keep_days`. All trace buffers
    together take `buffer_bytes`. Processes are looked for every `rescan_ns`.
    """

    store: str
    spool: Path
    host: str
    limit_ns: int = 20_000_000
    after_ns: int = 2 * SECOND
    per_hour: int = 60
    keep: int = 200
    keep_bytes: int = 1 << 30
    keep_days: int = 30
    buffer_bytes: int = 12 << 20
    rescan_ns: int = 10 * SECOND
    hook: str = ""

    def check(self) -> None:
        """Raise UserError for what makes no sense."""
        if not _HOST.fullmatch(self.host):
            raise UserError(
                f"--host {self.host[:40]!a} is no host's name (letters, digits and .:_- behind a "
                "letter or digit, 200 at most): give one, such as web-7"
            )
        for name, value, least in (
            ("--after", self.after_ns, 1_000_000),
            ("--stop-after-wait", self.limit_ns, 1_000_000),
            ("--per-hour", self.per_hour, 1),
            ("--keep", self.keep, 1),
            ("--keep-days", self.keep_days, 1),
            ("--buffers", self.buffer_bytes, 1 << 20),
        ):
            if value < least:
                raise UserError(f"{name} {value} is less than {least}: give more")
