"""Signals at any moment: what was recorded opens, nothing stays on, no clean-up is cut short."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zaplock.cli.record import Signals
from zaplock.recorder.tracefs import opened
from zaplock.recorder.uninterrupted import surely

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root"),
]
HERE = Path(__file__).parent
ME = os.getpid()
SOURCE = str(HERE.parent / "src")


def test_killed_at_any_moment_it_leaves_what_opens_and_nothing_on() -> None:
    """A few; tests/recorder_kills.py kills 200 on request."""
    command = [sys.executable, str(HERE / "recorder_kills.py"), "--kills", "6", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "opens" in done.stdout


def test_two_interrupts_do_not_cut_a_clean_up_short() -> None:
    done: list[str] = []

    def clean_up() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        surely(clean_up)
    assert done[0] == "whole"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_look_that_is_ended_leaves_nothing_on(number: signal.Signals) -> None:
    command = [sys.executable, "-P", "-m", "zaplock", "why", "-p", str(ME), "-d", "60s"]
    look = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": SOURCE})  # fmt: skip
    with opened() as tracefs:
        name = f"instances/zaplock-*-*-{look.pid}-*-*"
        deadline = time.monotonic() + 250
        while not list(tracefs.path.glob(f"{name}/events/mmap_lock")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        look.send_signal(number)
        _, said = look.communicate()
        assert (look.returncode, said) == (128 + number, "zaplock why: interrupted\n")
        assert list(tracefs.path.glob(name)) == []


_ENDED_WHILE = """
import ctypes, os, signal, sys, time
from zaplock import cli

class Goes:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})  # what that raises here, Python forgets

class Asked:
    def __getattr__(self, name):
        os.kill(os.getpid(), signal.{name})  # what that raises here, C code clears in silence

def about(arguments):
    {does}
    time.sleep({then})
    return 0

cli._about = about
sys.exit(cli.main(["help"]))
"""


_CLEARED = "ctypes.pythonapi.PyObject_HasAttrString(ctypes.py_object(Asked()), b'x')"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    ("does", "then"),
    [
        ("Goes()", 60),
        ("exec('os.kill(os.getpid(), signal.{name})')", 60),
        (_CLEARED, 60),
        ("Goes()", 0),
        (_CLEARED, 0),
    ],
    ids=["destructor", "exec", "cleared", "destructor at the end", "cleared at the end"],
)
def test_a_signal_at_any_place_in_python_ends_it_with_its_own_code(
    name: str, does: str, then: int, tmp_path: Path
) -> None:
    """A HUP into `oracle`, and an INT, were forgotten: it went on to its end, with code 0."""
    program = _ENDED_WHILE.format(name=name, does=does.format(name=name), then=then)
    (tmp_path / "ended_while.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "ended_while"],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{tmp_path}"},
        capture_output=True,
        text=True,
    )
    code = 128 + getattr(signal, name)
    assert (done.returncode, done.stderr) == (code, "zaplock: interrupted\n")


_WHILE_IMPORTED = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


@pytest.mark.parametrize(
    ("module", "code", "told"),
    [
        ("argparse", -signal.SIGINT, ""),
        ("zaplock.cli._streams", -signal.SIGINT, ""),
        ("zaplock.cli.designs", 130, "zaplock designs: interrupted\n"),
    ],
)
def test_ctrl_c_while_zaplock_is_still_imported_is_no_traceback(
    module: str, code: int, told: str, tmp_path: Path
) -> None:
    """It comes when Python looks for a module: early ones end as any program, others are told."""
    (tmp_path / "sitecustomize.py").write_text(_WHILE_IMPORTED.format(module=module))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "zaplock", "designs"],
        env={**os.environ, "PYTHONPATH": f"{SOURCE}:{tmp_path}"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.parametrize(
    "own",
    [
        "class Named:\n    def __set_name__(self, owner, name): interrupt()\n"
        "class Own: one = Named()\n",
        "try: interrupt()\nexcept KeyboardInterrupt: raise ImportError('could not') from None\n",
    ],
    ids=["__set_name__", "import"],
)
def test_a_signal_of_which_an_error_was_made_is_a_signal(own: str, tmp_path: Path) -> None:
    """Python 3.11 makes a RuntimeError of it in a class, and libraries in C an ImportError."""
    file = tmp_path / "own.py"
    interrupt = "def interrupt(): os.kill(os.getpid(), signal.SIGINT)"
    file.write_text(f"import os, signal\n{interrupt}\n{own}")
    typed = ["check", "munmap+fault", "--design", f"{file}:NONE"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "zaplock", *typed],
        env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "zaplock check: interrupted\n")


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `timeout` sends it: what is still to be decoded was left undone."""
    now_ns = [1_000_000_000]
    monkeypatch.setattr("zaplock.cli.record.time.monotonic_ns", lambda: now_ns[0])
    with Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        now_ns[0] += 1_000_000
        signal.raise_signal(signal.SIGTERM)
        assert signals.asked
        now_ns[0] += 150_000_000
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
