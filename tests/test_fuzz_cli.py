"""Mutated inputs through the command line: no traceback, no hang, no process over a gigabyte.

Each input is read by a process of its own (`fuzz_server`). `make test` tries some dozens, always
the same; `make fuzz` a twentieth of ZAPLOCK_FUZZ, others each time.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import (
    HERE,
    LONGEST_S,
    RUNS,
    folder,
    good_recording,
    good_scenarios,
    mutated,
    recording_with,
    written,
)
from test_fuzz import good_perfetto, good_traces

from zaplock.lab import profiles

LARGEST = 1 << 30
INPUTS = RUNS // 20 or 66
CODES = range(5)


class Server:
    """Gives each command line to a process that has imported everything."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(HERE / "fuzz_server.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder()
        )

    def ask(self, argv: list[str], limit_s: int = int(LONGEST_S)) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"argv": argv, "limit_s": limit_s}) + "\n")
        self.process.stdin.flush()
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait()


Change = Callable[[bytes], bytes]


def of_a_recording(draw: random.Random, change: Change) -> list[str]:
    files = dict(good_recording())
    name = draw.choice(sorted(files))
    files[name] = change(files[name])
    path, out = recording_with(files), folder() / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    said = ["--html", "--csv", "--parquet", "--folded", "--perfetto"]
    ways = [["--json"], [], *([one, str(out / "x")] for one in said)]
    verb = draw.choice([["report", *draw.choice(ways)], ["replay", "--json"]])
    return [verb[0], str(path), *verb[1:]]


def of_a_trace(draw: random.Random, change: Change) -> list[str]:
    good = draw.choice([*good_traces(), good_perfetto()])
    target = folder() / "imported"
    shutil.rmtree(target, ignore_errors=True)
    return ["import", str(written("trace", change(good))), "-o", str(target)]


def of_a_scenario(draw: random.Random, change: Change) -> list[str]:
    path = written("scenario.toml", change(draw.choice(good_scenarios())))
    limits = ["--max-seconds", "1", "--max-states", "1000"]
    return ["check", str(path), "--design", "linux-6.18", *limits]


def of_a_token(draw: random.Random, change: Change) -> list[str]:
    good = draw.choice([b"expand@linux-6.18~a1b2", b"munmap+fault@rfc-v6~fair~a3"])
    token = change(good).replace(b"\0", b"").decode(errors="replace")
    return ["check", f"--replay={token}"]


def of_a_sequence(draw: random.Random, change: Change) -> list[str]:
    good = draw.choice(sorted((HERE / "corpus").glob("*.json"))).read_bytes()
    return ["oracle", "--replay", str(written("sequence.json", change(good)))]


def of_strace(draw: random.Random, change: Change) -> list[str]:
    good = draw.choice(sorted((HERE / "fixtures/strace").glob("*.strace"))).read_bytes()
    return ["oracle", "--strace", str(written("x.strace", change(good[:20_000])))]


def of_a_profile(draw: random.Random, change: Change) -> list[str]:
    path = written("profile.toml", change(profiles.find(profiles.DEFAULT).read_bytes()))
    design = ["--design", "linux-6.18", "--bystanders", "none", "--no-measure"]
    return ["compare", "4M", "--profile", str(path), *design]


def of_an_argument(draw: random.Random, change: Change) -> list[str]:
    good = {
        "compare": ["64M", "--bystanders=fault", "--rate=100", "--cpus=2", "--vmas=1", "--seed=1",
                    "--cpu-max=10000/100000", "--hung-task-timeout=120s", "--backing=thp"],
        "check": ["expand", "--queue=fair", "--jobs=1", "--sample=2", "--pct=2", "--seed=0",
                  "--max-states=100", "--max-seconds=1", "--max-memory=100"],
        "designs": ["5.15", "6.6", "--json"],
        "record": ["-d=1ms", "-p=1", "--buffer=64K", "--keep=1s", "--stop-after-hold=1ms"],
        "why": ["1", "-d=1ms", "--top=1"],
        "top": ["-p=1", "-i=1ms", "-n=1", "-w=1s"],
        "calibrate": ["--rounds=1", "--scale=16", "--units"],
    }  # fmt: skip
    verb = draw.choice(sorted(good))
    arguments = good[verb]
    at = draw.randrange(len(arguments))
    name, equals, value = arguments[at].rpartition("=")
    plain = change(value.encode()).replace(b"\0", b"").decode(errors="replace")
    arguments[at] = f"{name}{equals}{plain}"
    # None of them shall begin to work: with a last argument that nobody knows they only read.
    ends = {"compare": ["--no-measure", "--design=linux-6.18"], "check": ["--design=linux-6.18"]}
    return [verb, *arguments, *ends.get(verb, ["--none-such"] * (verb != "designs"))]


KINDS = (
    of_a_recording, of_a_recording, of_a_trace, of_a_scenario, of_a_token, of_a_sequence,
    of_strace, of_a_profile, of_an_argument,
)  # fmt: skip


def changes(draw: random.Random) -> list[tuple[int, float, float, int]]:
    """Draw as `fuzzing.mutations` does."""
    count = draw.choice([1, 1, 1, 2, 3, 4])
    return [
        (draw.randrange(6), draw.random(), draw.random(), draw.randrange(256)) for _ in range(count)
    ]


def fault(argv: list[str], done: dict[str, Any]) -> str:
    """Say what is wrong with how a command line ended, "" where nothing is."""
    if "Traceback" in done["err"] or done["code"] not in CODES:
        return f"{argv} ended with {done['code']}: {done['err'][-2000:]}"
    if done["code"] == 2 and done["err"].count("\n") != 1:
        return f"{argv} said more than one line: {done['err']}"
    if done["cpu_s"] > LONGEST_S or done["resident"] > LARGEST:
        return f"{argv} took {done['cpu_s']:.1f} s and {done['resident'] >> 20} MiB"
    if not all(char.isprintable() or char in "\n\t" for char in done["out"] + done["err"]):
        return f"{argv} printed {done['out']!r} {done['err']!r}"
    return ""


@pytest.mark.timeout(0)
def test_no_mutated_input_breaks_the_command_line(server: Server) -> None:
    faults = []
    for number in range(INPUTS):
        draw = random.Random(f"{RUNS}-{time.time_ns() if RUNS else 0}-{number}")
        kind = KINDS[number % len(KINDS)]
        applied = changes(draw)
        argv = kind(draw, lambda good: mutated(good, applied))  # noqa: B023
        told = fault(argv, server.ask(argv))
        if told:
            faults.append(f"{kind.__name__}, {applied}: {told}")
    assert not faults, f"{len(faults)} of {INPUTS}: " + "\n\n".join(faults[:20])


def test_a_server_that_sees_nothing_would_be_noticed(server: Server, tmp_path: Path) -> None:
    """Faults of each kind are found: a traceback, a crash, a hang, a glutton."""
    evil = tmp_path / "evil.py"
    for code, cpu_s, told in (
        ("import sys; print('Traceback', file=sys.stderr)", 2, "ended with"),
        ("import os; os.abort()", 2, "ended with -6"),
        ("while True: pass", 2, "ended with -"),
        ("x = bytearray(1200 << 20)", 20, "and 12"),  # zeroing it takes a busy machine seconds
    ):
        evil.write_text(code)
        argv = ["check", "expand", "--design", f"{evil}:X"]
        assert told in fault(argv, server.ask(argv, cpu_s)), code
