"""An exception between any two bytecodes of release and buffers leaves no claim, pin, job or hang.

Signal handlers raise wherever they like. Here one exception strikes at every single bytecode of a
story, one run each, in whatever thread executes it: more places than a real signal can find.
"""

from __future__ import annotations

import _thread
import gc
import mmap
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from release_scenes import mapped

import zaplock
from zaplock import buffers
from zaplock.release import flush, in_background, pending, release, release_soon
from zaplock.release.claims import nothing_is_claimed
from zaplock.release.pinned import address_of

PAGE = mmap.PAGESIZE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
LENGTH = 4 * PAGE
ROOMS = tuple(str(Path(zaplock.__file__).parent / room) + "/" for room in ("release", "buffers"))
PATIENCE_S = 120


class Struck(BaseException):
    """What a signal handler raised."""


class Striker:
    """Counts the bytecodes of both rooms that threads execute, and raises at one of them."""

    def __init__(self, at: int) -> None:
        self.at, self.over = at, False
        seen, last = 0, at + 1

        def enter(frame: FrameType, _event: str, _argument: Any) -> Any:
            if seen >= last or not frame.f_code.co_filename.startswith(ROOMS):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
            return step

        def step(_frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal seen  # a variable of its own: this runs millions of times
            if event == "opcode":
                seen += 1
                if seen == last:
                    raise Struck
            return step

        def spare() -> int:
            """Strike nobody from here on; return how many bytecodes were seen."""
            nonlocal last
            last = -1
            return seen

        self.enter, self.step, self.spare = enter, step, spare

    def __enter__(self) -> Striker:
        in_background.get_ident = self.get_ident  # the worker's first call
        sys.settrace(self.enter)
        return self

    def __exit__(self, *_arguments: object) -> None:
        sys.settrace(None)
        in_background.get_ident = _thread.get_ident
        self.over = self.spare() > self.at  # nor a thread that lives on

    def get_ident(self) -> int:
        """Have a new thread traced from here on, and its caller's frame as well."""
        if sys.gettrace() is None and threading.main_thread().ident != _thread.get_ident():
            sys.settrace(self.enter)
            caller = sys._getframe(1)
            caller.f_trace, caller.f_trace_opcodes = self.step, True
        return _thread.get_ident()


def private() -> mmap.mmap:
    made = mmap.mmap(-1, LENGTH, flags=PRIVATE)
    made[:] = b"x" * LENGTH
    return made


def new_worker() -> None:
    """Have a worker without a thread; the old one's ends."""
    flush()
    before, in_background._worker = in_background._worker, in_background._Worker(alone=False)
    before.pid = 0
    before.wake.put(None)


class Story:
    """Something to release, how, and what must be true of it afterwards."""

    def __init__(self) -> None:
        self.thing: Any = self.make()
        self.saved: BaseException | None = None

    def make(self) -> Any:
        return private()

    def act(self) -> None:
        release(self.thing)

    def check(self) -> None:
        """Whether it was released or not, it can be closed: nothing holds it."""
        self.thing.close()


class Mmap(Story):
    pass


class Address(Story):
    """One page; whether it is unmapped is not asked: by then somebody else may live there."""

    def make(self) -> int:
        return mapped(PAGE)

    def act(self) -> None:
        # Of libraries' threads there may be many, and one is looked at as the other.
        with mock.patch.object(os, "listdir", return_value=[str(os.getpid())]):
            release(self.thing, PAGE)

    def check(self) -> None:
        pass


class Soon(Story):
    """The worker's thread is a new one, and struck as well."""

    def make(self) -> Any:
        new_worker()
        return super().make()

    def act(self) -> None:
        release_soon(self.thing).result(PATIENCE_S)


class SoonByTheCaller(Story):
    def act(self) -> None:
        in_background._worker.alone = True
        try:
            release_soon(self.thing).result(PATIENCE_S)
        finally:
            in_background._worker.alone = False


class Flushed(Soon):
    def act(self) -> None:
        release_soon(self.thing)
        flush()


class View(Story):
    def act(self) -> None:
        release(np.ndarray((LENGTH,), np.uint8, buffer=self.thing)[1:])


class ViewSoon(Story):
    def make(self) -> Any:
        new_worker()
        return bytearray(b"x" * LENGTH)

    def act(self) -> None:
        view = np.ndarray((LENGTH,), np.uint8, buffer=self.thing)  # exports nothing by itself
        release_soon(view).result(PATIENCE_S)

    def check(self) -> None:
        self.thing += b"y" * LENGTH  # raises if it is exported


class Segment(Story):
    def make(self) -> Any:
        made = SharedMemory(create=True, size=LENGTH)
        made.unlink()
        return made

    def act(self) -> None:
        release(self.thing)

    def check(self) -> None:
        if self.thing._mmap is not None and not self.thing._mmap.closed:
            assert self.thing.buf is not None
            self.thing.buf[5] = 7  # it is as it was
        self.thing.close()


class Refused(Segment):
    def act(self) -> None:
        user = np.ndarray((5,), np.uint8, buffer=self.thing.buf)
        with pytest.raises(BufferError):
            release(self.thing)
        del user


class Resized(Story):
    def make(self) -> Any:
        made = buffers.empty(LENGTH, np.uint8)
        made[:] = 9
        return made

    def act(self) -> None:
        self.new = None
        self.new = buffers.resize(self.thing, 3 * LENGTH)

    def check(self) -> None:
        kept = self.thing if self.new is None else self.new[:LENGTH]
        assert (kept == 9).all() or self.struck_when_done()

    def struck_when_done(self) -> bool:
        """Tell whether all was done, and only the way out of `resize` itself was interrupted.

        Three bytecodes there are in no handler's range. No signal handler runs between them.
        """
        *_, last = traceback.extract_tb(self.saved.__traceback__ if self.saved else None)[:-1]
        return last.name == "resize" and last.line in ("hold.let_go()", "return new")


class Populated(Resized):
    def act(self) -> None:
        self.new = None
        buffers.populate(self.thing)


class Borrowed(Story):
    """At the end of the block it is empty, or its end was interrupted and it is as it was."""

    def make(self) -> list[Any]:
        return []

    def act(self) -> None:
        with buffers.borrowed(LENGTH, np.uint8) as lent:
            lent[:] = 9
            self.thing.append(lent)

    def check(self) -> None:
        for lent in self.thing:
            assert set(np.unique(lent)) <= {0, 9}
            release(lent)


class Dropped(Story):
    background = False

    def make(self) -> Any:
        return [buffers.empty(LENGTH, np.uint8, background=self.background)]

    def act(self) -> None:
        self.thing.clear()

    def check(self) -> None:
        pass


class DroppedInTheBackground(Dropped):
    background = True


STORIES = [
    Mmap, Address, Soon, SoonByTheCaller, Flushed, View, ViewSoon, Segment, Refused, Resized,
    Populated, Borrowed, Dropped, DroppedInTheBackground,
]  # fmt: skip


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Finalizers and threads tell of what struck them: that is not asked here."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _told: None)
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def struck_at(kind: type[Story], at: int) -> tuple[bool, Story]:
    """Live a story with an exception at one bytecode; tell whether there was such a one."""
    story = kind()
    with Striker(at) as striker:
        try:
            story.act()
        except BaseException as error:
            story.saved = error  # its traceback keeps all frames, and what their names mean
    return striker.over, story


def flush_in_time() -> None:
    """Flush in a thread of its own, which must end."""
    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "flush hangs"


@pytest.mark.parametrize("kind", STORIES)
def test_an_exception_at_any_bytecode_leaves_nothing(kind: type[Story]) -> None:
    at, strikes = 0, True
    while strikes:
        strikes, story = struck_at(kind, at)
        flush_in_time()
        assert nothing_is_claimed(), f"a claim is left after bytecode {at}"
        assert pending() == 0, at
        story.check()
        at += 1
    assert at > 100
    assert release_soon(private()).result(PATIENCE_S).unmapped


def test_the_striker_strikes() -> None:
    """What takes a claim and gives it back in the next line is found."""
    from zaplock.release import claims

    ranges = claims.of_range()
    found = False
    for at in range(200):
        try:
            with Striker(at):
                ranges.take(0, 10, "0 to 10")
                ranges.let_go()
        except Struck:
            found = found or not nothing_is_claimed()
            ranges.let_go()
    assert found
    assert address_of(private())
