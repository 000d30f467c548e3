"""A file system is frozen (a snapshot, fsfreeze), and a process hangs for it, with its ps."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, built, running
from test_already_so import blamed, found, stack_has, until, why, zaplock
from test_hidden_holders import victim_waits

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@contextlib.contextmanager
def file_system(folder: Path) -> Iterator[Path]:
    """Make a file system of 16 MiB in a file, and mount it; thaw and unmount it afterwards."""
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    if not all(map(shutil.which, ("mkfs.ext4", "mount", "umount", "fsfreeze"))):
        pytest.skip("no ext4 can be made here")
    image, at = folder / "image", folder / "mount"
    at.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, at], capture_output=True).returncode:
        pytest.skip("no file can be mounted here")
    try:
        yield at
    finally:
        subprocess.run(["fsfreeze", "-u", at], check=False, capture_output=True)
        subprocess.run(["umount", "-l", at], check=True)


@contextlib.contextmanager
def hanging(folder: Path) -> Iterator[Program]:
    """A page fault has its VMA's lock until the file may be written, an mprotect waits for that
    with the mmap_lock in hand, and everybody else behind it."""
    with file_system(folder) as at:
        file = at / "f"
        file.write_bytes(bytes(4096))
        subprocess.run(["sync", "-f", file], check=True)
        with running(built("behind_more", folder), "thawed", file) as program:
            try:
                program.says("go")
                subprocess.run(["fsfreeze", "-f", at], check=True)
                program.goes()
                until(stack_has(program.pid, "percpu_rwsem_wait"))
                program.goes()
                until(stack_has(program.pid, "mprotect_fixup"))
                until(victim_waits(program.pid))
                yield program
            finally:  # until then not even SIGKILL ends it
                subprocess.run(["fsfreeze", "-u", at], check=True)


def test_who_has_the_lock_of_a_vma_for_which_a_holder_sleeps_is_told(tmp_path: Path) -> None:
    with hanging(tmp_path) as program:
        said, told = zaplock("why", program.pid, "-d", "300ms"), why(program.pid)
    assert blamed(told, "victim")[0] == ("protector", "mprotect")
    writer = next(one for one in told["found"] if one["task"].startswith("writer"))
    if "__vma_start_write" not in found(told, "holds", "protector")["kernel_stack"]:
        pytest.skip("this kernel's page faults have the mmap_lock themselves")
    slept = f"it slept itself, on a VMA's lock, which writer (tid {writer['tid']}) in page fault"
    assert f"{slept} may have" in said
    assert "on a file system that is frozen (fsfreeze -u lets it go on)" in said


def test_why_of_a_ps_that_hangs_says_whose_lock_it_waits_for(tmp_path: Path) -> None:
    with hanging(tmp_path) as program:
        maps = f"/proc/{program.pid}/maps"
        ps = subprocess.Popen(["cat", maps], stdout=subprocess.DEVNULL)
        asks = [stack_has(ps.pid, one) for one in ("lock_next_vma", "m_start")]
        until(lambda: any(ask() for ask in asks))
        said = zaplock("why", ps.pid, "-d", "300ms")
    ps.wait()
    assert f"waited for the lock of process {program.pid}, shared, in read of {maps}" in said
    assert f"ask zaplock why {program.pid}" in said


def test_a_list_of_the_mapped_files_of_a_process_waits_for_the_lock_of_that_process(
    tmp_path: Path,
) -> None:
    """It was taken for a wait for the reader's own lock, and so left out."""
    with hanging(tmp_path) as program:
        files = f"/proc/{program.pid}/map_files"
        ls = subprocess.Popen(["ls", files], stdout=subprocess.DEVNULL)
        until(stack_has(ls.pid, "proc_map_files_readdir"))
        told = why(program.pid)
    ls.wait()
    (waits,) = (one for one in told["found"] if one["tid"] == ls.pid)
    assert (waits["does"], waits["operation"]) == ("waits", f"read of {files}")
    assert ls.pid in {one["tid"] for one in told["waiting"]}
