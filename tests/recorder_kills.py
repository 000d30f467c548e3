"""Record and be killed at a random moment: every recording opens or says why not, nothing stays on.

    python tests/recorder_kills.py --kills 200 --seed 1

Each recorder is a forked process of its own (nothing is imported again); it gets one of KILL, TERM,
HUP, INT, two INTs, or STOP and CONT, while it prepares, records, writes or ends. Afterwards its
recording is read by `zaplock report`, and what was left of it undecoded is decoded; of a recorder
that was not killed no trace instance may be left, and of one that was, none after the next one has
started.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fuzz_server import child, prepare, run

from zaplock.recorder.tracefs import opened

SIGNALS: tuple[tuple[signal.Signals, ...], ...] = (
    (signal.SIGKILL,),
    (signal.SIGKILL,),
    (signal.SIGTERM,),
    (signal.SIGHUP,),
    (signal.SIGINT,),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGSTOP, signal.SIGCONT),
)
ENDS = {0, 2, 129, 130, 143, -signal.SIGKILL}
"""Done, refused, interrupted; or killed."""
LONGEST_S = 200
ARGUMENTS = (
    ["-d", "700ms"],
    ["-d", "700ms", "-p", str(os.getpid())],
    ["-d", "700ms", "-p", str(os.getpid()), "--children", "--stacks", "--faults"],
    ["-d", "700ms", "--stop-after-hold", "10s", "--keep", "100ms", "--buffer", "64K"],
    ["-p", str(os.getpid()), "--watch", "-d", "700ms"],
)


def instances_of(pid: int) -> list[str]:
    """Name the trace instances of one process."""
    with opened() as tracefs:
        return [one.name for one in (tracefs.path / "instances").glob(f"zaplock-*-*-{pid}-*-*")]


def killed(draw: random.Random, path: Path) -> tuple[str, str]:
    """Start a recorder and send it a signal; return what was sent and how it ended."""
    sent = draw.choice(SIGNALS)
    with tempfile.TemporaryFile() as err:
        begins, ready = os.pipe()
        pid = os.fork()
        if pid == 0:
            argv = ["record", "-o", str(path), *draw.choice(ARGUMENTS)]
            child(argv, [err.fileno(), err.fileno()], LONGEST_S, ready)
        os.close(ready)
        os.read(begins, 1)
        os.close(begins)
        time.sleep(draw.uniform(0, 1.2))
        for one in sent:
            os.kill(pid, one)
            time.sleep(draw.uniform(0, 0.02))
        code = ended(pid)
        err.seek(0)
        said = err.read().decode()
    what = "+".join(one.name for one in sent)
    assert code in ENDS, f"{what}: ended with {code}: {said}"
    assert "Traceback" not in said, f"{what}: {said}"
    assert code != 2 or said.count("\n") == 1, said
    if code != -signal.SIGKILL:
        assert not instances_of(pid), f"{what}: instances are left: {code} {said}"
    return what, str(pid)


def ended(pid: int) -> int:
    """Wait for a process, which must end by itself."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"the recorder {pid} did not end in {LONGEST_S} s")


def read(path: Path) -> str:
    """Read what a recorder left; say how that ended."""
    if not path.exists():
        return "nothing was begun"
    told: dict[str, Any] = run(["report", str(path)], 20)
    assert "Traceback" not in told["err"], told["err"]
    if "is not decoded" in told["err"]:
        return finished(path)
    if told["code"] == 0:
        return "opens, and has no end" if "has no end" in told["err"] else "opens, whole"
    assert told["code"] == 2, told
    assert told["err"].count("\n") == 1, told["err"]
    return f"refused: {told['err'].split(': ', 1)[1].partition(' ')[2].strip()}"


def finished(path: Path) -> str:
    """Decode what a recorder left, unless its child still does; it opens in the end."""
    end = time.monotonic() + LONGEST_S
    while (told := run(["record", "--finish", str(path)], 20))["code"] and time.monotonic() < end:
        assert told["err"].count("\n") == 1, told["err"]
        if "nothing that is to be decoded" in told["err"]:
            break
        assert "is being recorded" in told["err"], told["err"]
        time.sleep(0.1)
    told = run(["report", str(path)], 20)
    assert told["code"] == 0, told["err"]
    assert "is not decoded" not in told["err"], told["err"]
    return "opens, once what was spooled is decoded"


def kill(count: int, seed: int) -> Counter[str]:
    """Kill as many recorders; count how they were killed and what they left."""
    prepare()
    counts: Counter[str] = Counter()
    pids = []
    with tempfile.TemporaryDirectory(prefix="zaplock-kills-") as folder:
        for number in range(count):
            draw = random.Random(f"{seed}-{number}")
            path = Path(folder) / f"{number}.zaplock"
            what, pid = killed(draw, path)
            pids.append(int(pid))
            counts[what] += 1
            counts[read(path)] += 1
        done = run(["record", "-d", "50ms", "-o", f"{folder}/last.zaplock"], LONGEST_S)
        assert done["code"] == 0, done["err"]
    left = [name for pid in pids for name in instances_of(pid)]
    assert not left, f"instances are left after the next start: {left}"
    return counts


def main() -> None:
    """Read the arguments, kill, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began = time.monotonic()
    counts = kill(args.kills, args.seed)
    print(
        f"{args.kills} recorders were killed in {time.monotonic() - began:.0f} s, seed {args.seed}"
    )
    for what, number in sorted(counts.items()):
        print(f"{number:6} {what}")


if __name__ == "__main__":
    sys.exit(main())
