"""The rows of `make bench`, each measured in a process of its own.

    python -m bench.rows lock

prints the figures of one row as JSON. Both sides are timed in turns, in CPU seconds where one
process does the work, and each has its best of some rounds: other programs only ever add to it.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import msgspec

from bench.figures import ROOT, Figure
from zaplock.errors import UserError

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
ROUNDS = 5
NOT_HERE = 3
"""The exit status where a row can't be measured on this machine; another one is an error."""


class NotHere(Exception):
    """A row can't be measured on this machine; says why."""


def figure(row: str, peer: str, unit: str, ours: float, theirs: float) -> Figure:
    return Figure(row, peer, unit, ours, theirs, PYTHON)


def in_turns(*sides: Callable[[], float], rounds: int = ROUNDS) -> list[float]:
    """Return the least that each side took, in seconds."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, found in zip(sides, taken):
            gc.collect()
            found.append(side())
    return [min(found) for found in taken]


def cpu_seconds(command: list[str]) -> float:
    """Run a program; return what CPU time it took, with those it waited for."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def lock() -> list[Figure]:
    """28 readers and 4 writers on one lock, timed: the same events as the peers, at the same times.

    Events a second; see bench/test_timed.py.
    """
    from bench import salabim_lock, test_timed

    simpy = {f"SimPy, {peer}": (lambda peer=peer: test_timed.run_simpy(peer)[0])
             for peer in test_timed.LEAST_RATIO}  # fmt: skip
    peers: dict[str, Callable[[], float]] = {**simpy, "salabim": lambda: salabim_lock.run()[0]}
    _, engine = test_timed.run_zaplock()
    for log in (test_timed.run_simpy("a tuned lock")[1], salabim_lock.run()[1]):
        test_timed.same_results(log, engine)
    count = len(engine.events())
    ours, *theirs = in_turns(lambda: test_timed.run_zaplock()[0], *peers.values())
    return [figure("timed lock", name, "events/s", count / ours, count / seconds)
            for name, seconds in zip(peers, theirs)]  # fmt: skip


def check() -> list[Figure]:
    """States a second against Spin on the same protocol, and the way to a verdict with its compile.

    For the rate Spin's model has two tasks that pin pages: with one it is done in no time.
    """
    if not shutil.which("spin") or not shutil.which("cc"):
        raise NotHere("spin and a C compiler are not installed")
    from bench import test_check
    from zaplock.check.verdicts import closed_system, find_design, find_scenario
    from zaplock.engines.checking.compiled_levels import levels_library
    from zaplock.engines.checking.exhaustive import explore

    name = test_check.SCENARIO
    text = (resources.files("zaplock.check") / "scenario_files" / f"{name}.toml").read_text()
    gup = text[text.rindex("[[task]]") :]
    states: dict[str, int] = {}

    levels_library.load(may_compile=True)  # once a machine, as Spin's `pan` is compiled before

    def explored(scenario: str, design: str) -> float:
        started = process_time()
        verdict = explore(closed_system(find_scenario(scenario), find_design(design)))
        assert verdict.answer == "proved"
        states[scenario] = verdict.states
        return process_time() - started

    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        two = folder / "two.toml"
        two.write_text(text + gup.replace('"gup"', '"gup 2"'))
        verdict_s = min(spin_cpu_seconds(folder) for _ in range(2))
        subprocess.run(["spin", "-a", "-DGUPS=2", str(test_check.MODEL)], cwd=folder, check=True)
        build = ["cc", "-O2", "-w", "-DSAFETY", "-DMEMLIM=4000", "-o", "pan", "pan.c"]
        subprocess.run(build, cwd=folder, check=True)
        pan = subprocess.run(["./pan", "-m100000"], cwd=folder, capture_output=True, text=True)
        stored = next(line for line in pan.stdout.splitlines() if "states, stored" in line)
        narrow, wide, spin_s = in_turns(
            lambda: min(explored(name, "linux-6.18") for _ in range(3)),
            lambda: explored(str(two), "linux-4.20"),
            lambda: test_check.measured(["./pan", "-m100000"], folder)[1],
            rounds=3,
        )  # fmt: skip
        rate, spin_rate = states[name] / narrow, int(stored.split()[0]) / spin_s
        return [
            figure(f"check {name}, linux-6.18", "Spin's rate", "states/s", rate, spin_rate),
            figure("check, two that pin pages", "Spin's rate", "states/s", states[str(two)] / wide,
                   spin_rate),
            figure("check, name to verdict", "Spin with its compile", "s", narrow, verdict_s),
        ]  # fmt: skip


def cores() -> list[Figure]:
    """5.4 million states on two cores beside one, in seconds of wall time."""
    if len(os.sched_getaffinity(0)) < 2:
        raise NotHere("this process may use one CPU only")
    from bench import test_check
    from zaplock.check.verdicts import CheckResult, check, find_design, find_scenario

    found: list[CheckResult] = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "crowd.py")
        file.write_text(test_check.CROWD)
        scenario, design = find_scenario(f"{file}:CROWD"), find_design("linux-6.18")

        def seconds(jobs: int) -> float:
            started = perf_counter()
            found.append(check(scenario, design, queue="any", jobs=jobs))
            return perf_counter() - started

        one, two = in_turns(lambda: seconds(1), lambda: seconds(2), rounds=3)
    assert len({(each.verdict, each.states) for each in found}) == 1
    return [figure("check of 5.4 million states, two cores", "one core", "s", two, one)]


def spin_cpu_seconds(folder: Path) -> float:
    """Return what CPU time Spin, the compiler and `pan` take to a verdict."""
    from bench import test_check

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    test_check.spin(folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def oracle() -> list[Figure]:
    """Fully compared operations a second, on one core, against the plain way; see test_oracle."""
    from bench import test_oracle
    from zaplock.oracle.bare_process import check_machine
    from zaplock.oracle.campaign import run
    from zaplock.oracle.modelside import COVERED, model_side

    try:
        check_machine()
    except UserError as error:
        raise NotHere(str(error)) from None
    libc = ctypes.CDLL(None)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    def plain() -> int:
        for _ in range(200):
            test_oracle.plain_operation(libc)
        return 200

    rates, plain_rates = [], []
    for seed in range(1, 4):
        plain_rates.append(test_oracle.rate(plain))
        *_, report = run(model_side, seconds=4, seed=seed, scope=COVERED)
        assert report.agrees, report.signatures
        rates.append(report.operations / report.seconds)
    return [figure("oracle", "ctypes and smaps", "operations/s", median(rates),
                   median(plain_rates))]  # fmt: skip


def decode() -> list[Figure]:
    """Ring-buffer pages to columns, against the kernel's text and a loop of struct."""
    from bench import test_decode
    from zaplock.recorder.layouts import read_layouts
    from zaplock.recorder.meanings import MMAP_LOCK
    from zaplock.recorder.tracefs import opened

    rates: dict[str, list[float]] = {"ours": [], "alone": [], "struct": [], "text": []}
    try:
        with opened() as tracefs:
            layouts = read_layouts(tracefs.path, MMAP_LOCK)
            for _ in range(3):
                seconds, count, pages = test_decode.decoded(tracefs, layouts)
                rates["ours"].append(count / seconds)
                rates["alone"].append(test_decode.only_decoded(pages, layouts))
                seconds, count = test_decode.unpacked(pages, layouts)
                rates["struct"].append(count / seconds)
                seconds, count = test_decode.printed(tracefs, layouts)
                rates["text"].append(count / seconds)
    except UserError as error:
        raise NotHere(str(error)) from None
    best = {name: max(found) for name, found in rates.items()}
    return [
        figure("pages to columns", "trace_pipe", "events/s", best["ours"], best["text"]),
        figure("pages to columns", "loop of struct", "events/s", best["alone"], best["struct"]),
    ]


WORK = "import mmap\nfor _ in range({}): mmap.mmap(-1, 4096).close()"


def report() -> list[Figure]:
    """A recording's events to text, per event: `zaplock report` beside `perf script`."""
    from zaplock.trace import recording_file

    if not shutil.which("perf"):
        raise NotHere("perf is not installed")
    if os.geteuid():
        raise NotHere("recording needs root")
    work = [sys.executable, "-c", WORK.format(100_000)]
    with tempfile.TemporaryDirectory() as at:
        recording, data = Path(at) / "a.zaplock", Path(at) / "perf.data"
        perf = ["perf", "record", "-q", "-m", "16M", "-e", "mmap_lock:*", "-o", str(data), "--"]
        subprocess.run([*perf, *work], check=True, stderr=subprocess.DEVNULL)
        record = [sys.executable, "-m", "zaplock", "record", "-o", str(recording), "--"]
        subprocess.run([*record, *work], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        printed = subprocess.run(
            ["perf", "script", "-i", str(data)], check=True, capture_output=True
        ).stdout.count(b"\n")
        events = len(recording_file.read(recording).events)
        ours, theirs = in_turns(
            lambda: cpu_seconds([sys.executable, "-m", "zaplock", "report", str(recording)]),
            lambda: cpu_seconds(["perf", "script", "-i", str(data)]),
            rounds=3,
        )
    name = "recording to report"
    return [figure(name, "perf script", "events/s", events / ours, printed / theirs)]


def record() -> list[Figure]:
    """What recording costs the recorded, against perf trace and strace; see test_recorder.

    In how many times as long mmap and munmap take.
    """
    from bench import test_recorder

    if os.geteuid():
        raise NotHere("recording needs root")
    if not shutil.which("gcc"):
        raise NotHere("gcc is not installed")
    with tempfile.TemporaryDirectory() as at:
        subject = test_recorder.compiled(Path(at))
        groups = (*test_recorder.DEFAULT_GROUPS, "sched")
        looks = test_recorder.looks(groups, Path(at))
        wanted = [name for name in ("zaplock record", "perf trace", "strace -f") if name in looks]
        ratios: dict[str, list[float]] = {name: [] for name in wanted}
        for _ in range(3):
            for name in wanted:
                count = "200000" if name == "zaplock record" else "20000"
                pair = []
                for look in (test_recorder.nobody, looks[name]):
                    with test_recorder.waiting(subject, "map", count) as process, look(process.pid):
                        pair.append(test_recorder.round_ns(process))
                ratios[name].append(pair[1] / pair[0])
    ours, *_ = (median(found) for found in ratios.values())
    return [figure("cost of being recorded", name, "s", ours, median(ratios[name]))
            for name in wanted[1:]]  # fmt: skip


def start() -> list[Figure]:
    """Start-up in a fresh process, beside the interpreter's own."""
    python = [sys.executable, "-c"]
    zaplock = [sys.executable, "-m", "zaplock"]
    help_s, import_s, bare_s = in_turns(
        lambda: cpu_seconds([*zaplock, "--help"]),
        lambda: cpu_seconds([*python, "import zaplock"]),
        lambda: cpu_seconds([*python, "pass"]),
        rounds=15,
    )
    return [
        figure("zaplock --help", "python -c pass", "s", help_s, bare_s),
        figure("import zaplock", "python -c pass", "s", import_s, bare_s),
    ]


def ready() -> list[Figure]:
    """From the start of `zaplock why` until it watches, beside the kernel's part; see readiness."""
    from bench import readiness

    if os.geteuid():
        raise NotHere("recording needs root")
    with subprocess.Popen(["sleep", "infinity"]) as target:
        try:
            ours, kernels = in_turns(
                lambda: readiness.ready_s(target.pid), readiness.instances_s, rounds=7
            )
        finally:
            target.kill()
    return [figure("why, ready to watch", "its trace instances alone", "s", ours, kernels)]


def memory() -> list[Figure]:
    """What `zaplock record` holds under a storm of events, beside perf record; see readiness.

    Over 40 MiB while it records is an error. What its child that decodes holds is told as well.
    """
    from bench import readiness, test_recorder

    if os.geteuid():
        raise NotHere("recording needs root")
    for needed in ("gcc", "perf"):
        if not shutil.which(needed):
            raise NotHere(f"{needed} is not installed")
    with tempfile.TemporaryDirectory() as at:
        subject = test_recorder.compiled(Path(at))
        with test_recorder.waiting(subject, "map", str(1 << 40), "0") as process:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
            ours, decoding = readiness.recorder_mib(process.pid)
            theirs = readiness.perf_mib(process.pid)
    assert ours < readiness.MOST_MIB, f"it held {ours:.0f} MiB, over {readiness.MOST_MIB}"
    return [figure("memory while recording", "perf record", "MiB", ours, theirs),
            figure("memory with the decoding", "perf record", "MiB", decoding, theirs)]  # fmt: skip


def compare() -> list[Figure]:
    """`compare` as a whole process, beside SimPy's run of the lock (nobody else does its work)."""
    simpy = "from bench.test_timed import run_simpy; run_simpy('its Container')"
    whole = [sys.executable, "-m", "zaplock", "compare", "--no-measure"]
    large = cpu_seconds([*whole, "100T"])
    small, theirs = in_turns(
        lambda: cpu_seconds([*whole, "320G"]),
        lambda: cpu_seconds([sys.executable, "-c", simpy]),
        rounds=2,
    )
    peer = "SimPy's Container lock"
    return [figure("compare 320G", peer, "s", small, theirs),
            figure("compare 100T", peer, "s", large, theirs)]  # fmt: skip


ROWS: dict[str, Callable[[], list[Figure]]] = {
    row.__name__: row
    for row in (lock, check, cores, compare, start, ready, memory, oracle, decode, report, record)
}
ONLY_COMPUTE = ("lock", "check", "start")
"""Rows that are measured by each Python that is here."""


def main() -> None:
    """Measure one row and print its figures."""
    try:
        print(msgspec.json.encode(ROWS[sys.argv[1]]()).decode())
    except NotHere as reason:
        print(reason, file=sys.stderr)
        sys.exit(NOT_HERE)


if __name__ == "__main__":
    main()
