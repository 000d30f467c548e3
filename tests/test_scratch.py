"""What a killed run leaves in a folder the next removes, and nothing that anybody still has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import has_ended

from zaplock.scratch import Scratch, sweep

MAKES = """
import os, sys
from zaplock.scratch import Scratch
made = Scratch("states", sys.argv[1])
(made.path / "part").mkdir()
(made.path / "part" / "file").write_text("x")
child = os.fork()  # a worker
if not child:
    sys.stdin.read()
    os._exit(0)
print(made.path, child, flush=True)
os.waitpid(child, 0)
"""


def test_what_a_killed_owner_left_goes_when_its_last_worker_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKES, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as owner:  # fmt: skip
        assert owner.stdout
        assert owner.stdin
        name, worker = owner.stdout.readline().split()
        left = Path(name)
        assert sweep("states", tmp_path) == []
        owner.kill()
        owner.wait()
        assert sweep("states", tmp_path) == [], "its worker has it still"
        owner.stdin.close()  # which ends the worker
        assert owner.stdout.read() == ""
    deadline = time.monotonic() + 250
    while not has_ended(int(worker)):  # what it had open, it had until then
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert left.exists()
    with Scratch("states", tmp_path) as kept:
        assert not left.exists()
        with Scratch("states", tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted([kept, mine])
    assert not list(tmp_path.iterdir())


def test_only_folders_of_the_kind_and_of_the_user_are_swept(tmp_path: Path) -> None:
    other, file, link, old = (tmp_path / f"zaplock-{name}" for name in
                              ("fleet-a", "states-file", "states-link", "states-old"))  # fmt: skip
    other.mkdir()
    old.mkdir()
    file.touch()
    link.symlink_to(other)
    if os.geteuid() == 0:
        stranger = tmp_path / "zaplock-states-stranger"
        stranger.mkdir()
        os.chown(stranger, 65534, 65534)
    assert sweep("states", tmp_path) == [old]
    assert other.exists()


def test_a_folder_that_was_swept_at_its_birth_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real, swept = fcntl.flock, list[Path]()

    def late(lock: int, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].rmdir()
        real(lock, how)

    monkeypatch.setattr("zaplock.scratch.fcntl.flock", late)
    with Scratch("states", tmp_path) as made:
        assert made.is_dir()
        assert made != swept[0]
