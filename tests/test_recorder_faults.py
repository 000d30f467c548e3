"""What goes wrong while recording: CPUs that come and go, meddlers, containers, too little of it.

Every recording opens or says in one line why there is none; nothing is left switched on; what was
not seen is a gap.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import RUNS
from processes import sleeper

from zaplock.errors import UserError
from zaplock.recorder import targets
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.capturing import capturing
from zaplock.recorder.in_memory import record_mm
from zaplock.recorder.instances_ahead import Ahead
from zaplock.recorder.layouts import Layouts
from zaplock.recorder.meddling import Guard
from zaplock.recorder.options import Options
from zaplock.recorder.scheduling import going_first, import_numpy
from zaplock.recorder.session import _disk_trouble, record_to
from zaplock.recorder.stack_sampler import StackSampler, Wanted
from zaplock.recorder.switch_off import Closing
from zaplock.recorder.tracefs import Instance, LeftOver, left_over, opened, sweep
from zaplock.trace import recording_file
from zaplock.trace.events import EventKind
from zaplock.trace.gaps import segments

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root"),
]
ME = os.getpid()
SOURCE = str(Path(__file__).parent.parent / "src")
SECOND_CPU = Path("/sys/devices/system/cpu/cpu1/online")


def mine() -> list[str]:
    with opened() as tracefs:
        found = (tracefs.path / "instances").glob(f"zaplock-*-*-{ME}-*-*")
        return sorted(path.name for path in found)


@contextlib.contextmanager
def second_cpu_off() -> Iterator[None]:
    if not SECOND_CPU.exists():
        pytest.skip("this machine has no second CPU that can be switched off")
    SECOND_CPU.write_text("0")
    try:
        yield
    finally:
        SECOND_CPU.write_text("1")


@pytest.mark.takes_cpus
def test_a_cpu_may_be_off_at_the_start_and_come_later() -> None:
    with second_cpu_off(), capturing(Options(pids=(ME,))) as capture:
        capture.start()
        SECOND_CPU.write_text("1")
        capture.buffers.drain()
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {1})
        Path("/proc/self/smaps_rollup").read_bytes()
        os.sched_setaffinity(0, before)
        assert {cpu for cpu, _ in capture.buffers.drain()} >= {1}
    assert mine() == []


def on_cpu_1(seconds: float) -> None:
    """Take and release our mmap_lock there, if it is there."""
    with contextlib.suppress(OSError):  # it is off
        os.sched_setaffinity(0, {1})
    end = time.monotonic() + seconds
    while True:  # once, however late it gets there
        Path("/proc/self/smaps_rollup").read_bytes()
        if time.monotonic() >= end:
            return


@pytest.mark.takes_cpus
def test_a_cpu_may_go_in_the_middle_and_come_back(tmp_path: Path) -> None:
    """Nothing that it had recorded is lost by that, and no gap is told where there is none."""
    story = iter(["on", "off", "on", "end"])
    switched_ns: list[int] = []

    def ended() -> bool:
        state = next(story)
        if state == "off":
            SECOND_CPU.write_text("0")
            switched_ns.append(time.monotonic_ns())
        elif switched_ns:
            SECOND_CPU.write_text("1")
            switched_ns.append(time.monotonic_ns())
        on_cpu_1(0.25)
        return state == "end"

    before = os.sched_getaffinity(0)
    path = tmp_path / "a.zaplock"
    with second_cpu_off():  # it is put back, whatever happens
        SECOND_CPU.write_text("1")
        try:
            record_to(path, Options(pids=(ME,), groups=("mmap_lock",)), ended=ended)
        finally:
            os.sched_setaffinity(0, before)
    read = recording_file.read(path)
    assert (read.caveats, read.manifest.lost_events, read.manifest.notes) == ((), 0, ())
    times = read.events["time_ns"][(read.events["cpu"] == 1) & (read.events["tid"] == ME)]
    assert (times < switched_ns[0]).any(), "what it had recorded before it went"
    assert (times > switched_ns[1]).any(), "what it recorded when it was back"
    assert mine() == []


@pytest.mark.takes_cpus
def test_a_cpu_that_went_and_came_back_has_stacks_again() -> None:
    sampler, before = StackSampler(Wanted({})), os.sched_getaffinity(0)
    deadline = time.monotonic() + 250
    try:
        sampler.start()
        with second_cpu_off():
            os.sched_setaffinity(0, before - {1})
            wait_until(lambda: 1 not in sampler.cpus, deadline)
            sampler.follow("", "")  # a target may call exec meanwhile
            assert 1 not in sampler.cpus
        wait_until(lambda: 1 in sampler.cpus, deadline)
        os.sched_setaffinity(0, {1})
        back_ns = time.monotonic_ns()
        wait_until(
            lambda: any(one.tid == ME and one.time_ns > back_ns for one in sampler.take()[0]),
            deadline,
        )
    finally:
        os.sched_setaffinity(0, before)
        sampler.close()


def wait_until(condition: Callable[[], bool], deadline: float) -> None:
    """Ask again and again, which keeps this CPU busy."""
    while not condition():
        assert time.monotonic() < deadline


def a_poller(name: str, seconds: float) -> subprocess.Popen[bytes]:
    """Start a monitor that reads every file of our instances, again and again.

    Not of others: opening free_buffer and closing it takes away what a buffer has.
    """
    with opened() as tracefs:
        script = (
            "import os, sys, time\n"
            "end = time.monotonic() + float(sys.argv[2])\n"
            "print('on', flush=True)\n"
            "while time.monotonic() < end:\n"
            "    for root, _, names in os.walk(sys.argv[1]):\n"
            f"        if 'zaplock-' in root and '-{ME}-' in root and '/events' not in root:\n"
            "            for name in names:\n"
            "                try:\n"
            "                    f = os.open(f'{root}/{name}', os.O_RDONLY | os.O_NONBLOCK)\n"
            "                    os.close(f)\n"
            "                except OSError:\n"
            "                    pass\n"
        )
        command = [sys.executable, "-c", script, str(tracefs.path / "instances"), str(seconds)]
        poller = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert poller.stdout is not None
    poller.stdout.readline()
    return poller


def test_a_monitor_that_reads_all_of_tracefs_disturbs_nothing() -> None:
    poller = a_poller("all", 6)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(12):
                with record_mm(ME, buffer_kb=64):
                    pass
    finally:
        poller.kill()
        poller.wait()
    assert mine() == []


def test_a_buffer_that_somebody_empties_at_once_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever opens free_buffer and closes it, or writes to trace, takes what stands there."""
    seen_soon, emptied = targets._seen_soon, 0

    def late(
        buffers: Buffers, layouts: Layouts, reader: targets._Reader, field: str
    ) -> dict[int, int]:
        nonlocal emptied
        if emptied < 2:
            emptied += 1
            assert reader.done.wait()
            for name in mine():
                with opened() as tracefs:
                    (tracefs.path / "instances" / name / "trace").write_text("")
        return seen_soon(buffers, layouts, reader, field)

    with opened() as tracefs:
        known = targets.learn_mm(tracefs, ME).mm
        monkeypatch.setattr(targets, "_seen_soon", late)
        assert targets.learn_mm(tracefs, ME).mm == known
    assert emptied == 2


def test_a_buffer_that_is_emptied_between_two_locks_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, kept = targets._asked, [slice(1), slice(1, 2)]

    def half(*arguments: Any) -> dict[int, int]:
        found = list(asked(*arguments).items())
        return dict(found[kept.pop()] if kept else found)

    with opened() as tracefs, sleeper() as other:
        known = targets.learn_mm(tracefs, other.pid).mm
        monkeypatch.setattr(targets, "_asked", half)
        assert targets.learn_mm(tracefs, other.pid).mm == known
    assert not kept


def test_an_instance_that_stays_open_is_off_told_and_goes_with_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zaplock.recorder.tracefs._PATIENCE_S", 0.1)
    with opened() as tracefs:
        instance = Instance(tracefs, buffer_kb=64)
        instance.enable("mmap_lock:mmap_lock_released")
        instance.start()
        held = os.open(instance.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            with pytest.warns(LeftOver, match="the next start of zaplock removes it"):
                instance.remove()
            assert instance.read("tracing_on") == "0\n"
            assert instance.read("events/enable") == "0\n"
            sweep(tracefs)
            assert instance.path.exists()
        finally:
            os.close(held)
        sweep(tracefs)
        assert not instance.path.exists()
    assert mine() == []


def test_that_all_stacks_were_lost_is_told() -> None:
    with (
        sleeper() as other,
        record_mm(other.pid, events=("mmap_lock",), kernel_stacks=True) as recorder,
    ):
        sampler = recorder._capture.sampler
        if sampler is None:
            pytest.skip("this kernel gives no stacks")
        recorder.stop()
        sampler.lost = 3
        stacks = recorder.stacks()
        assert stacks is not None
        assert len(stacks) == 0
        assert "3 stacks were lost: the machine was busy" in recorder.notes


# ---- made ahead, taken away early


def test_instances_made_ahead_are_taken_and_what_is_not_taken_is_gone() -> None:
    with Ahead(2) as ahead:
        one = ahead.take()
        assert one
        assert one.name in mine()
        assert len(mine()) == 2
    assert mine() == [one.name]
    one.remove()
    with Ahead(1) as ahead, capturing(Options(pids=(ME,)), ahead) as capture:
        assert [instance.name for instance in capture.instances] == mine()
        assert len(mine()) == 2
    assert mine() == []


def test_whoever_goes_first_does_not_while_instances_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel's workers on this CPU have a part in it, and are ordinary threads."""
    me, policies = threading.get_native_id(), []

    def made(*arguments: object, **more: object) -> Instance:
        policies.append((os.sched_getscheduler(me), os.sched_getscheduler(0)))
        return Instance(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("zaplock.recorder.instances_ahead.Instance", made)
    with going_first():
        first = os.sched_getscheduler(0)
        if first == os.SCHED_OTHER:
            pytest.skip("real-time threads are not allowed here")
        with Ahead(1) as ahead:
            one = ahead.take()
            assert one
            one.remove()
            assert os.sched_getscheduler(0) == first
    assert policies == [(os.SCHED_OTHER, os.SCHED_RR)]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_what_is_set_while_we_get_ready_is_not_so_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recorded command has the user's environment, and the recorder's threads Python's turns."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    import_numpy()
    assert os.environ["OPENBLAS_NUM_THREADS"] == "3"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    import_numpy()
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    usual = sys.getswitchinterval()
    with Ahead(1) as ahead:
        one = ahead.take()
        assert one
        one.remove()
        assert sys.getswitchinterval() == usual


def test_an_interrupt_while_numpy_is_imported_comes_after_it() -> None:
    """Broken off in its own code it would be an ImportError."""
    program = """if True:
        import importlib.abc, signal, sys
        from zaplock.recorder.scheduling import import_numpy

        class Interrupting(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name == "datetime":
                    signal.raise_signal(signal.SIGINT)

        sys.modules.pop("datetime", None)
        sys.meta_path.insert(0, Interrupting())
        try:
            import_numpy()
        except KeyboardInterrupt:
            print("interrupted with", sys.modules["numpy"].__name__)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted with numpy\n", "")


def test_an_instance_that_cannot_be_made_ahead_is_told_by_who_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise UserError("the kernel has no memory for a trace instance")

    monkeypatch.setattr("zaplock.recorder.instances_ahead.Instance", refused)
    with Ahead(2) as ahead, capturing(Options(groups=("mmap_lock",)), ahead) as capture:
        assert len(capture.instances) == 1
    assert mine() == []


def test_what_is_taken_away_before_the_end_is_gone_by_the_end() -> None:
    with capturing(Options(pids=(ME,), buffer_kb=64, kernel_stacks=True)) as capture:
        capture.start()
        capture.stop()
        capture.clear()
    assert mine() == []


def test_a_signal_as_the_taking_away_begins_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = list[str]()

    def begins_late(thread: threading.Thread) -> None:
        thread.start()
        signal.raise_signal(signal.SIGINT)

    def slowly() -> None:
        time.sleep(0.2)
        gone.append("all")

    monkeypatch.setattr("zaplock.recorder.switch_off.start_first", begins_late)

    def closed() -> None:
        with Closing() as closing:
            closing.stack.callback(slowly)
            closing.begin()

    with pytest.raises(KeyboardInterrupt):
        closed()
    assert gone == ["all"]


# ---- meddlers


MEDDLING = {
    "tracing off": ("tracing_on", "0", "tracing was switched off"),
    "clock changed": ("trace_clock", "boot", "the clock was changed to boot"),
    "events off": ("events/enable", "0", "events were disabled"),
    "filter changed": ("events/mmap_lock/mmap_lock_released/filter", "mm == 1", "filters were"),
    "buffers cleared": ("trace", "", "the buffers were cleared"),
}


@pytest.mark.parametrize("how", MEDDLING)
def test_what_others_switch_off_is_a_gap_and_on_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text, told = MEDDLING[how]
    state: dict[str, float] = {}
    check = Guard.check

    def noticed(guard: Guard, *, now: bool = False) -> tuple[int, int] | None:
        gap = check(guard, now=now)
        if gap:
            state.setdefault("mended", time.monotonic())
        return gap

    monkeypatch.setattr(Guard, "check", noticed)

    def ended() -> bool:
        now = time.monotonic()
        begun = state.setdefault("begun", now)
        Path("/proc/self/smaps_rollup").read_bytes()
        if now - begun > 0.9 and "meddled" not in state:
            with opened() as tracefs:
                mask = os.umask(0)
                os.umask(mask)
                for one in mine():
                    path = tracefs.path / "instances" / one / name
                    path.write_text(text)
            state["meddled"] = time.monotonic()
        return now - state.get("mended", now) > 0.3 or now - begun > 250

    progress = record_to(tmp_path / "a.zaplock", Options(pids=(ME,), buffer_kb=512), ended=ended)
    assert any(told in note for note in progress.notes), progress.notes
    recording = recording_file.read(tmp_path / "a.zaplock")
    lost = np.flatnonzero(recording.events["kind"] == EventKind.LOST)
    assert len(lost), "no gap"
    meddled_ns = int(state["meddled"] * 1e9)
    gaps = [recording.events[name][lost].tolist() for name in ("detail", "time_ns")]
    around = [until for since, until in zip(*gaps) if since <= meddled_ns <= until]
    assert around, (meddled_ns, gaps, progress.notes)
    until_ns = around[0]
    about = recording.manifest
    assert segments(recording.events, (about.started_ns, about.ended_ns)).lost_events
    after = recording.events["kind"][recording.events["time_ns"] > until_ns]
    assert (after == EventKind.RELEASED).any(), "what was switched off did not come on again"
    assert any(told in note for note in about.notes)


def test_in_memory_too_what_was_switched_off_is_a_gap() -> None:
    with record_mm(ME, buffer_kb=512) as recorder:
        time.sleep(0.6)
        with opened() as tracefs:
            for one in mine():
                (tracefs.path / "instances" / one / "tracing_on").write_text("0")
    assert (recorder.events()["kind"] == EventKind.LOST).any()


# ---- containers


def in_a_container(code: str) -> str:
    """Run Python in a pid namespace of its own, whose /proc shows nobody else."""
    command = ["unshare", "-pf", "--mount-proc", sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": SOURCE})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


LOOK = """
from zaplock.recorder.tracefs import left_over, opened, sweep
with opened() as tracefs:
    print(left_over(tracefs), sweep(tracefs))
"""


def test_a_container_touches_no_recorder_of_the_host() -> None:
    with opened() as tracefs, Instance(tracefs, buffer_kb=64) as instance:
        instance.start()
        assert instance.name not in in_a_container(LOOK)
        assert instance.read("tracing_on") == "1\n"


def recording(where: Sequence[str], path: Path, seconds: int) -> subprocess.Popen[str]:
    """Start a recorder of the whole system behind a command, such as unshare."""
    command = [*where, sys.executable, "-P", "-m", "zaplock", "record", "-d", f"{seconds}s"]
    return subprocess.Popen(
        [*command, "-o", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCE},
    )


class Mapper(threading.Thread):
    """Maps and unmaps a page every 20 ms, and keeps when, by the clock of the recorders."""

    def __init__(self) -> None:
        super().__init__(name="mapper")
        self.spans_ns: list[tuple[int, int]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.02):
            begin_ns = time.monotonic_ns()
            mmap.mmap(-1, 4096).close()
            self.spans_ns.append((begin_ns, time.monotonic_ns()))

    def __enter__(self) -> Mapper:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.join()


def test_recorders_on_the_host_and_in_containers_leave_each_other_whole(tmp_path: Path) -> None:
    """One container has the host's pids, and records; one has its own, and says why it doesn't."""
    seconds = int(os.environ.get("ZAPLOCK_BOTH_SECONDS", "2"))
    places = {"host": [], "container": ["unshare", "--mount", "--uts", "--ipc", "--net"]}
    with Mapper() as mapper:
        both = {name: recording(where, tmp_path / name, seconds) for name, where in places.items()}
        refused = recording(["unshare", "-pf", "--mount-proc"], tmp_path / "refused", 1)
        assert "this is a container (a PID namespace)" in refused.communicate()[0]
        assert refused.returncode == 2
        for recorder in both.values():
            said = recorder.communicate()[0]
            assert recorder.returncode == 0, said
    for name in both:
        kept = recording_file.read(tmp_path / name)
        about = kept.manifest
        assert about.complete, name
        assert (about.lost_events, about.unknown_losses) == (0, 0), name
        assert not kept.caveats, name
        assert about.ended_ns - about.started_ns > 0.9e9 * seconds
        seen_ns = kept.events["time_ns"][kept.events["tid"] == mapper.native_id]
        meanwhile = [
            (begin_ns, end_ns)
            for begin_ns, end_ns in mapper.spans_ns
            if about.started_ns < begin_ns and end_ns < about.ended_ns
        ]
        assert len(meanwhile) > seconds
        for begin_ns, end_ns in meanwhile:
            assert ((begin_ns < seen_ns) & (seen_ns < end_ns)).any(), f"{name} missed {begin_ns}"


def test_the_host_touches_no_recorder_in_a_container() -> None:
    """The container's dies here; whether its owner lives isn't seen outside, so it is only told."""
    name = in_a_container(
        "import os\n"
        "from zaplock.recorder.tracefs import Instance, opened\n"
        "with opened() as tracefs:\n"
        "    print(Instance(tracefs, buffer_kb=64).name, flush=True)\n"
        "    os._exit(0)\n"
    ).strip()
    with opened() as tracefs:
        path, patience = tracefs.path / "instances" / name, time.monotonic() + 250
        try:
            gone, unknown = left_over(tracefs)
            while name not in unknown and path.exists() and time.monotonic() < patience:
                gone, unknown = left_over(tracefs)  # somebody else looks at it, under its lock
            # A later container of the same number may sweep it: then that one of its owner is gone.
            assert name in unknown or not path.exists()
            assert name not in gone
            assert name not in sweep(tracefs)
        finally:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir()


def test_a_lock_dies_with_its_process() -> None:
    script = (
        "import os\n"
        "from zaplock.recorder.tracefs import Instance, opened\n"
        "with opened() as tracefs:\n"
        "    print(Instance(tracefs, buffer_kb=64).name, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True,
                          env=environment)  # fmt: skip
    with opened() as tracefs:
        sweep(tracefs)  # if another zaplock's start has not done it
        assert not (tracefs.path / "instances" / done.stdout.strip()).exists()


# ---- too little of something


@contextlib.contextmanager
def a_disk_of(path: Path, limit: str) -> Iterator[Path]:
    """Mount a file system that is full after so much."""
    path.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "none", path]).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize(("error", "way_out"), [
    (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
    (OSError(errno.EBUSY, "Device or resource busy"), "zaplock doctor"),
])  # fmt: skip
def test_only_a_full_disk_asks_for_space(error: OSError, way_out: str) -> None:
    said = _disk_trouble(Path("a.zaplock"), error)
    assert way_out in said
    assert ("space" in said) == (error.errno == errno.ENOSPC), said
    assert "what came before is whole" in said


def test_the_disk_may_be_full_at_any_write(tmp_path: Path) -> None:
    """One more page, or one more file, each time: until there is room for all of it."""
    step = 1 if RUNS else 3
    limits = [f"nr_blocks={most}" for most in range(1, 25, step)]
    limits += [f"nr_inodes={most}" for most in range(1, 13, step)]
    ends = Counter(record_on(tmp_path / "disk", limit) for limit in limits)
    assert ends.keys() == {"whole", "refused at the start", "stopped"}
    assert ends["stopped"] >= 4 / step
    assert mine() == []


def record_on(where: Path, limit: str) -> str:
    with a_disk_of(where, limit) as disk:
        path = disk / "a.zaplock"
        told = ""
        try:
            record_to(path, Options(pids=(ME,), buffer_kb=64), ended=lambda: True)
        except UserError as error:
            told = str(error)
        if not told:
            assert recording_file.read(path).caveats == ()
            return "whole"
        assert "free some space" in told
        assert "\n" not in told
        if path.exists():
            assert recording_file.read(path).caveats
            return "stopped"
        assert not list(disk.iterdir())
        return "refused at the start"


def limited(which: int, value: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    def lower() -> None:
        resource.setrlimit(which, (value, value))

    command = [sys.executable, "-P", "-m", "zaplock", *arguments]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=lower,
                          env={**os.environ, "PYTHONPATH": SOURCE})  # fmt: skip


@pytest.mark.parametrize("files", [8, 10, 12, 14, 16, 24])
def test_few_descriptors_are_enough_or_told_in_one_line(files: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    done = limited(resource.RLIMIT_NOFILE, files, "record", "-p", str(ME), "-d", "200ms",
                   "-o", str(path))  # fmt: skip
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or len(done.stderr.splitlines()) == 1, done.stderr
    assert done.returncode == 0 or "ulimit -n" in done.stderr
    if path.exists():
        recording_file.read(path)


@pytest.mark.parametrize("mib", [150, 300, 500, 700])
def test_little_address_space_is_told_in_one_line(mib: int, tmp_path: Path) -> None:
    path = tmp_path / "a.zaplock"
    done = limited(resource.RLIMIT_AS, mib << 20, "record", "-d", "200ms", "-o", str(path))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "ulimit -v" in done.stderr
    assert not path.exists()


def test_no_thread_of_ours_is_left() -> None:
    before = set(threading.enumerate())
    with record_mm(ME, buffer_kb=64):
        pass
    assert set(threading.enumerate()) <= before
