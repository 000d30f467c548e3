"""Words that several CPUs reach at the same time with no lock, and the memory behind them.

Everything else in a model is sequentially consistent: what a kernel does under a lock is one step.
Here are the words that it reads and writes beside locks, by the kernel's own names: `READ_ONCE`,
`smp_store_release`, `smp_mb`. What they mean depends on `machine.memory`:

sc: each access happens at once, for all.
tso: x86's. A write waits in its CPU's store buffer, first in, first out; the CPU itself reads from
    there, others don't. A full barrier, an atomic operation and a lock wait until the buffer is
    empty (Owens, Sarkar, Sewell, "A better x86 memory model: x86-TSO", TPHOLs 2009).
relaxed: a read may be satisfied early, a write arrive late (`model.relaxed`).

Time goes by in steps of its own: `drain` and `arrive` are taken by daemons that
`engines.checking.memory` sets beside the tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from zaplock.model import relaxed
from zaplock.model.step import Step, Task, WaitStep, step

if TYPE_CHECKING:
    from zaplock.model.machine import Machine
    from zaplock.model.relaxed import RelaxedMemory

MemoryModel = Literal["sc", "tso", "relaxed"]
MEMORY_MODELS: Final[tuple[MemoryModel, ...]] = get_args(MemoryModel)
Order = Literal["full", "acquire", "release", "relaxed"]
"""How an atomic operation is ordered; one that returns a value is "full" unless it says else."""

WORDS: Final = "words"
BUFFERS: Final = "store buffers"
RELAXED: Final = "relaxed memory"


def lay_out(m: Machine, words: dict[str, int], tids: tuple[int, ...]) -> None:
    """Let a run begin with these words, reached by these tasks."""
    m.cells(BUFFERS)
    if m.memory == "relaxed":
        m.cells(RELAXED).put(0, relaxed.begin(words, tids))
        return
    for word, value in words.items():
        m.cells(WORDS).put(word, value)


def value_of(m: Machine, word: str) -> int:
    """Return the value of a word once all has arrived everywhere."""
    if m.memory == "relaxed":
        return _relaxed(m).latest(word)
    value: int = m.cells(WORDS).get(word, 0)
    return value


def _relaxed(m: Machine) -> RelaxedMemory:
    memory: RelaxedMemory = m.cells(RELAXED)[0]
    return memory


def _keep(m: Machine, memory: RelaxedMemory) -> None:
    m.cells(RELAXED).put(0, memory)


def is_drained(m: Machine, task: Task, *_args: Any) -> bool:
    """Return whether no write of a task waits in its store buffer."""
    return m.memory != "tso" or task.tid not in m.cells(BUFFERS)


# Reads and writes


@step
def READ_ONCE(m: Machine, task: Task, word: str) -> int:
    """Read a word, in no order with other accesses."""
    return _read(m, task, word, False)


@step
def smp_load_acquire(m: Machine, task: Task, word: str) -> int:
    """Read a word before anything that follows."""
    return _read(m, task, word, True)


def _read(m: Machine, task: Task, word: str, acquire: bool) -> int:
    if m.memory == "relaxed":
        memory, value = relaxed.read(_relaxed(m), task.tid, word, acquire)
        _keep(m, memory)
        return value
    for name, waiting in reversed(m.cells(BUFFERS).get(task.tid, ())):
        if name == word:
            return int(waiting)
    return value_of(m, word)


@step
def WRITE_ONCE(m: Machine, task: Task, word: str, value: int) -> None:
    """Write a word, in no order with other accesses."""
    _write(m, task, word, value, False)


@step
def smp_store_release(m: Machine, task: Task, word: str, value: int) -> None:
    """Write a word after everything before it."""
    _write(m, task, word, value, True)


def _write(m: Machine, task: Task, word: str, value: int, release: bool) -> None:
    if m.memory == "relaxed":
        _keep(m, relaxed.write(_relaxed(m), task.tid, word, value, release))
    elif m.memory == "tso":
        waiting = m.cells(BUFFERS).get(task.tid, ())
        m.cells(BUFFERS).put(task.tid, (*waiting, (word, value)))
    else:
        m.cells(WORDS).put(word, value)


# Barriers


def smp_mb() -> Step[None]:
    """Order everything before with everything after."""
    return WaitStep(full_barrier, (), is_drained, (BUFFERS,))


def full_barrier(m: Machine, task: Task) -> None:
    """Order everything before with everything after."""
    if m.memory == "relaxed":
        _keep(m, relaxed.full_barrier(_relaxed(m), task.tid))


@step
def smp_rmb(m: Machine, task: Task) -> None:
    """Order the reads before with the reads after."""
    if m.memory == "relaxed":
        _keep(m, relaxed.read_barrier(_relaxed(m), task.tid))


@step
def smp_wmb(m: Machine, task: Task) -> None:
    """Order the writes before with the writes after."""
    if m.memory == "relaxed":
        _keep(m, relaxed.write_barrier(_relaxed(m), task.tid))


# Atomic operations


def atomic_add_return(word: str, amount: int, order: Order = "full") -> Step[int]:
    """Add to a word and return what it is then."""
    return WaitStep(add_return, (word, amount, order), is_drained, (BUFFERS,))


def add_return(m: Machine, task: Task, word: str, amount: int, order: Order) -> int:
    """Add to a word and return what it is then."""
    return _update(m, task, word, value_of(m, word) + amount, order)


def xchg(word: str, value: int, order: Order = "full") -> Step[int]:
    """Write a word and return what it was."""
    return WaitStep(exchange, (word, value, order), is_drained, (BUFFERS,))


def exchange(m: Machine, task: Task, word: str, value: int, order: Order) -> int:
    """Write a word and return what it was."""
    before = value_of(m, word)
    _update(m, task, word, value, order)
    return before


def _update(m: Machine, task: Task, word: str, value: int, order: Order) -> int:
    if m.memory != "relaxed":
        m.cells(WORDS).put(word, value)
        return value
    memory = _relaxed(m)
    if order == "full":
        memory = relaxed.full_barrier(memory, task.tid)
    acquires, releases = order in ("full", "acquire"), order in ("full", "release")
    memory = relaxed.update(memory, task.tid, word, value, acquires, releases)
    if order == "full":
        memory = relaxed.full_barrier(memory, task.tid)
    _keep(m, memory)
    return value


# Locks


def lock_taken(m: Machine, tid: int, lock: tuple[str, int]) -> None:
    """Order what follows after everything that was done under the lock before."""
    if m.memory == "relaxed":
        _keep(m, relaxed.take_lock(_relaxed(m), tid, lock))


def lock_left(m: Machine, tid: int, lock: tuple[str, int]) -> None:
    """Order what was done before whatever is done under the lock from now on."""
    if m.memory == "relaxed":
        _keep(m, relaxed.leave_lock(_relaxed(m), tid, lock))


# Time


def drain(owner: int) -> Step[None]:
    """Let the oldest write in a task's store buffer reach memory, once there is one."""
    return WaitStep(reach_memory, (owner,), _is_waiting, (BUFFERS, owner))


def _is_waiting(m: Machine, _task: Task, owner: int) -> bool:
    return owner in m.cells(BUFFERS)


def reach_memory(m: Machine, _task: Task, owner: int) -> None:
    """Write the oldest entry of a store buffer to memory."""
    (word, value), *rest = m.cells(BUFFERS)[owner]
    m.cells(WORDS).put(word, value)
    if rest:
        m.cells(BUFFERS).put(owner, tuple(rest))
    else:
        m.cells(BUFFERS).drop(owner)


def arrive(owner: int, word: str) -> Step[None]:
    """Let one more write of a word come to a task, once there is one."""
    return WaitStep(reach_task, (owner, word), _may_arrive, (RELAXED, owner, word))


def _may_arrive(m: Machine, _task: Task, owner: int, word: str) -> bool:
    return relaxed.may_arrive(_relaxed(m), owner, word)


def reach_task(m: Machine, _task: Task, owner: int, word: str) -> None:
    """Let one more write of a word come to a task."""
    _keep(m, relaxed.arrive(_relaxed(m), owner, word))
