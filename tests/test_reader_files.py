"""Which file of /proc somebody reads whose system call can't be seen, as he waits for a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zaplock.recorder.subjects import Subjects
from zaplock.trace.kernel_stacks import files_of, meaning

WAITS_IN_MAPS = (
    "rwsem_down_read_slowpath", "down_read_killable", "m_start", "seq_read_iter", "vfs_read",
    "ksys_read",
)  # fmt: skip
READS_SOME = """
import sys
watched, *names = sys.argv[1:]
files = [open(f"/proc/{watched}/{name}") for name in names]
print("go", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("opened", "stack", "told"),
    [
        (("maps", "status", "stat"), WAITS_IN_MAPS, "read of /proc/{}/maps"),
        (("smaps", "status"), WAITS_IN_MAPS, "read of /proc/{}/smaps"),
        (("smaps", "smaps", "stat"), WAITS_IN_MAPS, "read of /proc/{}/smaps"),
        (("maps", "smaps"), WAITS_IN_MAPS, "read"),  # which of the two nothing tells
        (("status",), WAITS_IN_MAPS, "read"),
        (("status",), ("seq_read_iter", "vfs_read", "ksys_read"), "read of /proc/{}/status"),
    ],
)
def test_a_reader_that_waits_for_a_cpu_keeps_its_files_name(
    opened: tuple[str, ...], stack: tuple[str, ...], told: str
) -> None:
    """Its system call can't be seen; its stack says that it goes from mapping to mapping."""
    watched = os.getpid()
    command = [sys.executable, "-c", READS_SOME, str(watched), *opened]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout
        reader.stdout.readline()
        path = f"/proc/{reader.pid}/task/{reader.pid}"
        operation = meaning(stack, asleep=False, kernel=(6, 18)).operation
        assert operation == "read"
        name, subject, _ = Subjects().work(path, reader.pid, operation, (), files_of(stack))
        assert reader.stdin
        reader.stdin.close()
    assert name == told.format(watched)
    assert subject == (reader.pid if told == "read" else watched)
