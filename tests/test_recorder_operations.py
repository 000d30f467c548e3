"""What holds the lock is named, also if another process or a signal is behind it (needs root)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zaplock.recorder.in_memory import record_mm
from zaplock.system_calls import FOREIGN, TRACED_NAMES
from zaplock.trace.analysis import Analysis, analyse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="recording needs root")

TARGET = """
import mmap, sys, threading, time
area = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, len(area), 4096):
    area[page] = 1
for _ in range(3):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
import ctypes
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
time.sleep(600)
"""


@pytest.fixture
def target() -> subprocess.Popen[str]:
    with subprocess.Popen(
        [sys.executable, "-c", TARGET], stdout=subprocess.PIPE, text=True
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def operations_of(analysis: Analysis, tid: int) -> set[str]:
    holds = analysis.holds
    rows = np.flatnonzero((holds["tid"] == tid) & (holds["op"] >= 0))
    return {holds.operations[int(holds["op"][row])] for row in rows}


def read_memory_of(pid: int, address: int) -> None:
    """Read a page of another process, as py-spy does."""

    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    here = ctypes.create_string_buffer(4096)
    local = Iovec(ctypes.cast(here, ctypes.c_void_p), 4096)
    remote = Iovec(address, 4096)
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    assert done == 4096, os.strerror(ctypes.get_errno())


def test_a_foreign_process_vm_readv_is_named(target: subprocess.Popen[str]) -> None:
    assert target.stdout is not None
    address = int(target.stdout.readline())
    child = 0
    with record_mm(target.pid) as recorder:
        child = os.fork()
        if child == 0:
            read_memory_of(target.pid, address)
            os._exit(0)
        os.waitpid(child, 0)
    analysis = analyse(recorder.events(), os.uname().release)
    assert operations_of(analysis, child) == {"process_vm_readv"}
    assert set(analysis.events.mms.values()) == {target.pid}  # not the reader's


def test_an_exit_by_a_signal_is_an_exit(target: subprocess.Popen[str]) -> None:
    """No thread calls exit_group; the last one to end takes the address space down."""
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 16):
        pytest.skip("before 6.16 a task tells its end after it took its address space down")
    assert target.stdout is not None
    target.stdout.readline()
    with record_mm(target.pid) as recorder:
        os.kill(target.pid, signal.SIGKILL)
        target.wait()
        time.sleep(0.2)
    analysis = analyse(recorder.events(), os.uname().release)
    longest = int(np.argmax(analysis.holds["hold_ns"]))
    assert operations_of(analysis, int(analysis.holds["tid"][longest])) == {"exit"}


def test_one_table_says_what_a_call_is() -> None:
    assert len(set(TRACED_NAMES)) == len(TRACED_NAMES)
    assert set(FOREIGN) <= set(TRACED_NAMES)
