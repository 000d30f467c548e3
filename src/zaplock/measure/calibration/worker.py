"""One round of all experiments, in a process of its own (`python -m ...calibration.worker`)."""

from __future__ import annotations

from zaplock.measure.calibration import calls, pages, tasks
from zaplock.measure.json_children import die_with_parent, quiet_interpreter, read_orders, tell


def main() -> None:
    """Take the scale, run, tell the raw figures (nanoseconds)."""
    die_with_parent()
    quiet_interpreter()
    scale = read_orders()["scale_mib"]
    try:
        raw = pages.experiments(scale)
        tell(progress=1)
        raw |= calls.experiments()
        tell(progress=1)
        raw |= tasks.experiments()
        tell(progress=1, raw=raw)
    except OSError as error:
        tell(error=f"the kernel refused an experiment: {error.strerror}")


if __name__ == "__main__":
    main()
