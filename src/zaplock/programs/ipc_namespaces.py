"""In which IPC namespace each task of a recording calls: ids of segments are a namespace's own.

zaplock's recorder writes the number of a task's namespace when a program begins and whenever it has
changed. Elsewhere clone, unshare and setns tell, as far as strace shows which namespace is entered.

Source: kernel/nsproxy.c (a namespace is a task's, not its process's), ipc/namespace.c.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict

from zaplock.programs.recording import UNKNOWN, Note, StraceRecording, TracedCall
from zaplock.programs.spaces import flags_of
from zaplock.programs.text import CONSTANTS, file_of, known_flags
from zaplock.system_calls import CLONES

FIRST = "the first"
"""The namespace that a recording begins in, where it has no number."""
Name = str
Changes = dict[int, list[tuple[int, Name | None]]]


class IpcNamespaces:
    """The namespaces of a recording by task and line; None where nobody knows which it is.

    `new`: those that were made in the recording, so that all that is in them was, too.
    """

    def __init__(self, recording: StraceRecording) -> None:
        self._changes: Changes = defaultdict(list)
        self.new: set[Name] = set()
        self._makers: set[int] = set()
        self._names: dict[str, Name] = {}
        notes = [note for note in recording.notes if note.kind == "ipc"]
        self._tells = bool(notes)
        self._first: Name = str(notes[0].value) if notes else FIRST
        events: list[TracedCall | Note] = [*recording.calls, *notes]
        for event in sorted(events, key=_when):
            if isinstance(event, Note):
                name = self._names.get(str(event.value), str(event.value))
                self._changes[event.pid].append((event.line, name))
                if event.pid in self._makers:
                    self._makers.discard(event.pid)
                    self._rename(event.pid)
            elif 0 <= event.result < UNKNOWN:
                self._take(event)

    def of(self, pid: int, line: int) -> Name | None:
        """Return which namespace a task is in at a line."""
        changes = self._changes.get(pid, ())
        at = bisect_right([when for when, _ in changes], line)
        return changes[at - 1][1] if at else self._first

    def _take(self, call: TracedCall) -> None:
        if call.name in CLONES and call.result > 0:
            self._changes[call.result].append((call.line, self.of(call.pid, call.line)))
            if (flags_of(call) or 0) & _NEW_IPC:
                self._make(call, call.result, call.line)
        elif call.name == "unshare" and known_flags("".join(call.arguments[:1])) & _NEW_IPC:
            self._make(call, call.pid, call.end)
        elif call.name == "setns" and call.arguments and not self._tells:
            self._enter(call)

    def _make(self, call: TracedCall, task: int, line: int) -> None:
        """Let a task be in a new namespace, whose number comes in a note, or is the call's line."""
        if self._tells and call.name in CLONES:
            self._makers.add(task)
        elif self._tells:  # what has changed is noted before the call
            self._rename(task)
        else:
            self._changes[task].append((line, f"line {call.line}"))
            self.new.add(f"line {call.line}")

    def _rename(self, task: int) -> None:
        """Tell a new namespace from those that had its number before and are gone."""
        if not self._changes[task]:
            return
        line, name = self._changes[task][-1]
        number = (name or "").partition(" ")[0]
        new = f"{number} since line {line}"
        self._changes[task][-1] = line, new
        self._names[number] = new
        self.new.add(new)

    def _enter(self, call: TracedCall) -> None:
        """Follow a setns: its descriptor's path tells the namespace (-y), or that it is another."""
        path = file_of(call.arguments[0])
        kinds = known_flags(call.arguments[1]) if len(call.arguments) > 1 else 0
        if path.startswith("ipc:["):
            self._changes[call.pid].append((call.end, path))
        elif kinds & _NEW_IPC or (not kinds and path.split(":")[0] not in _OTHER):
            self._changes[call.pid].append((call.end, None))


def _when(event: TracedCall | Note) -> int:
    """Return when an event changes something: a child is in its namespace from its beginning on."""
    if isinstance(event, Note) or event.name in CLONES:
        return event.line
    return event.end


_NEW_IPC = CONSTANTS["CLONE_NEWIPC"]
_OTHER = frozenset({"mnt", "uts", "net", "pid", "user", "cgroup", "time"})
