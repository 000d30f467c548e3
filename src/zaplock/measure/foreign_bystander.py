"""A bystander from outside: a process of its own that looks at the measured one.

Run by zaplock.measure.measure as `python -m zaplock.measure.foreign_bystander`. Orders name the
bystander, the process and a present page of it; the next line ends the loop, and the samples are
told.
"""

from __future__ import annotations

import threading

from zaplock.measure.bystanders import foreign, loop
from zaplock.measure.json_children import die_with_parent, quiet_interpreter, read_orders, tell


def main() -> None:
    """Look until told to stop."""
    die_with_parent()
    quiet_interpreter()
    orders = read_orders()
    stopped = threading.Event()

    def wait_for_the_end() -> None:
        read_orders()
        stopped.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    name = orders["bystander"]
    try:
        operation = foreign(name, orders["pid"], orders["probe"])
        samples = loop(operation, orders["period_ns"], stopped.is_set)
    except OSError as error:
        tell(error=f"bystander {name} can't do its work here: {error.strerror}; leave it out")
        return
    tell(samples=[samples.begin_ns, samples.took_ns])


if __name__ == "__main__":
    main()
