"""The probe as a program: one static one, for guests' init and for the host.

Static, since the guest has no libraries.
"""

from __future__ import annotations

from pathlib import Path

from zaplock.compiled.build import built

SOURCES = Path(__file__).parent
MAIN = SOURCES / "probe.c"
FLAGS = ("-O2", "-static", "-no-pie", "-s", "-Wall", "-pthread")


def probe() -> Path:
    """Return the compiled probe, compiling it on first use. Raises UserError without a compiler."""
    return compiled(MAIN)


def compiled(main: Path) -> Path:
    """Return a program for guests by its C source, which may include the probe's files."""
    return built(main, FLAGS, beside=SOURCES, kept="probe", named="the probe for other kernels")
