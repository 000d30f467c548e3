"""Replays: the same stalls under the recorded kernel, others under another, or freed otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from scenes import GIB, MS, database

from zaplock import Lab
from zaplock.cli import main
from zaplock.designs import SHIPPED, Cx
from zaplock.designs.linux import linux
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.lab.bystanders import system_call
from zaplock.model.step import SleepStep
from zaplock.replay.other_ways import Way
from zaplock.replay.replay import Replay, recorded_design, replay
from zaplock.trace.analysis import analyse
from zaplock.trace.events import Events
from zaplock.trace.handwritten import Log
from zaplock.trace.recording_file import Manifest, Writer, write
from zaplock.views import replayed as view

PROFILE = profiles.load("e5-2680-rfc")


def recorded(design: str, *bystanders: str, length: int = 2 * GIB) -> Events:
    """Record a simulated database that frees a heap beside bystanders."""
    lab = Lab(design)
    heap = lab.map(length)

    async def frees(cx: Cx) -> None:
        await SleepStep(3 * MS)
        await system_call(cx, "munmap", cx.design.munmap(cx, heap, length), heap, length)
        await SleepStep(3 * MS)

    lab.thread("db", frees)
    for name in bystanders:
        lab.bystander(name)
    return lab.run().events


def replayed(events: Events, kernel: str, *designs: str, ways: list[Way] | None = None) -> Replay:
    chosen = [SHIPPED[name] for name in designs]
    return replay(analyse(events, kernel), PROFILE, designs=chosen, ways=ways or [Way()])


def worst(found: Replay, run: int) -> dict[str, int]:
    """Return the longest wait of each kind in a run, -1 for the recording."""
    of = None if run < 0 else found.runs[run]
    return {kind: found.worst_ns(of, kind) for kind in found.kinds}


@pytest.mark.parametrize("design", ["linux-4.9", "rfc-v6", "linux-5.10", "linux-6.18"])
@pytest.mark.parametrize("beside", [("proc", "fault"), ("proc", "fault", "mmap", "madvise")])
def test_the_recorded_design_gives_the_recorded_waits(design: str, beside: tuple[str, ...]) -> None:
    found = replayed(recorded(design, *beside), design)
    assert len(found.operations) > 8
    for one, stall_ns in zip(found.operations, found.runs[0].stall_ns):
        assert stall_ns == pytest.approx(one.waited_ns, rel=0.03, abs=20_000), one
    alone_ns, shared_ns = found.recorded_holds
    assert found.runs[0].longest_exclusive_ns == pytest.approx(alone_ns, rel=0.03, abs=1_000)
    assert found.runs[0].longest_shared_ns == pytest.approx(shared_ns, rel=0.03, abs=1_000)


def test_a_replay_of_a_recording_without_an_end_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, path, drawn = database(), tmp_path / "db.zaplock", tmp_path / "drawn.svg"
    Writer(path, Manifest(kernel="6.1.0", operations=events.operations)).append(events.columns)
    told = ["replay", str(path), "--design", "rfc-v6", "--free-by", "munmap"]
    assert main([*told, "--json", "--plot", str(drawn)]) == 0
    [caveat, *_] = json.loads(capsys.readouterr().out)["recorded"]["caveats"]
    assert "has no end" in caveat
    assert "has no end" in drawn.read_text()
    assert main(told) == 0
    said = capsys.readouterr().out
    assert caveat in said
    assert f"{path} --design rfc-v6 --free-by munmap --plot replay.svg" in said


def test_under_the_rfc_readers_no_longer_wait() -> None:
    found = replayed(recorded("linux-4.9", "proc", "fault"), "linux-4.9", "rfc-v6")
    assert min(worst(found, 0)[kind] for kind in ("read", "page fault")) > 50 * MS
    assert max(worst(found, 1).values()) < 20_000
    assert found.runs[1].longest_exclusive_ns < 20_000
    assert found.runs[1].longest_shared_ns > 50 * MS


def test_a_queued_writer_makes_them_wait_again_until_faults_lock_their_vma() -> None:
    events = recorded("linux-4.9", "proc", "fault", "mmap")
    found = replayed(events, "linux-4.9", "rfc-v6", "linux-6.18")
    assert worst(found, 1)["mmap"] > 50 * MS
    assert worst(found, 2)["mmap"] > 50 * MS
    assert worst(found, 2)["page fault"] < 20_000


def test_what_took_no_lock_takes_it_under_an_older_kernel() -> None:
    found = replayed(recorded("linux-6.18", "fault", "madvise"), "linux-6.18", "linux-4.9")
    assert max(worst(found, 0).values()) < 20_000
    assert worst(found, 1)["page fault"] > 50 * MS
    assert worst(found, 1)["madvise(MADV_DONTNEED)"] > 50 * MS


def test_both_halves_of_a_downgraded_hold_are_one_without_the_downgrade() -> None:
    found = replayed(database(), "6.18.44", "linux-4.9", "linux-6.1")
    alone_ns, shared_ns = found.recorded_holds
    assert found.runs[1].longest_exclusive_ns == alone_ns + shared_ns
    assert found.runs[2].longest_exclusive_ns == alone_ns
    waits = {one.name: one.waited_ns for one in found.operations}
    assert waits == {"munmap": 0, "mmap": 185 * MS + 4_000, "(not recorded)": 176 * MS + 12_000}
    assert found.fit.sum_error == pytest.approx(0, abs=0.001)


def test_other_ways_of_freeing() -> None:
    ways = [Way(), Way("dontneed"), Way("dontneed-chunks"), Way("munmap-chunks", 64 << 20)]
    found = replayed(recorded("linux-4.9", "mmap"), "linux-4.9", "linux-6.18", ways=ways)
    stalls = {(run.design.name, str(run.way)): found.worst_ns(run, "mmap") for run in found.runs}
    assert stalls["linux-4.9", "munmap"] > 50 * MS
    assert stalls["linux-4.9", "dontneed"] > 50 * MS, "a writer waits for a reader as well"
    assert stalls["linux-6.18", "dontneed"] < 20_000, "MADV_DONTNEED locks its VMA only"
    assert stalls["linux-4.9", "dontneed-chunks:2M"] < MS
    assert stalls["linux-4.9", "munmap-chunks:64M"] < 10 * MS


def test_a_shrinking_heap_and_an_open_wait() -> None:
    log = Log()
    log.task(1, "app", 1)
    log.task(2, "late", 1)
    log.owner(7, 1)
    log.begin(0, tid=1, op="brk", address=1 << 30, length=GIB)
    log.asked(100, tid=1, mm=7, write=True)
    log.acquired(200, tid=1, mm=7, write=True)
    log.downgraded(10_200, tid=1, mm=7)
    log.asked(1 * MS, tid=2, mm=7, write=True)
    log.released(50 * MS, tid=1, mm=7, write=False)
    log.end(50 * MS + 100, tid=1, op="brk")
    found = replayed(log.events(), "6.18", "linux-4.9", "linux-4.18", "linux-4.20")
    alone = [run.longest_exclusive_ns for run in found.runs]
    assert alone == [10_000, 50 * MS - 200, 50 * MS - 200, 10_000]
    dying = replayed(log.events(), "6.18", "linux-6.18-dying", "linux-6.18-cut")
    assert all(run.longest_exclusive_ns <= 10_000 for run in dying.runs), "they unlock themselves"
    open_wait = found.operations[1]
    assert not open_wait.whole
    assert open_wait.waited_ns == 49 * MS + 100
    assert found.fit.operations == 0, "nobody knows how long the last wait would have been"


def test_sentences_are_of_the_figures() -> None:
    found = replayed(database(), "6.18.44", *SHIPPED, ways=[Way(), Way("dontneed")])
    first, second, last = view.sentences(found)
    assert first == (
        "The 185 ms wait of db-alloc (tid 102) in mmap behind munmap of 8 GiB by db-free (tid 101) "
        "would have been 185 ms under linux-4.9 to linux-6.18 and linux-6.18.44 and with dontneed "
        "under linux-4.9 to linux-6.1; under 10 us under linux-6.18-dying and linux-6.18-cut and "
        "with dontneed under linux-6.18 to linux-6.18.44."
    )
    assert second.startswith("The 176 ms wait of ps (tid 200) behind munmap of 8 GiB")
    assert last == (
        "Least is waited under linux-6.18-dying and linux-6.18-cut and with dontneed under "
        "linux-6.18 to linux-6.18.44: under 10 us in all instead of 361 ms."
    )


def test_waits_that_are_alike_are_told_once() -> None:
    log = Log()
    log.task(1, "db", 1)
    log.task(2, "ps", 2)
    log.owner(7, 1)
    for begin in (10 * MS, 20 * MS, 30 * MS):
        log.begin(begin, tid=1, op="munmap", length=4096)
        log.asked(begin + 1, tid=1, mm=7, write=True)
        log.acquired(begin + 2, tid=1, mm=7, write=True)
        log.asked(begin + 3, tid=2, mm=7, write=False)
        log.released(begin + 5 * MS, tid=1, mm=7, write=True)
        log.end(begin + 5 * MS + 1, tid=1, op="munmap")
        log.acquired(begin + 5 * MS + 3, tid=2, mm=7, write=False)
        log.released(begin + 5 * MS + 4, tid=2, mm=7, write=False)
    told, *_ = view.sentences(replayed(log.events(), "4.18", "linux-4.18"))
    assert told.startswith("The 5 ms wait of ps (tid 2) behind munmap of 4 KiB by db (tid 1)")
    assert told.endswith(" The same is true of 2 others of the 3 longest waits.")


def hanging_find() -> Log:
    """A find hangs for 38 s; whoever has the lock took it before anything was recorded."""
    log = Log()
    log.task(1, "db", 1)
    log.task(2, "find", 2)
    log.owner(7, 1)
    log.asked(1 * MS, tid=2, mm=7, write=False)
    log.begin(37_900 * MS, tid=1, op="mmap", length=4096)
    log.asked(37_900 * MS + 1, tid=1, mm=8, write=True)
    log.acquired(37_900 * MS + 2, tid=1, mm=8, write=True)
    log.released(38_000 * MS, tid=1, mm=8, write=True)
    log.end(38_000 * MS + 1, tid=1, op="mmap")
    return log


@pytest.mark.parametrize("known", [False, True])
def test_no_conclusion_where_the_holder_is_not_known(known: bool) -> None:
    """The recorded kernel is the one on which it hung: the others cure nothing."""
    span = (37_900 * MS, 38_001 * MS) if known else None
    analysis = analyse(hanging_find().events(), "6.18", span=span)
    found = replay(analysis, profiles.load(profiles.DEFAULT), designs=[SHIPPED["linux-4.9"]], mm=7)
    first, last = view.sentences(found)
    assert first.startswith("The 38 s wait of find (tid 2)")
    if known:  # a watch: who held the lock before that instant can't be known
        assert first.endswith(
            "is not in the recording, so no replay can tell what it would have been."
        )
        assert any("does not show who held the lock" in line for line in view.remarks(found))
        assert found.to_json()["unknown_holders"]["operations"] == 1
    assert "under linux-4.9" not in first
    assert last == "No conclusion on all waiting: the replay's own error can't be told."
    assert "own error can't be told" in view.fit_sentence(found)


def unlike(found: Replay, share: float) -> Replay:
    """Return the replay with all waits of every run scaled: it is off by so much."""
    runs = (
        replace(run, stall_ns=tuple(int(stall * share) for stall in run.stall_ns))
        for run in found.runs
    )
    return replace(found, runs=tuple(runs))


def test_no_conclusion_beyond_the_replays_own_error() -> None:
    sound = replayed(database(), "6.18.44", "linux-4.9", ways=[Way(), Way("dontneed")])
    assert sound.fit.sound
    off = unlike(sound, 0.42)  # an error of -58 %
    assert not off.fit.sound
    first, *_, last = view.sentences(off)
    assert first.endswith(
        "is 77.7 ms in the replay under linux-6.18.44 itself, so nothing can be told of it under "
        "others."
    )
    assert last == (
        "No conclusion on all waiting: the replay's own error is 58.0 %, more than 20 %."
    )
    assert view.remarks(off)[-1].startswith("WARNING: the replay's own error is 58.0 %")
    assert not off.to_json()["error"]["sound"]


def test_a_gain_below_the_error_is_no_gain() -> None:
    sound = replayed(database(), "6.18.44", "linux-4.9", ways=[Way(), Way("dontneed")])
    base, *others = sound.runs
    # 15 % too much in the replay; another run spares a little less than that.
    wrong = replace(base, stall_ns=tuple(int(1.15 * stall) for stall in base.stall_ns))
    little = [
        replace(run, stall_ns=tuple(int(0.87 * stall) for stall in wrong.stall_ns))
        for run in others
    ]
    found = replace(sound, runs=(wrong, *little))
    assert found.fit.sound
    assert view.best_sentence(found).startswith("No conclusion on all waiting: ")
    assert "own error is 54.2 ms" in view.best_sentence(found)


def test_which_design_a_recording_stands_for() -> None:
    assert recorded_design("4.14.336-generic").design.name == "linux-4.14.336"
    assert recorded_design("4.18 + RFC v6").design.name == "rfc-v6-posted"
    assert recorded_design("linux-5.10").design.name == "linux-5.10"
    with pytest.raises(UserError, match="names no kernel"):
        recorded_design("")


TRACE = """
 db-1 [000] 1.000000: sys_enter_munmap: addr: 0x7f0000000000, len: 0x40000000
 db-1 [000] 1.000001: mmap_lock_start_locking: mm=0000000011111111 write=true
 db-1 [000] 1.000002: mmap_lock_acquire_returned: mm=0000000011111111 write=true success=true
 db-1 [000] 1.000012: mmap_lock_acquire_returned: mm=0000000011111111 write=false success=true
 ps-2 [001] 1.010000: mmap_lock_start_locking: mm=0000000011111111 write=false
 db-1 [000] 1.100000: mmap_lock_released: mm=0000000011111111 write=false
 db-1 [000] 1.100002: sys_exit_munmap: 0x0
 ps-2 [001] 1.100010: mmap_lock_acquire_returned: mm=0000000011111111 write=false success=true
 ps-2 [001] 1.100020: mmap_lock_released: mm=0000000011111111 write=false
"""


@pytest.mark.parametrize("release", ["5.15.167", "6.6.30", "6.12.9"])
def test_a_recording_is_replayed_as_its_own_release(
    release: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "trace.txt", tmp_path / "trace.zaplock"
    text.write_text(f"# os release : {release}\n{TRACE}")
    assert main(["import", str(text), "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["replay", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    base = linux(release)
    assert found["recorded"]["design"] == base.name == f"linux-{release}"
    decided = found["rows"][0]["decided_by"]
    assert "dd2283f2605e" in [row["commit"] for row in decided], "it downgrades"
    asked = {rule for row in decided for rule in row["rules"]}
    assert "rwsem" in asked
    assert ("vma_locks" in asked) == (release != "5.15.167")


def test_the_table_says_which_changes_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path / "db.zaplock", database(), "5.15.0-118-generic")
    assert main(["replay", file, "--design", "linux-4.9"]) == 0
    out = capsys.readouterr().out
    assert "5.15.0-118-generic doesn't tell its stable release: taken with all that 5.15.y" in out
    assert "linux-5.15.y is decided by " in out
    assert "5.11 2f06f702925b" in out, "how the semaphore queues"
    assert "6.4" not in out.partition("is decided by")[2].partition("\n")[0]


def saved(path: Path, events: Events, kernel: str = "6.18.44") -> str:
    write(path, events, Manifest(source="simulation", kernel=kernel))
    return str(path)


def test_the_verb_prints_draws_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = saved(tmp_path / "db.zaplock", database()), tmp_path / "replay.svg"
    assert main(["replay", file, "--design", "linux-4.9", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "The replay's own error, under linux-6.18.44 as recorded: 2 operations waited" in out
    assert "dontneed-chunks:2M" in out
    assert "linux-4.9" in picture.read_text()
    assert main(["replay", file, "--design", "linux-4.9", "--free-by", "munmap", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["design"] for row in found["rows"]] == ["linux-6.18.44", "linux-4.9"]
    assert found["recorded"]["worst_wait_ns"]["mmap"] == 185 * MS + 4_000
    assert abs(found["error"]["sum"]) < 0.001


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--free-by", "hope"], "no way of freeing memory 'hope'; there are munmap"),
        (["--free-by", "munmap:2M"], "has no chunks"),
        (["--free-by", "munmap-chunks:5"], "not a multiple of the page size"),
        (["--free-by", "munmap-chunks:16G"], "would change nothing"),
        (["--design", "linux-9"], "no design 'linux-9'"),
        (["-p", "77"], "process 77 has no lock event here: choose among 100"),
        (["--mm", "0x10"], "no lock event of mm 0x10"),
        (["--mm", "here"], "mm 'here' is no address"),
        (["--plot", "x.gif"], "must end in .svg"),
        (["--profile", "none"], "no profile 'none'"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    file = saved(tmp_path / "db.zaplock", database())
    assert main(["replay", file, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert says in printed.err


def test_a_recording_without_kernel_or_locks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = saved(tmp_path / "unknown.zaplock", database(), kernel="")
    assert main(["replay", unknown]) == 2
    assert "--recorded-under" in capsys.readouterr().err
    options = ["--recorded-under", "linux-6.18", "--design", "linux-6.1"]
    assert main(["replay", unknown, *options]) == 0
    capsys.readouterr()
    events = database()
    ops = {name: column[events["kind"] == 3] for name, column in events.columns.items()}
    empty = saved(tmp_path / "empty.zaplock", replace(events, columns=ops))
    assert main(["replay", empty]) == 2
    assert "no event of an mmap_lock" in capsys.readouterr().err


WORKLOAD = """
import ctypes, os, sys, threading, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
length = int(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.readline()
over, freeing = threading.Event(), threading.Event()
def beside():
    while not over.wait(0.002):
        if freeing.is_set():
            libc.munmap(libc.mmap(None, 4096, 3, 0x22, -1, 0), 4096)
other = threading.Thread(target=beside)
other.start()
for _ in range(3):
    heap = libc.mmap(None, length, 3, 0x22, -1, 0)
    libc.madvise(heap, length, 15)  # MADV_NOHUGEPAGE
    libc.madvise(heap, length, 23)  # MADV_POPULATE_WRITE
    freeing.set()
    time.sleep(0.02)
    for call in sys.argv[2].split(","):
        libc.madvise(heap, length, 4) if call == "dontneed" else libc.munmap(heap, length)
    time.sleep(0.02)
    freeing.clear()
    time.sleep(0.02)
over.set()
other.join()
"""


def really(freed_by: str) -> Events:
    """Record a process that frees 256 MiB three times while a thread of it maps and unmaps."""
    from zaplock.recorder.in_memory import record_mm

    child = subprocess.Popen(
        [sys.executable, "-c", WORKLOAD, str(GIB // 4), freed_by],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        pid = int(child.stdout.readline())
        with record_mm(pid, events=("mmap_lock", "syscalls")) as recorder:
            child.communicate("go\n")
    finally:
        child.kill()
        child.wait()
    assert recorder.lost_events == 0
    return recorder.events()


@pytest.mark.root
@pytest.mark.by_chance
def test_a_real_munmap_beside_an_mmap_caller() -> None:
    """All waits together within 15 %; on a machine of 2 CPUs under load it was 0 to 2 %."""
    found = replayed(really("munmap"), os.uname().release, "linux-4.9")
    munmaps = [one for one in found.operations if one.kind == "munmap" and one.length > GIB // 8]
    assert len(munmaps) == 3
    fit = found.fit
    assert fit.recorded_ns > 10 * MS, "nobody waited: the recording shows nothing"
    assert abs(fit.sum_error) < 0.15, fit
    phases = [one.phases[0] for one in munmaps]
    hold_ns = max(phase.exclusive_ns + phase.shared_ns for phase in phases)
    assert found.runs[1].longest_exclusive_ns == pytest.approx(hold_ns, rel=0.01)


@pytest.mark.root
@pytest.mark.by_chance
def test_the_kernel_does_what_the_replay_says_of_another_way() -> None:
    """MADV_DONTNEED, then munmap: nobody waits for the zap (6.17 on: it locks the VMA only)."""
    release = os.uname().release
    if recorded_design(release).design.dontneed_lock != "vma":
        pytest.skip("this kernel takes the mmap_lock for MADV_DONTNEED")
    told = replayed(really("munmap"), release, ways=[Way(), Way("dontneed")])
    was_ns, would_ns = (run.waited_ns for run in told.runs)
    did = replayed(really("dontneed,munmap"), release)
    is_ns = sum(one.waited_ns for one in did.operations)
    assert would_ns < was_ns / 5
    assert is_ns < was_ns / 2, "a wait or two for a CPU are not the lock's doing"
