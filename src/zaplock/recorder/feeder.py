"""The thread that empties the kernel's buffers, and the queue between it and the writer.

The thread does nothing but move pages, so that no decoding and no disk can make it late. What the
writer has not yet taken waits in memory, up to `QUEUE_BYTES`; beyond that it waits as raw pages in
files beside the recording (`spool-*.raw`), which cost a copy into the page cache and are deleted
as they are taken. So a burst that outruns the decoder is decoded later and nothing is lost; only
when `SPOOL_BYTES` are used up, or the disk is full, does the thread stop taking: then the kernel's
buffers fill up, the kernel counts what it loses, and the recording tells it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from itertools import count

from zaplock.outputs import Folder
from zaplock.recorder.buffers import Buffers, Chunk
from zaplock.recorder.scheduling import join_first

QUEUE_BYTES = 128 << 20
SPOOL_BYTES = 8 << 30
_PATIENCE_S = 0.05
_WAKE_MS = 250
_NICE = -10


@dataclass(frozen=True, slots=True)
class Drained:
    """What one drain brought, complete up to `before_ns`; its pages are here or in a file."""

    before_ns: int
    size: int
    chunks: tuple[Chunk, ...] = ()
    file: str = ""
    """Its name in the folder, "" where the pages are here."""
    folder: Folder | None = None
    parts: tuple[tuple[int, int], ...] = ()
    """Of a file: the CPU and the number of bytes of each part."""

    def take(self) -> list[Chunk]:
        """Give the pages; a file is deleted."""
        if self.folder is None:
            return list(self.chunks)
        with self.folder.read(self.file) as spool:
            taken = [(cpu, spool.read(size)) for cpu, size in self.parts]
        self.folder.remove(self.file)
        return taken

    def discard(self) -> None:
        """Delete the file, if there is one."""
        if self.folder is not None:
            with contextlib.suppress(OSError):  # the writer has given the folder up
                self.folder.remove(self.file)


class Feeder(threading.Thread):
    """Drain `buffers` into a queue; its overflow is kept in `folder`."""

    def __init__(self, buffers: Buffers, folder: Folder) -> None:
        super().__init__(daemon=True)
        self._buffers = buffers
        self._folder = folder
        self._queue: deque[Drained] = deque()
        self._in_memory = 0
        self._on_disk = 0
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self._numbers = count()

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of pages are waiting for the writer."""
        return self._in_memory + self._on_disk

    def run(self) -> None:
        """Drain until `stop`, before others: it has little to do, but on a busy machine soon."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            while not self._ended:
                self._buffers.wait(_WAKE_MS)
                self._drain()
        except BaseException as error:
            self._error = error
            with self._changed:
                self._changed.notify_all()

    def _drain(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._on_disk < SPOOL_BYTES or self._ended)
        before_ns = time.monotonic_ns()
        chunks = self._buffers.drain()
        size = sum(len(pages) for _, pages in chunks)
        if self._in_memory + size > QUEUE_BYTES and size:
            drained = self._spooled(before_ns, size, chunks)
        else:
            drained = Drained(before_ns, size, tuple(chunks))
        with self._changed:
            self._queue.append(drained)
            self._in_memory += 0 if drained.file else size
            self._on_disk += size if drained.file else 0
            self._changed.notify_all()

    def _spooled(self, before_ns: int, size: int, chunks: list[Chunk]) -> Drained:
        file = f"spool-{next(self._numbers):06d}.raw"
        try:
            with self._folder.create(file) as spool:
                for _, pages in chunks:
                    spool.write(pages)
        except OSError:
            self._folder.remove(file)
            raise
        parts = tuple((cpu, len(pages)) for cpu, pages in chunks)
        return Drained(before_ns, size, file=file, folder=self._folder, parts=parts)

    def next(self, until_ns: int | None = None) -> tuple[int, list[Chunk]] | None:
        """Take the oldest drain: when it began, and its chunks; None within `_PATIENCE_S`.

        Nor is it waited for beyond `until_ns` (CLOCK_MONOTONIC).

        Raises what has ended the thread, a full disk among others.
        """
        left_s = _PATIENCE_S if until_ns is None else (until_ns - time.monotonic_ns()) / 1e9
        with self._changed:
            self._changed.wait_for(
                lambda: bool(self._queue) or self._error is not None,
                min(max(left_s, 0.0), _PATIENCE_S),
            )
            if self._queue:
                drained = self._queue.popleft()
            elif self._error:
                raise self._error
            else:
                return None
        chunks = drained.take()
        with self._changed:
            self._in_memory -= 0 if drained.file else drained.size
            self._on_disk -= drained.size if drained.file else 0
            self._changed.notify_all()
        return drained.before_ns, chunks

    def stop(self) -> None:
        """End the thread, and put what the kernel's buffers still hold into the queue."""
        self._ended = True
        with self._changed:
            self._changed.notify_all()
        self._buffers.wake()
        if self.is_alive():
            join_first(self)
        while self._error is None and self._left():
            pass

    def _left(self) -> bool:
        before = len(self._queue)
        self._drain()
        if self._queue[-1].size == 0:
            self._queue.pop()
        return len(self._queue) > before

    def discard(self) -> None:
        """Delete the files that nobody will take any more."""
        for drained in self._queue:
            drained.discard()
        self._queue.clear()
