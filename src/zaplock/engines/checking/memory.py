"""A closed system with weak memory: daemons beside its tasks are what takes time in a machine.

Under x86-TSO each task has a store buffer that empties at some time. In relaxed memory each write
of a word comes to each task that reads it at some time. Both are tasks like others that never end,
so every engine, replay and counterexample knows of them without a line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.model.machine import Machine
from zaplock.model.step import Task
from zaplock.model.words import MemoryModel, arrive, drain, lay_out


def with_memory(
    system: Configuration,
    memory: MemoryModel,
    words: Mapping[str, int],
    readers: Mapping[str, tuple[str, ...]] | None = None,
) -> Configuration:
    """Return the system with these words, by initial value, in memory of this kind.

    readers: by the name of a task, the words that it reads other than by an atomic operation; each
    task reads each word where nothing is said. A task that is left out sees no late write, so leave
    out only what it never reads.
    """
    tasks = [program.task for program in system.programs]
    tids = tuple(task.tid for task in tasks)
    first = max(tids) + 1
    daemons: list[TaskProgram] = []
    if memory == "tso":
        for task in tasks:
            own = Task(first + len(daemons), task.mm, f"{task}'s store buffer")
            daemons.append(TaskProgram(own, partial(_empties, task.tid), daemon=True))
    elif memory == "relaxed":
        for task in tasks:
            for word in sorted(words) if readers is None else readers.get(str(task), ()):
                own = Task(first + len(daemons), task.mm, f"{word} for {task}")
                daemons.append(TaskProgram(own, partial(_comes, task.tid, word), daemon=True))
    build = partial(_build, system, memory, tuple(sorted(words.items())), tids)
    return replace(system, build=build, programs=(*system.programs, *daemons))


def _build(
    system: Configuration,
    memory: MemoryModel,
    words: tuple[tuple[str, int], ...],
    tids: tuple[int, ...],
) -> Machine:
    machine = system.build()
    machine.memory = memory
    lay_out(machine, dict(words), tids)
    return machine


async def _empties(owner: int) -> None:
    while True:
        await drain(owner)


async def _comes(owner: int, word: str) -> None:
    while True:
        await arrive(owner, word)
