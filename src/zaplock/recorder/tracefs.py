"""The kernel's trace file system: where it is, and instances that leave no trace of themselves.

Where tracefs is mounted, it is used there. Where it is not, it is opened as a detached mount
(fsopen, fsmount: Linux 5.2), which has no place in the directory tree, is seen by this process
alone and ceases with its descriptor, so also when the process is killed.

An instance (Documentation/trace/ftrace.rst, "Instances") is a trace buffer of its own with its own
enabled events: what others trace is neither seen nor disturbed. Removing it switches off all its
events. A recorder that was killed leaves its instances, which the next one sweeps up (`sweep`).

Whose an instance is, is told by its name (boot, pid namespace, process, the process's start) and by
a lock: as long as its owner lives, it holds a flock on the instance's directory. There is one
tracefs for all containers of a kernel, so the lock is seen in each of them, and it goes with the
process, however that ends. Only an instance that nobody holds and whose owner would be seen here is
swept.

Others may hold files of an instance open for a moment (a monitor that reads all of tracefs); then
the kernel answers EBUSY, and asking again helps. Where it does not, the instance is switched off
and told (`LeftOver`), and goes with the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from zaplock.errors import UserError
from zaplock.untrusted_names import read_text

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # one number on every architecture
_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_OURS = re.compile(r"zaplock-([0-9a-f]{8})-(\d+)-(\d+)-(\d+)-\d+")
_PATIENCE_S = 3.0
_PAUSE_S = 0.01
_serial = count()
_given_up: dict[str, int] = {}
"""Instances of this process that could not be removed, with their locks."""


class LeftOver(UserWarning):
    """Warn that an instance could not be removed: it is off, and the next start removes it."""


@dataclass(frozen=True, slots=True)
class Tracefs:
    """An opened tracefs: `path` leads to its root; `private` says that it is our own mount."""

    path: Path
    private: bool

    def event_id(self, event: str) -> int | None:
        """Return the number of an event (system:name), None where this kernel has none such."""
        try:
            return int((self.path / "events" / event.replace(":", "/") / "id").read_text())
        except (FileNotFoundError, ValueError):
            return None


@contextlib.contextmanager
def opened() -> Iterator[Tracefs]:
    """Give the tracefs of this machine; a private mount is gone afterwards.

    Raises UserError with the way out where it can't be had.
    """
    if (where := mounted()) and os.access(where / "instances", os.W_OK | os.X_OK):
        yield Tracefs(where, private=False)
        return
    descriptor = _detached_mount()
    try:
        yield Tracefs(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), private=True)
    finally:
        os.close(descriptor)


def mounted() -> Path | None:
    """Find where tracefs is mounted, or None."""
    for line in Path("/proc/self/mounts").read_bytes().split(b"\n"):
        # Others may mount at places of any name; a blank in one is written as \\040.
        fields = line.split(b" ")
        if len(fields) > 2 and fields[2] == b"tracefs":
            plain = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8) & 255]), fields[1])
            return Path(os.fsdecode(plain))
    return None


def _detached_mount() -> int:
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*arguments: int | bytes | None) -> int:
        result = int(libc.syscall(*arguments))
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    context = -1
    try:
        context = call(_FSOPEN, b"tracefs", _CLOEXEC)
        call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_FSMOUNT, context, _CLOEXEC, 0)
    except OSError as error:
        raise UserError(_why_not(error)) from None
    finally:
        if context >= 0:
            os.close(context)


def _why_not(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        if os.geteuid():
            return "tracefs can't be opened without root: run the same command with sudo"
        return f"tracefs can't be opened with the rights that root has here: {given('SYS_ADMIN')}"
    if error.errno == errno.ENODEV:
        return "this kernel has no tracefs (CONFIG_TRACING): boot a distribution's kernel"
    if error.errno == errno.ENOSYS:
        return "tracefs is not mounted: run 'sudo mount -t tracefs tracefs /sys/kernel/tracing'"
    return f"tracefs can't be mounted ({error.strerror}): run 'zaplock doctor'"


def given(capability: str) -> str:
    """Say what gives a capability to a root who has been left few: sudo is no help to them."""
    return f"start the container with --privileged, or --cap-add {capability}"


class Instance:
    """A private trace instance. Use it in a `with` block: it is gone afterwards.

    Tracing is off until `start`. The clock is CLOCK_MONOTONIC (`mono`).
    """

    def __init__(self, tracefs: Tracefs, *, buffer_kb: int) -> None:
        """Make the instance, with a buffer of `buffer_kb` KiB for each CPU."""
        self.name = f"zaplock-{_owner()}-{next(_serial)}"
        self.path = tracefs.path / "instances" / self.name
        self._lock = -1
        # Nobody's last resort but this: an interrupt can come between any two lines.
        self._finalizer = weakref.finalize(self, _abandoned, self.path, os.getpid())
        try:
            self.path.mkdir()
        except OSError as error:
            self._finalizer.detach()
            raise UserError(_why_no_instance(error)) from None
        try:
            self._lock = locked(self.path, wait=True)
            # Off last: the kernel checks a buffer that is off when its size changes, for which it
            # waits for a grace period. No event is on, so nothing comes in.
            self.resize(buffer_kb)
            self.write("trace_clock", "mono")
            self.write("tracing_on", "0")
        except BaseException:
            self.remove()
            raise

    def resize(self, buffer_kb: int) -> None:
        """Set the size of each CPU's buffer in KiB."""
        try:
            self.write("buffer_size_kb", str(buffer_kb))
        except OSError as error:
            raise UserError(
                f"the kernel has no {buffer_kb} KiB a CPU for a trace buffer ({error.strerror}): "
                "give a smaller --buffer"
            ) from None

    def write(self, name: str, text: str) -> None:
        """Write one control file. Raises OSError with the kernel's answer."""
        patiently(lambda: self._write_once(name, text))

    def _write_once(self, name: str, text: str) -> None:
        control = os.open(self.path / name, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(control, text.encode())
        finally:
            os.close(control)

    def add(self, name: str, text: str) -> None:
        """Append to a control file (set_event_pid, a trigger)."""
        # O_APPEND alone: Python's mode "a" seeks, which these files refuse with EINVAL.
        control = os.open(self.path / name, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(control, text.encode())
        finally:
            os.close(control)

    def read(self, name: str) -> str:
        """Read one control file."""
        return (self.path / name).read_text()

    def has(self, event: str) -> bool:
        """Say whether this kernel knows an event, given as system:name."""
        return (self.path / "events" / event.replace(":", "/") / "format").exists()

    def enable(self, event: str, condition: str = "") -> None:
        """Switch an event on, given as system:name, optionally only where a filter holds."""
        if condition:
            self.filter(event, condition)
        self.write(f"events/{event.replace(':', '/')}/enable", "1")

    def disable(self, event: str) -> None:
        """Switch an event off again, given as system:name."""
        self.write(f"events/{event.replace(':', '/')}/enable", "0")

    def filter(self, event: str, condition: str) -> None:
        """Let an event in only where a condition holds, "0": always."""
        self.write(f"events/{event.replace(':', '/')}/filter", condition)

    def start(self) -> None:
        """Let events in."""
        self.write("tracing_on", "1")

    def stop(self) -> None:
        """Let no more events in; what is in the buffers stays readable."""
        self.write("tracing_on", "0")

    def remove(self) -> None:
        """Remove the instance, and with it every event that it enabled. Twice does no harm.

        All its files must be closed before. Where another process keeps one open, the instance is
        switched off and left, with a warning (LeftOver).
        """
        try:
            patiently(self._remove_once)
        except OSError as error:
            self._leave(error)
        else:
            self._unlock()
        self._finalizer.detach()

    def _remove_once(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            # Before the pid filter goes: whose probes stand before and behind those of an event,
            # and the kernel waits for a grace period where the first of several goes.
            self._write_once("events/enable", "0")
            self.path.rmdir()

    def _leave(self, error: OSError) -> None:
        for name, text in (("tracing_on", "0"), ("events/enable", "0"), ("buffer_size_kb", "1")):
            with contextlib.suppress(OSError):
                self._write_once(name, text)
        _given_up[self.name], self._lock = self._lock, -1
        warnings.warn(
            f"trace instance {self.name} can't be removed ({error.strerror}: another process reads "
            "it); it is off, and the next start of zaplock removes it",
            LeftOver,
            stacklevel=3,
        )

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Instance:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _abandoned(path: Path, pid: int) -> None:
    """Remove what an interrupt left; in a forked child it is its parent's."""
    if pid == os.getpid():
        with contextlib.suppress(OSError):
            (path / "tracing_on").write_text("0")
            path.rmdir()


def _why_no_instance(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "a trace instance needs root: run the same command with sudo"
    if error.errno == errno.ENOMEM:
        return (
            "the kernel has no memory for a trace instance: free some, or give a smaller --buffer"
        )
    return f"the kernel makes no trace instance ({error.strerror}): run 'zaplock doctor'"


def patiently(action: Callable[[], None]) -> None:
    """Do something again for a while, as long as the kernel says EBUSY."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE_S)


def _owner() -> str:
    pid = os.getpid()
    return f"{_boot()}-{_pid_namespace()}-{pid}-{start_time(pid)}"


def _boot() -> str:
    return read_text("/proc/sys/kernel/random/boot_id").replace("-", "")[:8]


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def locked(path: Path, *, wait: bool = False) -> int:
    """Lock an instance's directory; return the descriptor that holds the lock.

    Raises OSError (EWOULDBLOCK) where somebody holds it, unless told to `wait`: whoever sweeps
    holds the lock of a new instance for the moment in which it is seen to be new. An open
    directory, other than an open file of the instance, does not keep the kernel from removing it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def left_over(tracefs: Tracefs) -> tuple[list[str], list[str]]:
    """List the instances of recorders that are gone, and those of which that can't be told.

    The latter are from another pid namespace or an earlier zaplock, and nobody holds their lock.
    """
    gone, unknown = [], []
    for path in (tracefs.path / "instances").glob("zaplock-*"):
        try:
            os.close(locked(path))
        except OSError:
            continue  # it is held, or has just gone
        match = _OURS.fullmatch(path.name)
        if match is None or (match[1], int(match[2])) != (_boot(), _pid_namespace()):
            unknown.append(path.name)
        elif start_time(int(match[3])) != int(match[4]):
            gone.append(path.name)
    return sorted(gone), sorted(unknown)


def sweep(tracefs: Tracefs) -> list[str]:
    """Remove the instances of recorders that are gone; return their names."""
    for name in list(_given_up):
        _forget(tracefs.path / "instances" / name)
    swept = []
    for name in left_over(tracefs)[0]:
        path = tracefs.path / "instances" / name
        with contextlib.suppress(OSError):  # somebody else reads it: the next start tries again
            lock = locked(path)
            try:
                (path / "tracing_on").write_text("0")
                path.rmdir()
                swept.append(name)
            finally:
                os.close(lock)
    return swept


def _forget(path: Path) -> None:
    """Remove an instance of ours that could not be removed before."""
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()
        lock = _given_up.pop(path.name)
        if lock >= 0:
            os.close(lock)


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot, or None where there is none."""
    try:
        fields = read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
