"""Run command lines of zaplock, each in a process of its own that need not import anything.

It reads a JSON line each, {"argv": [...], "limit_s": 5}, forks, and answers with the exit code
(minus the signal), the CPU time, the largest resident size of the process and its children, and
what it wrote. What runs for longer than its limit of CPU time, or for ever, is ended.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import traceback
from typing import Any

from zaplock.cli import SUMMARIES, main
from zaplock.trace.separate_parser import PARSER

LIBRARIES = (
    "zaplock.views.html", "zaplock.views.perfetto", "zaplock.views.replayed",
    "zaplock.views.timeline", "zaplock.views.export", "zaplock.views.report_json",
    "zaplock.views.report_text", "zaplock.views.outcomes", "zaplock.replay.replay",
    "zaplock.trace.foreign", "zaplock.trace.analysis", "zaplock.check.verdicts",
    "zaplock.views.counterexample", "zaplock.oracle.campaign", "zaplock.programs.replay",
    "zaplock.lab.lab", "zaplock.advise.calls", "zaplock.recorder.session",
    "zaplock.trace.recording_file",
)  # fmt: skip
ROOM = 6 << 30
"""Of address space: no fault of zaplock's shall take the machine down."""
WALL = 60
"""So many times its CPU time may a process take, on a machine that does other work."""


def child(argv: list[str], streams: list[int], limit_s: int, ready: int = -1) -> None:
    """Be zaplock; say on `ready` when it begins."""
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(streams[0], 1)
    os.dup2(streams[1], 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["zaplock", *argv]
    code = 1
    if ready >= 0:
        os.close(ready)
    try:
        code = main(argv)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    PARSER.end()  # so that what it took counts
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(argv: list[str], limit_s: int) -> dict[str, Any]:
    """Run one command line to its end or to its limit."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            child(argv, [out.fileno(), err.fileno()], limit_s)
        ended = os.pidfd_open(pid)
        if not select.select([ended], [], [], limit_s * WALL)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status, used = os.wait4(pid, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "cpu_s": used.ru_utime + used.ru_stime,
            "resident": used.ru_maxrss << 10,
            "out": out.read(1 << 16).decode(errors="surrogateescape"),
            "err": err.read(1 << 16).decode(errors="surrogateescape"),
        }


def prepare() -> None:
    """Import what the verbs will want; start no thread, for a forked child would lack it."""
    for verb in SUMMARIES:
        importlib.import_module(f"zaplock.cli.{verb}")
    for name in LIBRARIES:
        importlib.import_module(name)


def serve() -> None:
    """Answer until nobody asks any more."""
    prepare()
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(run(job["argv"], job["limit_s"])), flush=True)


if __name__ == "__main__":
    serve()
