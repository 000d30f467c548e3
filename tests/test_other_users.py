"""Run by somebody who has no home, another's home, no capabilities, or not the whole of /proc."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zaplock.cli import main

NOBODY_IN_PARTICULAR = 47_111
"""A user id of which no file knows anything, as containers are given."""

PROFILES = f"""
import os
from zaplock.errors import UserError
from zaplock.lab import profiles
os.setgroups([])
os.setgid({NOBODY_IN_PARTICULAR})
os.setuid({NOBODY_IN_PARTICULAR})
if not os.access(profiles.__file__, os.R_OK):
    raise SystemExit(77)
print(*sorted(profiles.available()))
try:
    print(profiles.user_directory())
except UserError as error:
    print(error)
"""


def profiles_of(home: Path | None) -> list[str]:
    """As a user with this home, ask which profiles there are, and where their own would be."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    for name in ("HOME", "XDG_CONFIG_HOME"):
        environment.pop(name, None)
    if home:
        environment["HOME"] = str(home)
    command = [sys.executable, "-c", PROFILES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this source can't be read by others")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="to become somebody else takes root")
def test_who_has_no_home_or_anothers_has_the_shipped_profiles(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(0o700)
    for home in (None, private):
        shipped, where = profiles_of(home)
        assert shipped == "e5-2680-320g e5-2680-rfc epyc-6.18"
    assert where == f"{private}/.config/zaplock/profiles"
    assert profiles_of(None)[1].startswith(f"user {NOBODY_IN_PARTICULAR} has no home for profiles")


def test_a_python_that_this_user_may_not_start_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nobody, with Python under /root, `oracle` ended in a traceback of its workers."""
    python = tmp_path / "python"
    python.touch(0o644)
    monkeypatch.setattr(sys, "executable", str(python))
    for way in ([], ["--threads"], ["--locks"], ["--self-test"]):
        assert main(["oracle", "--seconds", "1", *way]) == 2
        assert f"may not start {python}, as whose child" in capsys.readouterr().err


def inside(command: list[str], wrapper: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a zaplock command in namespaces or without capabilities."""
    if shutil.which(wrapper[0]) is None:
        pytest.skip(f"{wrapper[0]} is not installed")
    source = str(Path(__file__).parent.parent / "src")
    whole = [*wrapper, shlex.join([sys.executable, "-P", "-m", "zaplock", *command])]
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.run(whole, env=environment, capture_output=True, text=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")
@pytest.mark.parametrize("capability", ["cap_sys_admin", "cap_sys_ptrace"])
def test_where_stacks_may_not_be_read_that_is_told(capability: str) -> None:
    """Who had the lock before is "not known" then, and nothing had said why."""
    command = ["why", str(os.getpid()), "-d", "100ms"]
    said = inside(command, ["capsh", f"--drop={capability}", "--", "-c"])
    assert said.returncode == 0, said.stderr
    assert "the kernel stacks of the tasks may not be read here" in said.stdout
    plain = inside(command, ["sh", "-c"])
    assert "may not be read here" not in plain.stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="to mount takes root")
@pytest.mark.parametrize("options", ["-t tmpfs none", "-t proc -o subset=pid none"])
@pytest.mark.parametrize("verb", ["why 1", "record -d 100ms -o never", "doctor"])
def test_what_proc_lacks_is_said_in_one_line(verb: str, options: str, tmp_path: Path) -> None:
    command = ["sh", "-c", f'mount {options} /proc && cd {tmp_path} && exec "$@"', "sh"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    source = str(Path(__file__).parent.parent / "src")
    done = subprocess.run(
        ["unshare", "-m", *command, sys.executable, "-P", "-m", "zaplock", *verb.split()],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "mount all of proc ('mount -t proc proc /proc')" in done.stderr
