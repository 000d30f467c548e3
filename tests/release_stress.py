"""Random lives of buffers in many threads, with forks and signals: no foreign byte may change.

    python tests/release_stress.py --sequences 500000 --threads 3 --seed 1

A sequence is one buffer's life: made, written, seen in many guises, released in part or whole, at
once or in the background, resized, populated, misused, raced for, closed, dropped. Each has a
shadow of every byte and canaries beside it (release_lives), each thread has blocks of malloc's
that nobody may touch. In the main thread a signal handler raises somewhere in every other release.
From time to time a thread forks: the child checks its copies against the shadows, releases some
and works through what it took over from its parent's queue. Every misuse must be a clear exception.
At the end nothing may be left in maps or memory. A failure names its seed, thread and sequence.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from processes import resident_bytes
from release_lives import GUISES, KINDS, OWNERS, PAGE, Heap, Life

from zaplock import buffers
from zaplock.measure import syscalls
from zaplock.release import ExportedError, ReleaseError, flush, release, release_soon
from zaplock.release.claims import nothing_is_claimed

SPARE = 32 << 20
"""What malloc may keep for itself, in bytes; the lives of 1,000 sequences add up to 400 MB."""
CHILD_S = 60


class Struck(Exception):
    """What the signal handler raised."""


def _hear(told: Any) -> None:
    """Tell of what a finalizer could not raise, unless it was struck."""
    if told.exc_type is not Struck:
        sys.__unraisablehook__(told)


class Signals:
    """A timer whose handler raises in the main thread, while it is armed."""

    def __init__(self, draw: random.Random) -> None:
        self.random, self.armed = draw, False
        self.before = signal.signal(signal.SIGALRM, self.strike)
        self.hook, sys.unraisablehook = sys.unraisablehook, _hear

    def strike(self, _number: int, _frame: object) -> None:
        if self.armed:
            self.armed = False
            raise Struck

    @contextmanager
    def somewhere(self) -> Iterator[None]:
        """Raise Struck at some moment of the block, or not."""
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-6, 6e-4))
        try:
            yield
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def end(self) -> None:
        """Have the signal and its tales as before."""
        signal.signal(signal.SIGALRM, self.before)
        sys.unraisablehook = self.hook


class Actor:
    """One thread's lives, drawn from its own generator."""

    def __init__(
        self, seed: int, number: int, sequences: int, common: list[Life], kinds: Sequence[str]
    ) -> None:
        self.random = random.Random(f"{seed}-{number}")
        self.sequences, self.common, self.kinds = sequences, common, kinds
        self.counts: Counter[str] = Counter()
        self.failure: str = ""
        self.name = f"seed {seed}, thread {number}"
        self.heap = Heap(self.random)
        self.signals: Signals | None = None
        self.acts = [
            self.write, self.write, self.view, self.misuse, self.empty, self.contend,
            self.populate, self.resize, self.check,
        ]  # fmt: skip

    def run(self) -> None:
        """Live all sequences; note the first failure."""
        for sequence in range(self.sequences):
            try:
                self.one()
            except BaseException:
                self.failure = f"{self.name}, sequence {sequence}: {traceback.format_exc()}"
                return

    def one(self) -> None:
        """Acquire one buffer and act on it until its life has ended."""
        life = self.acquire()
        for _ in range(self.random.randrange(1, 7)):
            act = self.random.choice(self.acts)
            self.counts[act.__name__] += 1
            act(life)
            if not life.is_open():
                break
        if self.random.random() < 0.004:
            self.fork(life)
        self.end(life)
        for canary in life.canaries:
            canary.check_and_bury()
        self.heap.turn_over()
        if self.random.random() < 0.1:
            self.heap.check()

    def acquire(self) -> Life:
        pages = self.random.choice([1, 1, 2, 3, 16, 16, 64, 64, 300])
        kind = self.random.choice(self.kinds)
        life = Life(kind, KINDS[kind](pages * PAGE), pages * PAGE)
        self.counts[kind] += 1
        self.write(life)
        return life

    def write(self, life: Life) -> None:
        cut = self.cut(life)
        content = self.random.randbytes(min(cut.stop - cut.start, 1000))
        life.write(cut.start, content * min(8, (life.length - cut.start) // len(content)))

    def check(self, life: Life) -> None:
        life.check()

    def view(self, life: Life) -> None:
        """Keep a view of some of it (an address has no exports)."""
        if life.kind != "address":
            life.views.append(self.guise(life, self.cut(life)))

    def guise(self, life: Life, cut: slice) -> Any:
        name = self.random.choice(list(GUISES))
        self.counts[name] += 1
        return GUISES[name](life.buffer(), cut)

    def cut(self, life: Life) -> slice:
        start = self.random.randrange(life.length)
        return slice(start, self.random.randrange(start, life.length) + 1)

    def misuse(self, life: Life) -> None:
        """Release under views, with a bad length, a bad bound, or a strange view of it."""
        attempts: list[Callable[[], Any]] = [
            lambda: release(*life.arguments(), max_stall_ns=5),
            lambda: release(*life.arguments()[:1], 5),
            lambda: release(memoryview(life.buffer()).toreadonly()),
            lambda: release(np.ndarray((life.length,), np.uint8, buffer=life.buffer())[::2]),
            lambda: release(bytes(life.shadow)),
            lambda: release(np.void(bytes(life.shadow))),
        ]
        if life.kind in OWNERS and life.kind != "address" and any(map(exports, life.views)):
            attempts.append(lambda: release(*life.arguments()))
        refused(self.random.choice(attempts), f"misuse of a {life.kind}")
        life.check()

    def empty(self, life: Life) -> None:
        """Give some of the memory back and go on using it: through a view, or all of it."""
        if life.kind in OWNERS and not life.views and self.random.random() < 0.3:
            self.released(life, (0, life.length), lambda: release(*life.arguments(), unmap=False))
        elif life.kind != "address":
            cut = self.cut(life)
            view = self.guise(life, cut)
            how = self.random.choice([release, lambda seen: release_soon(seen).result(CHILD_S)])
            self.released(life, (cut.start, cut.stop), lambda: how(view))
        life.check()

    def released(self, life: Life, within: tuple[int, int], work: Callable[[], Any]) -> None:
        """Release, perhaps with a signal in the middle; the shadow follows."""
        if self.signals is None or self.random.random() < 0.5:
            life.given_back(work())
            return
        try:
            with self.signals.somewhere():
                work()
        except Struck:
            self.counts["struck"] += 1
        flush()
        if life.is_open():
            life.check_interrupted(within)

    def populate(self, life: Life) -> None:
        if life.kind in ("segment", "address", "array.array"):
            return
        buffers.populate(np.ndarray((life.length,), np.uint8, buffer=life.buffer()))
        life.check()

    def resize(self, life: Life) -> None:
        if life.kind not in ("array", "background array") or life.views:
            return
        for canary in life.canaries:
            canary.check_and_bury()
        length = max(self.random.randrange(2 * life.length), 1)
        grown = Life(life.kind, buffers.resize(life.handle, length), length)
        grown.shadow[: life.length] = life.shadow[:length]
        grown.check()
        life.shadow = bytearray(life.length)
        life.check()  # it reads zeroes, and is memory still
        life.handle, life.length, life.shadow = grown.handle, length, grown.shadow
        life.canaries = grown.canaries

    def contend(self, life: Life) -> None:
        """Put an owner where all threads find it, take one from there and release it: some race."""
        if life.kind not in ("private", "shared", "file"):
            return
        other = Life(life.kind, KINDS[life.kind](life.length), life.length)
        other.write(life.length - 1, b"1")
        for canary in other.canaries:
            canary.check_and_bury()
        self.common.append(other)
        try:
            chosen = self.random.choice(self.common)
            release(*chosen.arguments())
            self.counts["race won"] += 1
        except (ReleaseError, ExportedError):
            self.counts["race lost"] += 1
        del self.common[:-16]

    def fork(self, life: Life) -> None:
        """Have a child check and release its copies; it changes nothing of ours."""
        self.counts["fork"] += 1
        child = os.fork()
        if child == 0:
            try:
                self.child(life)
                os._exit(0)
            except BaseException as error:
                print(f"child of {self.name}: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a child failed"
        if life.is_open():
            life.check()
        self.heap.check()

    def child(self, life: Life) -> None:
        signal.alarm(CHILD_S)  # ends it, should it hang
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        self.signals = None
        self.heap.turn_over()
        if life.is_open():
            life.check()
            if life.kind not in ("address", "shared", "file", "segment"):
                self.write(life)
                self.empty(life)
        flush()
        assert nothing_is_claimed()
        if life.is_open():
            life.check()
        for canary in life.canaries:
            canary.check()
        self.heap.check()

    def end(self, life: Life) -> None:
        """Drop the views, end the life in one of its ways; a second end must be refused."""
        life.views.clear()
        if not life.is_open():
            return
        life.check()
        if life.kind not in OWNERS:
            life.handle = None
            return
        way = self.random.choice(["release", "release", "soon", "close"])
        self.counts[way] += 1
        if way == "close":
            close(life)
        else:
            self.end_by_release(life, way)
        if life.kind != "address":  # by now its addresses may be somebody else's
            error = refused(lambda: release(*life.arguments()), "a second release")
            assert "released already" in str(error), repr(error)

    def end_by_release(self, life: Life, way: str) -> None:
        def work() -> Any:
            if way == "release":
                return release(*life.arguments())
            return release_soon(*life.arguments()).result(CHILD_S)

        whole = life.kind in ("address", "segment")  # how far it got can't be told from outside
        if whole or self.signals is None or self.random.random() < 0.5:
            assert work().unmapped
            return
        try:
            with self.signals.somewhere():
                work()
        except Struck:
            self.counts["struck"] += 1
        flush()
        if life.is_open():
            life.check_interrupted((0, life.length))
        close(life)


def exports(view: Any) -> bool:
    """Tell whether a view exports the memory; numpy's on a buffer keep a reference only."""
    return not isinstance(view, np.ndarray) or isinstance(view.base, memoryview)


def close(life: Life) -> None:
    if life.kind == "address":
        syscalls.munmap(life.handle, life.length)
    else:
        life.handle.close()


def refused(attempt: Callable[[], Any], what: str) -> Exception:
    """Return the one-line error of an attempt; raise AssertionError if it was not refused."""
    try:
        attempt()
    except (ReleaseError, ExportedError) as error:
        return error
    raise AssertionError(f"{what} went through")


def footprint() -> tuple[int, int]:
    """Return the number of mappings and the resident bytes of this process."""
    flush()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what malloc keeps for itself is no leak
    with open("/proc/self/maps") as maps:
        nr_maps = sum(1 for _ in maps)
    return nr_maps, resident_bytes()


def stress(
    sequences: int, threads: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> Counter[str]:
    """Run `sequences` lives over `threads` threads; raise AssertionError at anything wrong."""
    common: list[Life] = []
    share = -(-sequences // threads)
    first, *more = [Actor(seed, number, share, common, kinds) for number in range(threads)]
    running = [threading.Thread(target=actor.run) for actor in more]
    for thread in running:
        thread.start()
    if threading.current_thread() is threading.main_thread():
        first.signals = Signals(random.Random(seed))
    first.run()
    for thread in running:
        thread.join()
    if first.signals:
        first.signals.end()
    common.clear()
    failures = [actor.failure for actor in [first, *more] if actor.failure]
    assert not failures, "\n".join(failures)
    flush()
    assert nothing_is_claimed()
    return sum((actor.counts for actor in [first, *more]), Counter())


def main() -> int:
    """Run the whole of it and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sequences", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    stress(200, args.threads, args.seed + 1)  # malloc's arenas and the worker are there from now on
    before, began = footprint(), time.monotonic()
    counts = stress(args.sequences, args.threads, args.seed)
    after = footprint()
    print(f"{args.sequences} sequences in {time.monotonic() - began:.0f} s: {dict(counts)}")
    print(f"mappings {before[0]} -> {after[0]}, resident {before[1] >> 10} -> {after[1] >> 10} KiB")
    return 0 if after[0] <= before[0] + 8 and after[1] <= before[1] + SPARE else 1


if __name__ == "__main__":
    sys.exit(main())
