"""The measured process: maps, populates, runs its bystander threads, tears down, tells its samples.

Run by zaplock.measure.measure as `python -m zaplock.measure.subject`. Its life is a dialogue:
orders in; `progress` lines, then `ready` out; `go` in; `done` with all samples out. Between `go`
and the end of the teardown the main thread does nothing but the teardown.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from zaplock.measure import mappings, syscalls, teardown
from zaplock.measure.bystanders import MeasuredSamples, inside, loop, own_range
from zaplock.measure.json_children import die_with_parent, quiet_interpreter, read_orders, tell

SETTLE_S = 0.02
"""How long the bystanders go on after the teardown."""


class Bystander(threading.Thread):
    """A thread that does one bystander's work until it is told to stop."""

    def __init__(self, name: str, period_ns: int) -> None:
        super().__init__(name=name, daemon=True)
        self.operation = inside(name)
        self.period_ns = period_ns
        self.samples = MeasuredSamples()
        self.error: OSError | None = None
        self.stopped = False

    def run(self) -> None:
        """Loop; the samples, or the error, are there when the thread has ended."""
        try:
            self.samples = loop(self.operation, self.period_ns, lambda: self.stopped)
        except OSError as error:
            self.error = error


def build(orders: dict[str, Any]) -> mappings.StudiedMapping:
    """Map, lock, cut and populate as ordered."""
    mapping = teardown.prepare(orders["teardown"], orders["length"], orders["backing"])
    if orders["locked"]:
        # on fault: an immediate mlock would write to (and so replace) every zero page
        syscalls.mlock(mapping.address, mapping.length, onfault=True)
    if orders["nr_vmas"] > 1:
        mappings.cut(mapping, orders["nr_vmas"])
    mappings.populate(mapping, lambda length: tell(progress=length))
    return mapping


def stop(bystanders: list[Bystander]) -> dict[str, list[list[int]]]:
    """End the bystanders and return their samples."""
    for bystander in bystanders:
        bystander.stopped = True
    for bystander in bystanders:
        bystander.join()
        if bystander.error:
            raise bystander.error
    return {one.name: [one.samples.begin_ns, one.samples.took_ns] for one in bystanders}


def run(orders: dict[str, Any]) -> None:
    """Live through one experiment."""
    mapping = build(orders)
    huge = mappings.huge_bytes(mapping.address) if mapping.backing == "thp" else 0
    bystanders = [Bystander(name, orders["period_ns"]) for name in orders["bystanders"]]
    for bystander in bystanders:
        bystander.start()
    tell(ready=True, probe=own_range(syscalls.PAGE), huge_bytes=huge)
    read_orders()  # go
    work = teardown.WAYS[orders["teardown"]]
    if orders["teardown"] == "exit":
        tell(done=True, samples=stop(bystanders), begin_ns=time.monotonic_ns(), cpu_ns=None)
    cpu_ns = time.thread_time_ns()
    begin_ns = time.monotonic_ns()
    work(mapping)
    end_ns = time.monotonic_ns()
    cpu_ns = time.thread_time_ns() - cpu_ns
    time.sleep(SETTLE_S)
    tell(done=True, samples=stop(bystanders), begin_ns=begin_ns, end_ns=end_ns, cpu_ns=cpu_ns)


def main() -> None:
    """Take orders once; a system call that fails is told, not traced."""
    die_with_parent()
    quiet_interpreter()
    syscalls.prctl(syscalls.PR_SET_PTRACER, 2**64 - 1)  # lets the gup bystander in under Yama
    try:
        run(read_orders())
    except OSError as error:
        tell(error=f"the kernel refused the experiment: {error.strerror}")
    except RuntimeError as error:
        tell(error=str(error))


if __name__ == "__main__":
    main()
