"""Start, drive and end the bare process: one batch is one forked runner.

The process is a Python interpreter for a few milliseconds: it maps the ring and jumps into the
stub, which unmaps the interpreter. It runs without address-space randomisation, so that the
kernel's choices of addresses repeat, and without glibc's rseq area, which may not be unmapped.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zaplock.errors import UserError
from zaplock.linux_version import find
from zaplock.oracle import ring, stub
from zaplock.oracle.kept import ends
from zaplock.oracle.rights import administers, way_out
from zaplock.workers import check_python

_BECOME_BARE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
fd, out, ring, size, first = map(int, sys.argv[1:])
try:
    open('/proc/self/oom_score_adj', 'w').write('1000')
except OSError:
    pass
os.dup2(out, 3)
got = libc.mmap(ring, size, 7, 0x100001, fd, 0)
if got != ring:
    sys.exit(3)
stat = open('/proc/self/stat').read().rpartition(')')[2].split()
ctypes.c_uint64.from_address(first + 8).value = int(stat[44])  # start_brk: the first entry is brk
ctypes.CFUNCTYPE(None, ctypes.c_uint64)(ring)(first)
"""

_FUTEX_WAIT, _FUTEX_WAKE, _SYS_FUTEX, _SYS_PERSONALITY = 0, 1, 202, 135
_ADDR_NO_RANDOMIZE = 0x0040000
_CLONE_NEWIPC = 0x0800_0000
_PR_SET_PDEATHSIG = 1
HANG_S = 10.0
OBSERVATIONS_MAPPED = 64 << 20  # bytes: what one program observes is far less, nearly always


class Lost(Exception):
    """The child hung or died in a way that no operation may cause; `str` says which."""


class Late(Lost):
    """The child had too little time, as it may have on a busy machine."""


def _preparation() -> Callable[[], None]:
    libc, parent = ctypes.CDLL(None), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it dies with whoever asks it
        if os.getppid() != parent:  # who is gone already
            os._exit(1)
        libc.syscall(_SYS_PERSONALITY, _ADDR_NO_RANDOMIZE)
        libc.unshare(_CLONE_NEWIPC)  # by root: its System V shared memory goes with it

    return prepare


def _memfd(name: str) -> int:
    """Make a memfd whose descriptor is none of the small ones that the child uses itself."""
    low = os.memfd_create(name)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 64)
    finally:
        os.close(low)


def check_machine() -> None:
    """Raise UserError where the stub can't run or the kernel can't be observed enough."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise UserError(
            f"the oracle's child is x86-64 machine code and this is {platform.machine()}: "
            "run it on x86-64 Linux"
        )
    version = find(platform.release())
    if version is None or not version.carries("6.7"):
        raise UserError(
            f"kernel {platform.release()} has no PAGEMAP_SCAN: the oracle needs 6.7 or newer"
        )
    check_python()


def check_overcommit() -> None:
    """Raise UserError unless memory is overcommitted heuristically.

    The model knows only that mode. And 6.18 forgets to give back what a shrinking
    mremap(MREMAP_FIXED) has cut off: Committed_AS grows with every run and never shrinks again.
    Heuristic overcommit does not look at it, but strict overcommit (2) would run out of memory.
    """
    mode = int(Path("/proc/sys/vm/overcommit_memory").read_text())
    if mode != 0:
        raise UserError(
            f"vm.overcommit_memory is {mode} and the oracle needs 0: its sequences make some "
            "kernels leak Committed_AS, so run it on a machine with heuristic overcommit"
        )


def has_swap() -> bool:
    """Return whether memory can be paged out to anywhere."""
    return len(Path("/proc/swaps").read_text().splitlines()) > 1


def check_no_swap() -> None:
    """Raise UserError where there is swap: the theme pageout is what is done without."""
    if has_swap():
        raise UserError("/proc/swaps lists swap and the theme pageout needs none: take theme swap")


def check_root(theme: str, what: str) -> None:
    """Raise UserError where a theme needs what only root may have."""
    if not administers():
        raise UserError(f"theme {theme} needs {what}, which only root may have: {way_out()}")


IO_URING_DISABLED = Path("/proc/sys/kernel/io_uring_disabled")


def check_io_uring() -> None:
    """Raise UserError where a process without capabilities gets no io_uring."""
    try:
        disabled = IO_URING_DISABLED.read_text().strip()
    except FileNotFoundError:  # before 6.6
        disabled = "0"
    if disabled != "0":
        raise UserError(
            f"theme uring needs an io_uring, and kernel.io_uring_disabled is {disabled}: "
            "set it to 0 for the run"
        )


class BareProcess:
    """A bare process and its ring. `run` executes one program in a fresh fork of it."""

    def __init__(self, *inherited: int) -> None:
        """Start the process and wait until it is bare; raise UserError where it can't be had.

        It has the `inherited` descriptors (none of the small ones) too, under the same numbers,
        and those of what the machine has lent (kept.ends).
        """
        self._inherited = (*inherited, *ends())
        check_machine()
        check_overcommit()
        self._memfd, self._out = _memfd("ring"), _memfd("observations")
        os.ftruncate(self._memfd, ring.RING_SIZE)
        self.memory = mmap.mmap(self._memfd, ring.RING_SIZE)
        os.ftruncate(self._out, OBSERVATIONS_MAPPED)
        self._observations = mmap.mmap(self._out, OBSERVATIONS_MAPPED, prot=mmap.PROT_READ)
        self._anchor = ctypes.c_char.from_buffer(self.memory)
        self._base = ctypes.addressof(self._anchor)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.write(0, stub.CODE)
        self.write(ring.CONTROL, ring.control_words())
        self.write(ring.BOOT, ring.boot(self._inherited))
        try:
            self._start()
        except Lost:
            self.close()
            raise

    def _start(self) -> None:
        arguments = (self._memfd, self._out, ring.RING, ring.RING_SIZE, ring.RING + ring.BOOT)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _BECOME_BARE, *map(str, arguments)],
            pass_fds=[self._memfd, self._out, *self._inherited],
            preexec_fn=_preparation(),
            env={**os.environ, "GLIBC_TUNABLES": "glibc.pthread.rseq=0"},
            stdin=subprocess.DEVNULL,
        )
        self.run(ring.PRELUDE + ring.EXIT)

    @property
    def pid(self) -> int:
        """The bare process's id; runners are its children."""
        return self._process.pid

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the ring."""
        self.memory[offset : offset + len(data)] = data

    def word(self, offset: int) -> int:
        """Read one signed 64-bit word of the ring."""
        value: int = struct.unpack_from("<q", self.memory, offset)[0]
        return value

    def observed(self) -> bytes | mmap.mmap:
        """Show what the last program observed (and, behind it, what longer ones left).

        It is what the next program writes to.
        """
        length = self.observed_length()
        if length <= OBSERVATIONS_MAPPED:
            return self._observations
        return os.pread(self._out, length, 0)

    def observed_length(self) -> int:
        """Return how many bytes the last program observed."""
        return os.lseek(self._out, 0, os.SEEK_CUR)

    def program(self, length: int) -> bytes:
        """Read the last program back, now with its results."""
        return self.memory[ring.PROGRAM : ring.PROGRAM + length]

    def run(self, program: bytes) -> int:
        """Run a program (which ends with `ring.EXIT`) to its end; return the runner's wait status.

        Raises Lost when it takes longer than HANG_S or the bare process itself died.
        """
        ring.require_room(program)
        self.write(ring.PROGRAM, program)
        struct.pack_into("<I", self.memory, ring.DONE, 0)
        struct.pack_into("<I", self.memory, ring.GO, 1)
        self._futex(ring.GO, _FUTEX_WAKE, 1, None)
        self._wait()
        return self.word(ring.STATUS) & 0xFFFF_FFFF

    def _wait(self) -> None:
        deadline = time.monotonic() + HANG_S
        timeout = struct.pack("<qq", 0, 200_000_000)
        while True:
            self._futex(ring.DONE, _FUTEX_WAIT, 0, timeout)
            if struct.unpack_from("<I", self.memory, ring.DONE)[0]:
                return
            if self._process.poll() is not None:
                raise Lost(f"the bare process ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise Late(f"a program was still running after {HANG_S:.0f} s")

    def _futex(self, offset: int, operation: int, value: int, timeout: bytes | None) -> None:
        self._libc.syscall(
            ctypes.c_long(_SYS_FUTEX), ctypes.c_void_p(self._base + offset),
            ctypes.c_int(operation), ctypes.c_int(value), timeout, None, ctypes.c_int(0),
        )  # fmt: skip

    def close(self) -> None:
        """Kill the bare process (its runners go with it) and give its memory back, once."""
        if self.memory.closed:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        del self._anchor
        self.memory.close()
        self._observations.close()
        os.close(self._memfd)
        os.close(self._out)
