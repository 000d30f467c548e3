"""A real kernel's teardown beside that of the design that stands for it: do they agree?

Compared are the modes of the lock, who waits behind whom, and how long each waits as a share of the
teardown, which is free of any machine's speed. A hold that is shorter than the time between two
operations of a bystander may fall between them, so who waited for it is not judged. And hung
tasks: whom khungtaskd reports, in a guest and in the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import unified_diff
from itertools import groupby

from zaplock.designs import Change, Design
from zaplock.designs.linux import StandIn, design_of
from zaplock.designs.rules_read import deciding, observe, rules_read
from zaplock.engines.timed.hung_tasks import LongWait
from zaplock.lab.blocker import Blocker, blocker
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.forecast import predict
from zaplock.lab.hung_report import comparable, task_in
from zaplock.lab.hung_task import in_between, message
from zaplock.lab.profiles import DEFAULT, load
from zaplock.lab.teardown import run
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.teardown_verdict import TeardownVerdict

READERS = ("fault", "proc")
WRITER = "mmap"
WAITERS = (
    ("maps", "smaps", "rollup", "environ"),
    ("maps", "smaps", "rollup", "environ", WRITER),
    ("clone", "proc"),
    ("fork", "proc"),
)
"""Who else stands beside a munmap, from its begin on: readers of /proc/PID alone and with a queued
writer, a thread that starts others, and one that forks, each with `ps` behind it."""
TOLERANCE = 0.1
"""How far a predicted wait may lie from the measured one, as a share of the teardown."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One teardown on one kernel, measured and predicted."""

    kernel: str
    design: str
    teardown: str
    queued_writer: bool
    measured: TeardownVerdict
    predicted: TeardownVerdict
    decided_by: tuple[Change, ...] = ()
    """The changes of Linux that gave the design the rules which the prediction asked for."""
    note: str = ""
    """What is not known of the kernel."""
    beside: tuple[str, ...] = ()
    """Who was there beside the teardown, where it was not the usual readers and writer."""
    period_ns: int = 0
    """The time from one operation of a bystander to its next, 0 where they come with the hold."""

    @property
    def bystanders(self) -> tuple[str, ...]:
        """Who was there beside the teardown."""
        if self.beside:
            return self.beside
        return (*READERS, WRITER) if self.queued_writer else READERS

    @property
    def seen(self) -> bool:
        """Whether the kernel showed its lock; else the bystanders' stalls alone are compared."""
        return self.measured.seen

    @property
    def timed(self) -> bool:
        """Whether the teardown lasted long enough for each bystander to come while it did."""
        return self.measured.lasted_ns >= self.period_ns

    @property
    def modes(self) -> bool:
        """Whether the lock was held in the predicted modes, one after the other."""
        return phases(self.measured) == phases(self.predicted)

    @property
    def waits(self) -> bool:
        """Whether those waited who were predicted to, behind the predicted ones."""
        return waiting(self.measured) == waiting(self.predicted)

    @property
    def ratios(self) -> bool:
        """Whether each wait is as long as predicted, as a share of the teardown."""
        return self.worst_difference <= TOLERANCE

    @property
    def worst_difference(self) -> float:
        """The greatest difference between a measured and a predicted wait, as such a share."""
        both = (self.measured, self.predicted)
        return max(abs(both[0].ratio(name) - both[1].ratio(name)) for name in self.bystanders)

    @property
    def agrees(self) -> bool | None:
        """Whether the design does what the kernel does; None where not seen or not judged.

        A stall that no design of this kind predicts is a disagreement, seen lock or not; so are
        other modes, however short the hold.
        """
        if self.seen and not self.modes:
            return False
        if not self.timed:
            return None
        if not self.seen:
            return None if self.ratios else False
        return self.waits and self.ratios

    def to_json(self) -> dict[str, object]:
        """Return the row as plain values."""
        return {
            "kernel": self.kernel,
            "design": self.design,
            "teardown": self.teardown,
            "queued_writer": self.queued_writer,
            "bystanders": list(self.bystanders),
            "agrees": self.agrees,
            "seen": self.seen,
            "timed": self.timed,
            "worst_difference": round(self.worst_difference, 4),
            "measured": _plain(self.measured, self.bystanders),
            "predicted": _plain(self.predicted, self.bystanders),
            "decided_by": [change.to_json() for change in self.decided_by],
            "note": self.note or None,
        }


def _plain(seen: TeardownVerdict, names: tuple[str, ...]) -> dict[str, object]:
    return {
        "modes": phases(seen),
        "hold_ns": seen.hold_ns,
        "waits": waiting(seen),
        "ratios": {name: round(seen.ratio(name), 4) for name in names},
    }


def phases(seen: TeardownVerdict) -> list[str]:
    """Return the modes of a teardown, each as often as it changed."""
    return [mode for mode, _ in groupby(seen.modes)]


def waiting(seen: TeardownVerdict) -> dict[str, list[str]]:
    """Return who waited behind whom, without an order among those waited for."""
    return {name: sorted(behind) for name, behind in sorted(seen.waits.items())}


def compare(
    release: str,
    kernel: str,
    teardown: str,
    queued_writer: bool,
    measured: TeardownVerdict,
    period_ns: int,
    told: Design | None = None,
    cpus: int = 8,
    beside: tuple[str, ...] = (),
) -> Agreement:
    """Lay a kernel's verdict beside that of the design which stands for its release.

    `beside`: who was there from the teardown's begin on, where it was not the usual readers (and
    writer), who come every `period_ns`.

    Predicted is what `cpus` CPUs do when bystanders come as they came to the kernel.
    `told` is the design instead: a release can't say which patches are in it.
    """
    stand_in = StandIn(told) if told else design_of(release)
    design = observe(stand_in.design)
    bystanders = beside or ((*READERS, WRITER) if queued_writer else READERS)
    whole_ns = measured.lasted_ns
    share = period_ns / whole_ns if whole_ns else 0.005
    arrivals = (
        {name: at / whole_ns for name, at in measured.arrivals_ns.items()} if whole_ns else {}
    )
    predicted = predict(
        design, teardown, bystanders, period_share=share, cpus=cpus, arrivals=arrivals
    )
    return Agreement(
        kernel, design.name, teardown, queued_writer, measured, predicted,
        tuple(deciding(stand_in.design, rules_read(design))), stand_in.note, beside,
        0 if beside else period_ns,
    )  # fmt: skip


HUNG_BYSTANDERS = ("fault", "proc", "madvise", "gup", "mmap")
"""Who stands beside a munmap that takes many times the hung-task timeout."""


_COMM = {"ps": "proc", "munmap": "zap"}
"""What the guest's tasks are called that have another name in a simulation."""


@dataclass(frozen=True, slots=True)
class HungTasks:
    """Whom khungtaskd reported beside a long munmap with a queued writer, and whom the model did.

    The messages are those of the first task that both reported, "" where there is none;
    `other_lines` are how the messages of all of them differ, as of unified diffs.
    """

    kernel: str
    design: str
    measured: tuple[str, ...]
    predicted: tuple[str, ...]
    measured_message: str = ""
    predicted_message: str = ""
    other_lines: tuple[str, ...] = ()
    in_between: tuple[str, ...] = ()
    """What no kernel says: who queues between a task and the reader that it waits for."""

    @property
    def agrees(self) -> bool:
        """Whether both reported the same tasks."""
        return self.measured == self.predicted

    def to_json(self) -> dict[str, object]:
        """Return it as plain values."""
        return {
            "kernel": self.kernel,
            "design": self.design,
            "agrees": self.agrees,
            "measured": list(self.measured),
            "predicted": list(self.predicted),
            "other_lines": list(self.other_lines),
            "in_between": list(self.in_between),
        }


def compare_hung(
    release: str, kernel: str, messages: list[str], told: Design | None = None
) -> HungTasks:
    """Lay a guest's hung-task messages beside those of the design that stands for its release."""
    design = told or design_of(release).design
    experiment = SimulatedExperiment(
        80 << 30, bystanders=HUNG_BYSTANDERS, hung_task_timeout_ns=10**9
    )
    simulated = run(design, experiment, load(DEFAULT))
    waits = {wait.name: wait for wait in simulated.long_waits}
    seen = analyse(simulated.events, design.kernel)
    said = {text.split()[2].rsplit(":", 1)[0]: text for text in messages}
    waits = {_comm(name): wait for name, wait in waits.items()}
    both = sorted(set(waits) & set(said))
    texts = {name: _in_its_words(waits[name], said[name], design, seen) for name in both}
    other = [line for name in both for line in _differing(said[name], texts[name])]
    return HungTasks(
        kernel,
        design.name,
        tuple(sorted(said)),
        tuple(sorted(waits)),
        said[both[0]] if both else "",
        texts[both[0]] if both else "",
        tuple(other),
        tuple(filter(None, (_in_between(wait, seen) for wait in waits.values()))),
    )


def _in_its_words(wait: LongWait, said: str, design: Design, seen: Analysis) -> str:
    """Write the model's message about the task that a kernel's own is about."""
    return message(wait, 10**9, design.kernel, task_in(said), _blocker(wait, seen))


def _in_between(wait: LongWait, seen: Analysis) -> str:
    found = _blocker(wait, seen)
    return in_between(wait, found) if found else ""


def _blocker(wait: LongWait, seen: Analysis) -> Blocker | None:
    """Find who had the lock when the detector would have looked."""
    found = blocker(seen, wait.tid, wait.asked_ns + 10**9)
    if found is None:
        return None
    return replace(found, holder=replace(found.holder, name=_comm(found.holder.name)))


def _comm(name: str) -> str:
    return _COMM.get(name, name)


def _differing(said: str, predicted: str) -> list[str]:
    both = comparable(said), comparable(predicted)
    lines = unified_diff(*both, lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]
