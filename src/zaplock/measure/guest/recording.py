"""A guest's trace as an ordinary recording: the same decoder, the same file, the same views.

The capsule brings the format files of the guest's kernel, so its pages are decoded by its own
layouts. Names come from the guest too: this machine's /proc knows nothing of its tasks.
"""

from __future__ import annotations

from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest.capsule import Capsule, CapsuleError
from zaplock.measure.guest.experiment import GuestRun, arguments
from zaplock.recorder import rwsem_probes
from zaplock.recorder.buffers import Chunk
from zaplock.recorder.decode import Columns, Decoder
from zaplock.recorder.graph_calls import FUNCTION_GRAPH, GraphCalls, TracedFunctions
from zaplock.recorder.layouts import Layouts, layouts_told
from zaplock.recorder.lock_events import KPROBES, TRACEPOINTS
from zaplock.recorder.naming import TaskNames
from zaplock.recorder.stream import Stream
from zaplock.system_calls import TRACED_NAMES
from zaplock.trace import recording_file
from zaplock.trace.events import EventKind, Events, RecordedTask
from zaplock.trace.quota_readings import QuotaReading, QuotaRows
from zaplock.untrusted_names import visible

_END_OF_TIME = 1 << 62
_MOST_US = 1 << 50
_WRITERS = [one.name for one in rwsem_probes.FUNCTIONS if one.asks and one.write]


class _GuestNames(TaskNames):
    """Names of another kernel's tasks: from the capsule and the trace, never from /proc here."""

    def complete(self, columns: Columns) -> None:
        self._own(columns)


_SYSTEMS = {TRACEPOINTS: "mmap_lock", KPROBES: rwsem_probes.GROUP, FUNCTION_GRAPH: "ftrace"}
"""The trace system, or how its name begins, that lock events of each way are in."""
NOT_SEEN = ""
"""Where a run's lock events come from, if from nowhere."""


def lock_events(capsule: Capsule) -> tuple[str, ...]:
    """Name the ways in which a run's lock events were recorded, the better first."""
    systems = {event.partition(":")[0] for event in enabled(capsule)}
    return tuple(
        way for way, system in _SYSTEMS.items() if any(s.startswith(system) for s in systems)
    )


def events(capsule: Capsule, by: str = "") -> Events:
    """Decode the trace of a capsule, its lock events in one way (where it has several).

    Raises CapsuleError where it is none of a kernel's, UserError where probes missed calls.
    """
    try:
        return _decoded(capsule, by or next(iter(lock_events(capsule)), NOT_SEEN))
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # a guest's kernel may lay out and send anything whatsoever
        raise CapsuleError(f"its trace: {type(error).__name__}: {error}") from None


def _decoded(capsule: Capsule, by: str) -> Events:
    layouts = _layouts(capsule, by)
    names = _names(capsule)
    chunks = [(_cpu(name), pages) for name, pages in sorted(capsule.files("pages/").items())]
    semaphores = _semaphores(capsule, layouts, chunks) if by == KPROBES else set[int]()
    graph = _graph_calls(capsule) if by == FUNCTION_GRAPH else None
    stream = Stream(layouts, names, semaphores=semaphores, graph=graph)
    columns = stream.feed(chunks, _END_OF_TIME)
    found = Events(columns, TRACED_NAMES, names.tasks, names.mms)
    found.check()
    if stream.probes and stream.probes.unanswered:
        raise UserError(
            f"the kernel missed {stream.probes.unanswered} returns of the rwsem's functions (too "
            "many tasks waited for its return probes), so holds can't be trusted: "
            "leave bystanders away"
        )
    if graph and graph.unanswered:
        raise UserError(
            f"{graph.unanswered} releases of the mmap_lock have no call before them that took it "
            "(this kernel takes it in functions that can't be traced), so holds can't be trusted: "
            "build it with CONFIG_KPROBE_EVENTS"
        )
    return found


def _graph_calls(capsule: Capsule) -> GraphCalls:
    """Follow the target's threads and the foreign readers in function_graph."""
    pid = capsule.fact("target_pid")
    functions = TracedFunctions.told(capsule.lines("graph_functions"))
    own = {pid, *(lane.tid for lane in capsule.lanes if lane.pid == pid)}
    return GraphCalls(functions, own, {lane.tid for lane in capsule.lanes} - own)


def _semaphores(capsule: Capsule, layouts: Layouts, chunks: list[Chunk]) -> set[int]:
    """Find the target's mmap_lock: the one semaphore that it asks for exclusively in its brk(2)."""
    decoder = Decoder(layouts)
    parts = [decoder.decode(pages, cpu).columns for cpu, pages in chunks]
    begin_ns, end_ns = capsule.fact("brk_begin_ns"), capsule.fact("brk_end_ns")
    found: set[int] = set()
    for columns in parts:
        inside = (columns["time_ns"] >= begin_ns) & (columns["time_ns"] <= end_ns)
        asked = (columns["kind"] == EventKind.ASKED) & (columns["write"] == 1)
        own = columns["tid"] == capsule.fact("target_pid")
        found.update(columns["mm"][inside & asked & own].tolist())
    if len(found) != 1:
        raise UserError(
            f"the target's mmap_lock can't be told from other semaphores ({len(found)} seen in its "
            f"brk): this kernel probably calls none of {', '.join(_WRITERS)} there; see 'zaplock "
            "fidelity --help'"
        )
    return found


def require_told(run: GuestRun, by: str = "") -> None:
    """Raise UserError where the way of a run's lock events can't tell the locks of its teardown."""
    way = by or next(iter(lock_events(run.capsule)), NOT_SEEN)
    if way == FUNCTION_GRAPH and run.plan.teardown == "exit":
        raise UserError(
            f"{FUNCTION_GRAPH} can't tell an exit's mmap_lock from other semaphores: "
            "leave out exit, or give a kernel with CONFIG_KPROBE_EVENTS"
        )


def write(path: str | Path, run: GuestRun) -> None:
    """Write a run as a recording. Two exact runs of one plan write the same bytes."""
    require_told(run)
    happened = events(run.capsule)
    recording_file.write(path, happened, manifest(run, happened), quotas=quota_rows(run))


def quota_rows(run: GuestRun) -> QuotaRows:
    """Return what the target's cgroup accounted, none where it had no quota."""
    limit, group = run.plan.cpu_max, "/zap"
    if limit is None:
        return (), {}
    try:
        told = [[int(one) for one in line.split()] for line in run.capsule.lines("quota")]
        readings = tuple(
            QuotaReading(time_ns, group, limit.quota_ns, limit.period_ns, us * 1000, count)
            for time_ns, us, count in told
            if 0 <= us < _MOST_US
        )
    except ValueError as error:
        raise CapsuleError(f"its quota's account: {error}") from None
    return readings, {run.capsule.fact("target_pid"): (group,)}


def manifest(run: GuestRun, happened: Events) -> recording_file.Manifest:
    """Say where a recording comes from, without anything that changes from run to run."""
    lost = happened["length"][happened["kind"] == EventKind.LOST]
    facts = run.capsule.facts
    clock = "instruction-counted" if run.plan.exact else "emulated or virtual"
    return recording_file.Manifest(
        kernel=facts["release"],
        machine=f"QEMU guest, {facts['nr_cpus']} CPUs, {clock} time",
        cpus=int(facts["nr_cpus"]),
        target=f"zap ({facts['target_pid']})",
        command_line=tuple(arguments(run.plan)),
        enabled=enabled(run.capsule),
        lost_events=int(lost[lost >= 0].sum()),
        unknown_losses=int((lost < 0).sum()),
        complete=True,
        notes=(f"{run.plan.kernel}: {facts['version']}",),
    )


def enabled(capsule: Capsule) -> tuple[str, ...]:
    """List the trace events that were on, as system:name."""
    formats = [name.split("/") for name in capsule.files("events/") if name.endswith("/format")]
    return tuple(f"{system}:{event}" for _, system, event, _ in formats)


def _layouts(capsule: Capsule, by: str) -> Layouts:
    def told(name: str) -> str | None:
        record = f"events/{name}"
        return capsule.text(record) if record in capsule.records else None

    others = tuple(system for way, system in _SYSTEMS.items() if way != by)
    return layouts_told(told, tuple(one for one in enabled(capsule) if not one.startswith(others)))


def _names(capsule: Capsule) -> TaskNames:
    names = _GuestNames()
    listed = [line.split(maxsplit=2) for line in capsule.text("tasks").splitlines()]
    process = {pid: visible(comm) for pid, tid, comm in listed if pid == tid}
    for pid, tid, comm in ((pid, tid, visible(comm)) for pid, tid, comm in listed):
        names.tasks[int(tid)] = RecordedTask(int(tid), comm, int(pid), process.get(pid, comm))
    return names


def _cpu(record: str) -> int:
    return int(record.removeprefix("pages/cpu"))
