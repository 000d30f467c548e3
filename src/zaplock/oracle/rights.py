"""What the user of a machine may do to it, and what is left to who may not.

Root in a container often has neither the capability nor a place to write to: to be told to be root
would help nobody there.
"""

from __future__ import annotations

import os
from pathlib import Path

_CAP_SYS_ADMIN = 21


def way_out() -> str:
    """Say what lets a user do what the kernel has refused."""
    return "run it as root" if os.geteuid() else "run it as root outside of any container"


def administers() -> bool:
    """Return whether this process may mount, swap and have namespaces: root alone doesn't say."""
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(held >> _CAP_SYS_ADMIN & 1)
