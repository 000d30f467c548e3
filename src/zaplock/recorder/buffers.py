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
from collections.abc import Sequence
from pathlib import Path

from zaplock.recorder.tracefs import Instance

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
        self._stop, self._stopper = os.pipe()
        with contextlib.suppress(OSError):  # a smaller pipe only means more calls
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _PIPE)
        self._poll = select.poll()
        for instance in instances:
            for cpu, path in per_cpu(instance.path):
                file = os.open(path / "trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
                self._files.append((cpu, file))
                self._poll.register(file, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)

    def wait(self, timeout_ms: int) -> None:
        """Sleep until a buffer fills up, `wake` is called or the time is over."""
        self._poll.poll(timeout_ms)

    def wake(self) -> None:
        """End a `wait` of another thread, and every later one."""
        os.write(self._stopper, b"x")

    def drain(self) -> list[Chunk]:
        """Take everything that the buffers hold now."""
        chunks: list[Chunk] = []
        for cpu, file in self._files:
            chunks += ((cpu, pages) for pages in self._whole_pages(file))
            chunks += ((cpu, page) for page in self._last_page(file))
        return chunks

    def _whole_pages(self, file: int) -> list[bytes]:
        taken = []
        # A writer may be faster than this loop: what comes in meanwhile is for the next drain.
        for _ in range(64):
            try:
                count = os.splice(file, self._in, _PIPE, flags=_SPLICE_F_NONBLOCK)
            except BlockingIOError:
                break
            if count == 0:
                break
            taken.append(self._from_pipe(count))
        return taken

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
        if self._files:
            for end in (self._out, self._in, self._stop, self._stopper):
                os.close(end)
        self._files = []


def per_cpu(path: Path) -> list[tuple[int, Path]]:
    """List the per-CPU folders of an instance, by number."""
    return sorted((int(cpu.name[3:]), cpu) for cpu in (path / "per_cpu").glob("cpu*"))


def lost_in_kernel(instance: Instance) -> int:
    """Count the events that the kernel says it lost, over all CPUs."""
    lost = 0
    for _, cpu in per_cpu(instance.path):
        for line in (cpu / "stats").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("overrun", "dropped events", "commit overrun"):
                lost += int(value)
    return lost
