"""Which processes are meant: by number, name, control group or unit; not in a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.recorder.in_memory import record_mm

SLEEP = """
import ctypes, time
ctypes.CDLL(None).prctl(15, b"{name}")
print(flush=True)
time.sleep(600)
"""
NAME = f"zl-aim-{os.getpid()}"


@contextmanager
def sleeper(name: str = NAME) -> Iterator[int]:
    command = [sys.executable, "-c", SLEEP.format(name=name)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("recording needs root")


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_two_processes_of_one_name_are_recorded_and_others_are_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from zaplock.trace.recording_file import read

    with sleeper() as one, sleeper() as other, sleeper("somebody-else") as third:
        file = tmp_path / "two.zaplock"
        poke = subprocess.Popen(
            [sys.executable, "-c", POKE, *map(str, (one, other, third))],
            stdout=subprocess.PIPE,
        )
        try:
            assert poke.stdout
            assert poke.stdout.readline() == b"\n"
            assert main(["record", "--comm", NAME, "-d", "1s", "-o", str(file)]) == 0
        finally:
            poke.kill()
            poke.wait()
    recording = read(file)
    owners = {recording.events.mms.get(mm) for mm in set(recording.events["mm"].tolist()) if mm}
    assert owners == {one, other}
    assert f"{NAME} ({one})" in recording.manifest.target
    assert f"{NAME} ({other})" in recording.manifest.target


# Takes the lock of each process, again and again.
POKE = """
import sys, time
while True:
    for pid in sys.argv[1:]:
        open(f"/proc/{pid}/smaps_rollup").read()
    print(flush=True)
    time.sleep(0.02)
"""


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_why_takes_a_bare_process_or_several(capsys: pytest.CaptureFixture[str]) -> None:
    with sleeper() as one, sleeper() as other:
        assert main(["why", str(one), "-d", "50ms"]) == 0
        assert f"next: zaplock record -p {one} -d 30s" in capsys.readouterr().out
        assert main(["why", "-p", str(one), "-p", str(other), "-d", "50ms"]) == 0
        assert f"record -p {one} -p {other} -d" in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_a_control_group_is_its_processes(capsys: pytest.CaptureFixture[str]) -> None:
    with sleeper() as one:
        own = Path(f"/proc/{one}/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
        assert main(["why", "--cgroup", own, "-d", "50ms"]) == 0
    assert f"--cgroup {own}" in capsys.readouterr().out


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_the_next_command_is_one_that_a_shell_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with sleeper("G1 Service"):
        assert main(["why", "--comm", "G1 Service", "-d", "50ms"]) == 0
    assert "next: zaplock record --comm 'G1 Service' -d 30s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--comm", "no-such-name"], "no process is called 'no-such-name'"),
        (["--cgroup", "/no/such/group"], "there is no control group '/no/such/group'"),
        (["--unit", "no-such-unit"], "no unit 'no-such-unit.service' runs here"),
        ([], "why is about a process"),
    ],
)
def test_a_name_that_stands_for_nobody_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.root
@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    "verb", [["why", "1", "-d", "50ms"], ["record", "-d", "50ms"], ["top", "-n1"]]
)
def test_in_a_pid_namespace_it_says_why_not(verb: list[str], tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux)")
    inside = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m", "zaplock", *verb]
    began = time.monotonic()
    done = subprocess.run(inside, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "this is a container (a PID namespace)" in done.stderr
    assert "--pid=host" in done.stderr
    assert time.monotonic() - began < 60
    assert not list(tmp_path.iterdir())


@pytest.mark.root
@pytest.mark.usefixtures("root")
def test_of_a_group_whoever_has_ended_since_it_was_listed_is_left_out_and_told() -> None:
    """The others are recorded; where nobody is left, that is an error."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with sleeper() as one:
        with record_mm([ended.pid, one], children=True) as recorder:
            pass
        assert f"left out: there is no process {ended.pid}: 'ps -e' lists those that are" in (
            recorder.notes
        )
        with pytest.raises(UserError, match="no process"), record_mm([ended.pid, one]):
            pass
    with pytest.raises(UserError, match="no process"), record_mm([ended.pid], children=True):
        pass
