"""Record a program's memory calls, with all that a replay needs to know, by ptrace.

Calls on one address space are let through one at a time, so their order is the order in which they
took effect; one that waits for another thread (a userfaultfd monitor, say) is overtaken after
`PATIENCE_S` and shown as unfinished. What is written of each stands in `recording_writer`.

A signal that is to end us ends the programs, and what was recorded is kept (see `ending`).

The file is text as strace writes it (see `parser`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from zaplock.errors import UserError
from zaplock.outputs import place
from zaplock.programs import narrow_calls, spelling, untraced
from zaplock.programs import ptrace as p
from zaplock.programs.clones import makes_namespace, makes_thread, shares_memory, text_of
from zaplock.programs.ending import handing_on, send
from zaplock.programs.recording import EXECS
from zaplock.programs.recording_writer import RecordingWriter, TracedThread
from zaplock.programs.task_status import leader, parent, waits_for_child
from zaplock.system_calls import BY_NUMBER, CLONES, SYSTEM_CALLS

PATIENCE_S = 1.0
STANDSTILL_S = 20.0
"""For how long nothing may happen once a program could not trace another: it may wait for that."""
UNTOLD = "another process traces it: from here on what it does is not in the recording"
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_LEAST_RESTART, _MOST_RESTARTS = 512, 530
"""Errors of which no program sees any: ERESTARTSYS and others."""


@dataclass(slots=True)
class Tracer:
    """Runs one program and all that it makes; what they do goes to `writer`.

    `every_call`: stop at all calls instead of setting a filter, which can't be taken back: then who
    is to be traced by another recorded process can be left to it. `failure`: why the program could
    not be executed, "" where it was.
    """

    writer: RecordingWriter
    every_call: bool = False
    threads: dict[int, TracedThread] = field(default_factory=dict)
    unasked: dict[int, untraced.Flags] = field(default_factory=dict)
    early: set[int] = field(default_factory=set)
    in_flight: dict[int, int] = field(default_factory=dict)
    held: dict[int, deque[int]] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)
    would_trace: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    status: int = 0
    failure: str = ""
    _mms: int = 0

    def run(self, command: Sequence[str]) -> int:
        """Run a program to its end; return its exit status (a signal's number, negative)."""
        first, failed = start(command, filtered=not self.every_call)
        self.threads[first] = TracedThread(first, first, self._new_mm())
        with handing_on(self._hand_on):
            self._follow(first)
        with os.fdopen(failed) as told:
            self.failure = told.read()
        return self.status

    def _hand_on(self, number: int) -> None:
        """Send every process a signal; what is being made just now gets it when it is there."""
        threads = list(self.threads.values())
        self.owed = {thread.tid: number for thread in threads if thread.name in CLONES}
        for pid in {thread.pid for thread in threads}:
            send(pid, number)

    def _follow(self, first: int) -> None:
        """Take what happens to the threads, one by one, until none is left."""
        last = time.monotonic()
        while self.threads or self.early or first in self.left:
            waiting = any(self.held.values())
            looks = waiting or bool(self.would_trace)
            try:
                tid, status = os.waitpid(-1, p.WALL | (os.WNOHANG if looks else 0))
            except ChildProcessError:
                break
            if tid:
                last = time.monotonic()
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    self._event(tid, status, first)
            elif waiting and time.monotonic() - last > PATIENCE_S:
                self._overtake()
                last = time.monotonic()
            elif self._stand_still() and time.monotonic() - last > STANDSTILL_S:
                self._end_standstill()
                last = time.monotonic()
            else:
                time.sleep(0.0005 if waiting else 0.01)

    def _go_on(self, tid: int, number: int = 0) -> None:
        """Let a thread run to its next stop, a signal delivered to it."""
        p.ptrace(p.SYSCALL if self.every_call else p.CONT, tid, 0, number)

    def _stand_still(self) -> bool:
        """Return whether somebody may wait for a tracee that they could not trace."""
        return any(map(waits_for_child, self.would_trace))

    def _end_standstill(self) -> None:
        """End programs of which one waits for a tracee that it could not trace."""
        told = f"nothing was called in the {STANDSTILL_S:.0f} s since then: ended"
        os.write(2, f"zaplock: {told}; record with --every-call, which lets it trace\n".encode())
        for pid in {thread.pid for thread in self.threads.values()}:
            send(pid, signal.SIGKILL)

    def _new_mm(self) -> int:
        self._mms += 1
        return self._mms

    def _event(self, tid: int, status: int, first: int) -> None:
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            self.left.discard(tid)
            self._gone(tid)
            if tid == first:
                self.status = os.waitstatus_to_exitcode(status)
            return
        number, event = os.WSTOPSIG(status), status >> 16
        thread = self.threads.get(tid)
        if thread is None:
            self.early.add(tid)  # its maker has not told of it yet
        elif event == p.EVENT_SECCOMP:
            self._stopped_by_filter(thread, p.event_message(tid))
        elif number == p.SYSCALL_STOP:
            self._stopped_at_call(thread)
        elif event in (p.EVENT_FORK, p.EVENT_VFORK, p.EVENT_CLONE):
            self._made(thread, p.event_message(tid), event)
        elif event == p.EVENT_EXEC:
            self._executed(thread, p.event_message(tid))
        elif event == p.EVENT_EXIT:
            self._exits(thread)
        elif event == p.EVENT_STOP:
            self._give_back_flags(tid)
            if number in _STOPS:
                p.ptrace(p.LISTEN, tid)
            else:
                self._go_on(tid)
        else:
            self._go_on(tid, number)

    # A call

    def _stopped_at_call(self, thread: TracedThread) -> None:
        architecture = p.entered(thread.tid) if self.every_call else None
        if architecture is None:
            if thread.told or not self.every_call:
                self._leave(thread)
            else:
                self._go_on(thread.tid)
        else:
            self._stopped_before(thread, is_narrow=architecture == p.I386)

    def _stopped_by_filter(self, thread: TracedThread, message: int) -> None:
        if message in (p.SEEN, p.NARROW, p.X32):
            self._stopped_before(thread, is_narrow=message == p.NARROW)
        else:  # a filter of its own asks for a tracer: without one there would be no such call
            p.skip(thread.tid, errno.ENOSYS)
            self._go_on(thread.tid)

    def _stopped_before(self, thread: TracedThread, *, is_narrow: bool) -> None:
        """Take the call that a thread is about to make, and record it, or let it go on."""
        regs = p.registers(thread.tid)
        thread.is_narrow, thread.returns_at = is_narrow, 0
        if is_narrow:
            call = narrow_calls.decoded(thread.tid, regs)
            name, thread.arguments, thread.returns_at = call or ("", regs.arguments, 0)
        else:
            name, thread.arguments = BY_NUMBER.get(regs.number, ""), regs.arguments
            if p.X32_BIT <= regs.number < 2 * p.X32_BIT and p.has_x32():
                self.writer.unreadable(thread)
        if spelling.is_recorded(name, thread.arguments):
            thread.about_to = name
            self._enter(thread)
        else:
            self._go_on(thread.tid)

    def _enter(self, thread: TracedThread) -> None:
        if thread.mm in self.in_flight:
            self.held.setdefault(thread.mm, deque()).append(thread.tid)
        else:
            self._begin(thread)

    def _begin(self, thread: TracedThread) -> None:
        name, arguments = thread.about_to, thread.arguments
        thread.name = name
        if self.every_call and name == "ptrace" and self._leave_to_another(thread):
            return
        is_narrow = thread.is_narrow
        thread.told = spelling.call_text(thread.tid, name, arguments, is_narrow=is_narrow)
        thread.shares = name in CLONES and shares_memory(thread.told)
        thread.is_written = False
        flags = untraced.asked(thread.tid, name, arguments, is_narrow=is_narrow)
        if flags is not None:
            self.unasked[thread.tid] = flags
            untraced.take_away(thread.tid, flags)
        self.in_flight[thread.mm] = thread.tid
        self.writer.begun(thread)
        p.ptrace(p.SYSCALL, thread.tid)

    def _give_back_flags(self, tid: int) -> None:
        flags = self.unasked.pop(tid, None)
        if flags is not None:
            untraced.give_back(tid, flags)

    def _leave(self, thread: TracedThread) -> None:
        self.writer.drop_maps(thread.mm)
        self._give_back_flags(thread.tid)
        self.owed.pop(thread.tid, None)
        result = self._result(thread)
        thread.has_failed_to_exec = thread.name in EXECS and result < 0
        self._take_result(thread, result)
        self._done(thread)
        self._go_on(thread.tid)

    def _result(self, thread: TracedThread) -> int:
        """Return what the call has returned that a thread is in, or has put where it was told."""
        result = p.registers(thread.tid).result
        if thread.returns_at and not result:
            attached = narrow_calls.attached(thread.tid, thread.returns_at)
            return result if attached is None else attached
        return result

    def _take_result(self, thread: TracedThread, result: int) -> None:
        if thread.name == "ptrace" and result == -errno.EPERM:
            self._tell_of_tracer(thread)
        self.writer.ended(thread, result)
        if thread.name == "prlimit64" and all(thread.arguments[0:3:2]) and not result:
            # Everybody's: whose they are is told by a number that may be a namespace's own.
            for pid in {other.pid for other in self.threads.values()}:
                self.writer.limits(pid)

    def _tell_of_tracer(self, thread: TracedThread) -> None:
        """Say once that the program can't trace what is traced already."""
        request = thread.arguments[0]
        if request not in p.ATTACHING or (self.every_call and request != p.TRACEME):
            return
        is_first = not self.would_trace
        self.would_trace.add(parent(thread.tid) if request == p.TRACEME else thread.pid)
        if is_first:
            who = f"process {thread.pid} wants to trace a process or to be traced (ptrace)"
            told = f"{who}, which fails while it is recorded: a process has one tracer"
            told += "" if self.every_call else "; --every-call lets it trace"
            os.write(2, f"zaplock: {told}\n".encode())

    def _leave_to_another(self, thread: TracedThread) -> bool:
        """Trace no longer who is to be traced by another; return whether it is the caller itself.

        Its parent has asked for it, or the caller for another one. Who has us as its parent has no
        other tracer.
        """
        request, target = thread.arguments[:2]
        if request not in p.ATTACHING:
            return False
        other = thread if request == p.TRACEME else self.threads.get(target & 0xFFFF_FFFF)
        if other is None or (other is thread and parent(thread.tid) == os.getpid()):
            return False
        self.writer.untold(other.tid, UNTOLD)
        os.write(2, f"zaplock: process {other.tid}: {UNTOLD}\n".encode())
        self.writer.unfinished(other)
        self._done(other)
        self.threads.pop(other.tid)
        if p.let_go(other.tid):
            self.left.add(other.tid)
        else:
            self._gone(other.tid)
        return other is thread

    def _done(self, thread: TracedThread) -> None:
        """A call has taken effect: the next one on its address space may go."""
        thread.name = thread.told = ""
        if self.in_flight.get(thread.mm) == thread.tid:
            del self.in_flight[thread.mm]
        waiting = self.held.get(thread.mm)
        while waiting and thread.mm not in self.in_flight:
            waiter = self.threads.get(waiting.popleft())
            if waiter is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._begin(waiter)

    def _overtake(self) -> None:
        """Let held threads go beside a call that takes so long that it may wait for them."""
        for mm, waiting in self.held.items():
            slow = self.threads.get(self.in_flight.pop(mm, 0))
            if slow is not None:
                self.writer.unfinished(slow)
            while waiting and mm not in self.in_flight:
                waiter = self.threads.get(waiting.popleft())
                if waiter is not None:
                    self._begin(waiter)

    # Processes

    def _made(self, thread: TracedThread, child: int, event: int) -> None:
        if not thread.told:  # by a call that is not recorded (x32)
            thread.told = text_of(event, is_thread=leader(child) == thread.pid)
            thread.shares = shares_memory(thread.told)
        mm = thread.mm if thread.shares else self._new_mm()
        pid = thread.pid if makes_thread(thread.told) else child
        self.threads[child] = TracedThread(child, pid, mm, is_in_narrow=thread.is_in_narrow)
        own = makes_namespace(thread.told)
        self.writer.made(thread, child, is_in_namespace=own)
        self._done(thread)
        if thread.tid in self.unasked:
            self.unasked[child] = self.unasked[thread.tid]
            self._give_back_flags(thread.tid)
        if signal_owed := self.owed.pop(thread.tid, 0):
            send(child, signal_owed)
        p.ptrace(p.SYSCALL, thread.tid)
        if child in self.early:
            self.early.discard(child)
            self._give_back_flags(child)
            self._go_on(child)

    def _executed(self, thread: TracedThread, former: int) -> None:
        """After an execve the process has one thread, whose id is that of the process."""
        actor = self.threads.get(former, thread)
        told = actor.told
        for tid in [t for t, other in self.threads.items() if other.pid == thread.pid]:
            if tid != thread.tid:
                self._gone(tid)
        self._done(thread)
        thread.mm = self._new_mm()
        self.writer.executed(thread, told)
        p.ptrace(p.SYSCALL, thread.tid)

    def _exits(self, thread: TracedThread) -> None:
        """Keep the maps as they are now.

        A thread that is killed while it is stopped may go without telling. One that dies in an
        execve may have given its maps up for those of a program that never ran.
        """
        is_replaced = self._has_died_in_exec(thread)
        self._killed_in(thread)
        self._done(thread)
        self.writer.keep_maps(thread)
        if is_replaced:
            self.writer.drop_maps(thread.mm)
        self._go_on(thread.tid)

    def _has_died_in_exec(self, thread: TracedThread) -> bool:
        if thread.name in EXECS:
            return p.registers(thread.tid).result != -errno.ENOSYS
        killed_by = p.event_message(thread.tid) & 0x7F
        return thread.has_failed_to_exec and killed_by in (signal.SIGSEGV, signal.SIGKILL)

    def _killed_in(self, thread: TracedThread) -> None:
        """Write what became of the call that a thread is killed in: its registers tell.

        One that was never begun is as if it had not been asked for; its result is -ENOSYS still.
        """
        if not thread.told or thread.name in (*EXECS, *CLONES):
            self.writer.unfinished(thread)
            return
        result = p.registers(thread.tid).result
        if result == -errno.ENOSYS and not thread.is_written:
            thread.name = thread.told = ""
        elif result == -errno.ENOSYS or -_MOST_RESTARTS <= result <= -_LEAST_RESTART:
            self.writer.unfinished(thread)
        else:
            self._take_result(thread, result)

    def _gone(self, tid: int) -> None:
        self.early.discard(tid)
        thread = self.threads.pop(tid, None)
        if thread is not None:
            self.writer.unfinished(thread)
            self._done(thread)
            if not any(other.mm == thread.mm for other in self.threads.values()):
                self.writer.end_of_space(tid, thread.mm)
            self.writer.gone(tid)


def _stops() -> tuple[p.Stops, p.Stops]:
    """Return which calls of 64-bit and of 32-bit programs are recorded."""
    commands = sorted(spelling.COMMANDS)
    by_command = tuple(SYSTEM_CALLS[name].number for name in spelling.BY_COMMAND)
    narrow = sorted(set(narrow_calls.NUMBERS).difference(narrow_calls.BY_COMMAND))
    return (
        p.Stops(sorted(spelling.NUMBERS.values()), by_command, commands, p.SEEN),
        p.Stops(narrow, narrow_calls.BY_COMMAND, commands, p.NARROW),
    )


def start(command: Sequence[str], *, filtered: bool) -> tuple[int, int]:
    """Fork a child that is traced and executes a command as soon as it is let go.

    `filtered`: it stops at the calls that are recorded only. Return its id, and a descriptor that
    tells why it could not.
    """
    reading, writing = os.pipe()
    failed, failing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(writing)
            os.read(reading, 1)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, not by who started it
                signal.signal(ignored, signal.SIG_DFL)
            if filtered:
                p.stop_at(*_stops())
            os.execvp(command[0], list(command))
        except (OSError, ValueError) as error:  # the latter of Python, for an empty name
            code = getattr(error, "errno", None) or errno.ENOENT
            os.write(failing, os.strerror(code).encode())
        finally:
            os._exit(127)
    os.close(reading)
    os.close(failing)
    p.ptrace(p.SEIZE, pid, 0, p.OPTIONS)
    os.write(writing, b"x")
    os.close(writing)
    return pid, failed


def record(command: Sequence[str], path: Path, *, every_call: bool = False) -> int:
    """Record a program into a file; return its exit status. Raises UserError where it can't."""
    try:
        with place(path) as where, where.folder.replacing(where.name, 0o666) as file:
            return record_to(command, file, every_call=every_call)
    except OSError as error:
        raise UserError(f"can't record into {path}: {error.strerror}") from None


def record_to(command: Sequence[str], file: BinaryIO, *, every_call: bool = False) -> int:
    """Record a program into an open file, which stays open; return and raise as `record`."""
    out = io.TextIOWrapper(file, "utf-8", "surrogateescape", write_through=True)
    tracer = Tracer(RecordingWriter(out), every_call)
    try:
        status = tracer.run(command)
    except PermissionError as error:
        raise UserError(f"can't trace {command[0]}: {error.strerror}: ptrace it as root") from None
    if not out.tell():
        why = tracer.failure or "it was ended before"
        raise UserError(f"{command[0]!a} could not be executed ({why}): give a program that can")
    out.flush()
    out.detach()
    return status
