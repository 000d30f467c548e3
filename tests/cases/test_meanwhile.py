"""Tracing can't be switched on while a uprobe is registered, which waits for the very same lock."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from programs import built, running
from test_already_so import stack_has, until
from test_hidden_holders import READ, number_before_go, victim_waits

from zaplock.agent import blocked_tracing
from zaplock.agent.main_loop import Agent
from zaplock.agent.metrics import Metrics
from zaplock.agent.settings import Settings
from zaplock.cli import _meanwhile, main
from zaplock.recorder.tracefs import mounted

pytestmark = pytest.mark.root


def code_offset(program: Path) -> int:
    """Return where in its file a program's first instruction is (64-bit ELF)."""
    text = program.read_bytes()
    (entry, headers), (size, count) = (
        struct.unpack_from("<QQ", text, 24),
        struct.unpack_from("<HH", text, 54),
    )
    for number in range(count):
        kind, _, offset, address, _, length = struct.unpack_from(
            "<IIQQQQ", text, headers + number * size
        )
        if kind == 1 and address <= entry < address + length:
            return int(entry - address + offset)
    pytest.fail("it has no code")


def append(file: Path, text: str) -> None:
    """Write behind what is in a control file, without a seek, which it refuses."""
    control = os.open(file, os.O_WRONLY | os.O_APPEND)
    os.write(control, text.encode())
    os.close(control)


@contextlib.contextmanager
def probing(program: Path) -> Iterator[int]:
    """Register a uprobe in a program's file; give the process that does so."""
    where = mounted()
    if where is None or not (where / "uprobe_events").exists():
        pytest.skip("no uprobe events here")
    name = f"zaplock_test_{os.getpid()}"
    enable = where / "events" / name / "at" / "enable"
    append(where / "uprobe_events", f"p:{name}/at {program}:{code_offset(program):#x}\n")
    registers = subprocess.Popen(["sh", "-c", f"echo 1 > {enable}"])
    try:
        yield registers.pid
    finally:
        registers.wait()
        enable.write_text("0")
        append(where / "uprobe_events", f"-:{name}/at\n")


@dataclass(frozen=True)
class Hang:
    """A process whose lock is held while somebody registers a uprobe in it; `ends` ends it all."""

    pid: int
    prober: int
    ends: Callable[[], None]


@contextlib.contextmanager
def nothing_can_be_traced(folder: Path) -> Iterator[Hang]:
    """perf or bpftrace adds a probe, waits for the lock of the process that hangs, and all tracing
    waits for that."""
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    at = folder / "mount"
    at.mkdir()
    reader = None
    with contextlib.ExitStack() as stack:
        files = stack.enter_context(running(built("slow_files", folder), at))
        assert files.process.stdout is not None
        if files.process.stdout.readline() != "go\n":
            pytest.skip("there is no FUSE here")
        stack.callback(subprocess.run, ["umount", "-l", at], capture_output=True, check=False)
        program = stack.enter_context(running(built("hidden", folder), 0, 0, "idle", at / "f"))
        address = str(number_before_go(program, 16))

        def ends() -> None:
            files.process.kill()
            files.process.wait()
            if reader:
                reader.kill()
                reader.wait()

        stack.callback(ends)
        reader = subprocess.Popen([sys.executable, "-c", READ, f"/proc/{program.pid}/mem", address])
        until(stack_has(reader.pid, "request_wait_answer"))
        until(victim_waits(program.pid))
        prober = stack.enter_context(probing(folder / "hidden"))
        stack.callback(ends)
        until(stack_has(prober, "register_for_each_vma"))
        yield Hang(program.pid, prober, ends)


@pytest.mark.parametrize("verb", ["why", "record"])
def test_what_the_stacks_tell_is_said_until_tracing_can_be_switched_on(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_meanwhile, "PATIENCE_S", 0.2)
    said, told = io.StringIO(), list[str]()
    with nothing_can_be_traced(tmp_path) as hang:

        def let_go_once_told() -> None:
            end = time.monotonic() + 250
            while "register_for_each_vma <" not in said.getvalue() and time.monotonic() < end:
                time.sleep(0.01)
            told.append(said.getvalue())
            hang.ends()

        waiting = threading.Thread(target=let_go_once_told)
        waiting.start()
        more = ["-o", str(tmp_path / "x.zaplock")] if verb == "record" else []
        with contextlib.redirect_stdout(said):
            assert main([verb, "-p", str(hang.pid), "-d", "200ms", *more]) == 0
        waiting.join()
    assert f"(tid {hang.prober}) registers a uprobe" in told[0]
    assert "in read of /proc" in told[0]
    assert "victim (tid " in told[0]
    assert "next: zaplock " not in told[0]
    assert "next: zaplock " in said.getvalue()


def test_an_agent_logs_what_the_stacks_tell_until_tracing_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked_tracing, "PATIENCE_S", 0.2)
    said = list[tuple[str, dict[str, Any]]]()
    with nothing_can_be_traced(tmp_path) as hang:

        def say(event: str, **fields: Any) -> None:
            said.append((event, fields))
            if fields.get("registering"):  # a look at a busy machine may not come to all of it
                hang.ends()

        settings = Settings(
            store=str(tmp_path / "store"),
            spool=tmp_path / "spool",
            host="here",
            limit_ns=10**9,
            after_ns=10**8,
        )
        agent = Agent(
            settings,
            lambda: [hang.pid],
            Metrics(),
            ended=lambda: "tracing goes on" in dict(said),
            say=say,
        )
        agent.run()
    told = next(fields for _, fields in said if fields.get("registering"))
    assert [one["tid"] for one in told["registering"]] == [hang.prober]
    tasks = {(one["task"], one["does"]): one for one in told["tasks"]}
    assert tasks["victim", "waits"]["lock_of"] == hang.pid
    (holder,) = (one for one in told["tasks"] if one["does"] == "holds")
    assert holder["operation"] == f"read of /proc/{hang.pid}/mem"
    assert holder["kernel_stack"]
    assert dict(said)["tracing goes on"]["after_ns"] > 200_000_000
