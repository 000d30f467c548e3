"""Memory in which a read may be satisfied early and a write arrive late, unless ordered.

Each word is a list of messages, one for each write, in their order of coherence. Each task has, for
each word, the message that it may still read: its view. A read takes what the view points at, and
nothing moves a view but an acquire, a barrier, a lock, the task's own writes, or time
(`arrive`). A write that releases leaves the writer's whole view in its message, one that doesn't
leaves what was ordered before it by a write barrier. So a value that is seen without an acquire
says nothing about other words.

This is the view machine of the promising semantics (Kang, Hur, Lahav, Vafeiadis, Dreyer, "A
promising semantics for relaxed-memory concurrency", POPL 2017) without its promises, and with new
messages at the end of the coherence order only. So what is found is allowed by the kernel's model
too, except that dependencies between reads order nothing here (read with an acquire where the
kernel relies on one); and what needs a write that overtakes an earlier read or write of the same
task (load buffering, 2+2W) is not found.

State is one frozen value, and its numbers are counted from the oldest message that anybody may
still read: a history that nobody can see is no state.
"""

from __future__ import annotations

import msgspec

View = tuple[tuple[str, int], ...]
"""How many messages of each word are overwritten for whoever has this view; zeros left out."""


class Message(msgspec.Struct, frozen=True):
    """One write. `view` is what an acquire that reads it gets to know."""

    value: int
    view: View


class Sight(msgspec.Struct, frozen=True):
    """What a task knows.

    now: for its reads. read: what a read barrier would add to that. written: what its writes tell.
    """

    now: View = ()
    read: View = ()
    written: View = ()


class RelaxedMemory(msgspec.Struct, frozen=True):
    """All words, and what each task and lock knows of them. `barriers`: left by full barriers."""

    words: tuple[tuple[str, tuple[Message, ...]], ...]
    sights: tuple[tuple[int, Sight], ...]
    locks: tuple[tuple[tuple[str, int], View], ...] = ()
    barriers: View = ()

    def messages(self, word: str) -> tuple[Message, ...]:
        """Return the writes of a word that somebody may still read, the oldest first."""
        return dict(self.words)[word]

    def sight(self, tid: int) -> Sight:
        """Return what a task knows."""
        return dict(self.sights)[tid]

    def latest(self, word: str) -> int:
        """Return the last value in the order of coherence."""
        return self.messages(word)[-1].value


def begin(words: dict[str, int], tids: tuple[int, ...]) -> RelaxedMemory:
    """Return memory in which every task knows everything."""
    named = tuple((name, (Message(value, ()),)) for name, value in sorted(words.items()))
    return RelaxedMemory(named, tuple((tid, Sight()) for tid in tids))


def join(one: View, other: View) -> View:
    """Return what is known to whoever has both views."""
    if not other or one == other:
        return one
    known = dict(one)
    for word, seen in other:
        known[word] = max(seen, known.get(word, 0))
    return tuple(sorted(known.items()))


def seen_of(view: View, word: str) -> int:
    """Return the index of the message at which a view points."""
    return dict(view).get(word, 0)


def read(memory: RelaxedMemory, tid: int, word: str, acquire: bool) -> tuple[RelaxedMemory, int]:
    """Read the message at which the task's view points."""
    sight = memory.sight(tid)
    message = memory.messages(word)[seen_of(sight.now, word)]
    now = join(sight.now, message.view) if acquire else sight.now
    known = Sight(now, join(join(sight.read, message.view), now), sight.written)
    return _with_sight(memory, tid, known), message.value


def may_arrive(memory: RelaxedMemory, tid: int, word: str) -> bool:
    """Return whether a later write of a word has not come to a task yet."""
    return seen_of(memory.sight(tid).now, word) < len(memory.messages(word)) - 1


def arrive(memory: RelaxedMemory, tid: int, word: str) -> RelaxedMemory:
    """Let one more write of a word come to a task."""
    sight = memory.sight(tid)
    step: View = ((word, seen_of(sight.now, word) + 1),)
    return _with_sight(
        memory, tid, Sight(join(sight.now, step), join(sight.read, step), sight.written)
    )


def write(memory: RelaxedMemory, tid: int, word: str, value: int, release: bool) -> RelaxedMemory:
    """Write at the end of a word's order of coherence."""
    return _append(memory, tid, word, value, release, ())


def update(
    memory: RelaxedMemory, tid: int, word: str, value: int, acquire: bool, release: bool
) -> RelaxedMemory:
    """Write on top of the latest value, which the task reads in the same instant."""
    messages = memory.messages(word)
    last = messages[-1]
    known = join(last.view, ((word, len(messages) - 1),) if len(messages) > 1 else ())
    sight = memory.sight(tid)
    now = join(sight.now, known if acquire else tuple(one for one in known if one[0] == word))
    memory = _with_sight(memory, tid, Sight(now, join(join(sight.read, known), now), sight.written))
    return _append(memory, tid, word, value, release, memory.messages(word)[-1].view)


def full_barrier(memory: RelaxedMemory, tid: int) -> RelaxedMemory:
    """smp_mb: know all that was read, and all that was known at any full barrier before this."""
    known = join(memory.barriers, memory.sight(tid).read)
    left = msgspec.structs.replace(memory, barriers=known)
    return _with_sight(left, tid, Sight(known, known, known))


def read_barrier(memory: RelaxedMemory, tid: int) -> RelaxedMemory:
    """smp_rmb: later reads come after earlier ones."""
    sight = memory.sight(tid)
    return _with_sight(memory, tid, Sight(sight.read, sight.read, sight.written))


def write_barrier(memory: RelaxedMemory, tid: int) -> RelaxedMemory:
    """smp_wmb: later writes come after earlier ones."""
    sight = memory.sight(tid)
    return _with_sight(memory, tid, Sight(sight.now, sight.read, sight.now))


def take_lock(memory: RelaxedMemory, tid: int, lock: tuple[str, int]) -> RelaxedMemory:
    """Know what was done under a lock until now (ACQUIRE)."""
    sight, left = memory.sight(tid), dict(memory.locks).get(lock, ())
    return _with_sight(
        memory, tid, Sight(join(sight.now, left), join(sight.read, left), sight.written)
    )


def leave_lock(memory: RelaxedMemory, tid: int, lock: tuple[str, int]) -> RelaxedMemory:
    """Tell whoever takes a lock next what was done under it (RELEASE)."""
    known = dict(memory.locks)
    known[lock] = join(known.get(lock, ()), memory.sight(tid).now)
    return _tidy(msgspec.structs.replace(memory, locks=tuple(sorted(known.items()))))


def _append(
    memory: RelaxedMemory, tid: int, word: str, value: int, release: bool, inherited: View
) -> RelaxedMemory:
    messages, sight = memory.messages(word), memory.sight(tid)
    at: View = ((word, len(messages)),)
    view = join(join(sight.now if release else sight.written, inherited), at)
    words = tuple(
        (name, (*held, Message(value, view)) if name == word else held)
        for name, held in memory.words
    )
    known = Sight(join(sight.now, at), join(sight.read, at), sight.written)
    return _with_sight(msgspec.structs.replace(memory, words=words), tid, known)


def _with_sight(memory: RelaxedMemory, tid: int, sight: Sight) -> RelaxedMemory:
    sights = tuple((one, sight if one == tid else known) for one, known in memory.sights)
    return _tidy(msgspec.structs.replace(memory, sights=sights))


def _tidy(memory: RelaxedMemory) -> RelaxedMemory:
    """Forget the messages that nobody can read any more, and count from there."""
    gone = {
        word: low
        for word, _ in memory.words
        if (low := min(seen_of(sight.now, word) for _, sight in memory.sights))
    }
    if not gone:
        return memory

    def less(view: View) -> View:
        counted = ((word, seen - gone.get(word, 0)) for word, seen in view)
        return tuple((word, seen) for word, seen in counted if seen > 0)

    return RelaxedMemory(
        tuple(
            (word, tuple(Message(m.value, less(m.view)) for m in held[gone.get(word, 0) :]))
            for word, held in memory.words
        ),
        tuple((tid, Sight(less(s.now), less(s.read), less(s.written))) for tid, s in memory.sights),
        tuple((lock, known) for lock, view in memory.locks if (known := less(view))),
        less(memory.barriers),
    )
