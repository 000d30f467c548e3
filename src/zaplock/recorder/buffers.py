"""Read the per-CPU buffers of a trace instance: wait until they fill up, then take whole pages.

`poll` on `per_cpu/cpuN/trace_pipe_raw` sleeps until a buffer holds `buffer_percent` of its size;
`splice` then moves whole pages through a pipe without copying them in the kernel, 256 at a time,
where `read` gives one page a call. A page that is still being written is left alone by `splice`
and copied by `read`, so a drain ends with one `read` for each CPU, and everything that happened
before the drain began has then been read.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Iterator, Sequence
from pathlib import Path

from zaplock.recorder.tracefs import Instance, patiently

_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031
_SPLICE_F_NONBLOCK = 2

Chunk = tuple[int, bytes]
"""A CPU's number and whole pages of its buffer."""


class Buffers:
    """The buffers of some instances of one kernel. Close it before an instance is removed."""

    def __init__(self, instances: Sequence[Instance], page_size: int) -> None:
        self._page_size = page_size
        self._files: list[tuple[int, int]] = []
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self._ends: tuple[int, ...] = (self._out, self._in)
        self._stop, self._stopper = os.pipe()
        self._ends += (self._stop, self._stopper)
        with contextlib.suppress(OSError):  # a smaller pipe only means more calls
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE)
        self._poll = select.poll()
        self._poll.register(self._stop, select.POLLIN)
        self._closed = [
            (cpu, path / "trace_pipe_raw")
            for instance in instances
            for cpu, path in per_cpu(instance.path)
        ]
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Open the buffers of the CPUs that are there.

        `per_cpu` has all that may ever be; one that was never online has no buffer yet: its file
        can be opened, but says POLLERR at once and ENODEV when it is read. When the CPU comes, its
        buffer keeps what happens until the file is opened at the next drain.
        """
        still = []
        for cpu, path in self._closed:
            file = _opened(path)
            probe = select.poll()
            probe.register(file, select.POLLIN)
            if any(seen & select.POLLERR for _, seen in probe.poll(0)):
                os.close(file)
                still.append((cpu, path))
                continue
            self._files.append((cpu, file))
            self._poll.register(file, select.POLLIN)
        self._closed = still

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until a buffer fills up, `wake` is called or the time is over; False: the last."""
        return bool(self._poll.poll(timeout_ms))

    def wake(self) -> None:
        """End a `wait` of another thread, and every later one."""
        os.write(self._stopper, b"x")

    def drain(self) -> list[Chunk]:
        """Take everything that the buffers hold now."""
        return list(self.pieces())

    def pieces(self) -> Iterator[Chunk]:
        """Take everything that the buffers hold now, at most `_PIPE` bytes at a time."""
        if self._closed:
            self._open()
        for cpu, file in self._files:
            for pages in self._whole_pages(file):
                yield cpu, pages
            for page in self._last_page(file):
                yield cpu, page

    def _whole_pages(self, file: int) -> Iterator[bytes]:
        # A writer may be faster than this loop: what comes in meanwhile is for the next drain.
        for _ in range(64):
            try:
                count = os.splice(file, self._in, _PIPE, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                break
            if count == 0:
                break
            yield self._from_pipe(count)

    def _from_pipe(self, count: int) -> bytes:
        pages = os.read(self._out, count)
        while len(pages) < count:
            pages += os.read(self._out, count - len(pages))
        return pages

    def _last_page(self, file: int) -> list[bytes]:
        try:
            page = os.read(file, self._page_size)
        except BlockingIOError:
            return []
        # A page of a splice is always whole; one of a read may lack its unused end.
        return [page.ljust(self._page_size, b"\0")] if page else []

    def close(self) -> None:
        """Close every file. Twice does no harm."""
        for _, file in self._files:
            os.close(file)
        for end in self._ends:
            os.close(end)
        self._files, self._ends, self._closed = [], (), []


def _opened(path: Path) -> int:
    file = -1

    def open_once() -> None:
        nonlocal file
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    patiently(open_once)
    return file


def per_cpu(path: Path) -> list[tuple[int, Path]]:
    """List the per-CPU folders of an instance, by number."""
    return sorted((int(cpu.name[3:]), cpu) for cpu in (path / "per_cpu").glob("cpu*"))


def lost_in_kernel(instance: Instance) -> int:
    """Count the events that the kernel says it lost, over all CPUs."""
    return _counted(instance, ("overrun", "dropped events", "commit overrun"))


def seen_in_kernel(instance: Instance) -> int:
    """Count the events that the kernel has written, over all CPUs."""
    return _counted(instance, ("entries", "read events"))


def _counted(instance: Instance, names: Sequence[str]) -> int:
    counted = 0
    for _, cpu in per_cpu(instance.path):
        try:
            lines = (cpu / "stats").read_text().splitlines()
        except OSError:  # a CPU that was never there
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in names:
                counted += int(value)
    return counted
