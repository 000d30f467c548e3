"""The real kernel as a side of the comparison."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zaplock.errors import UserError
from zaplock.model.shared_folios import Sizes
from zaplock.oracle import (
    huge_mounts,
    machine_settings,
    memory_group,
    ops,
    program,
    ring,
    stub,
    tmpfs_mounts,
)
from zaplock.oracle import threaded as threads
from zaplock.oracle.bare_process import BareProcess, Lost
from zaplock.oracle.huge_mounts import HugeMounts
from zaplock.oracle.huge_pool import pool_figures
from zaplock.oracle.ksm import KSM, MergingTurn
from zaplock.oracle.observe import SOFT_DIRTY, Parser
from zaplock.oracle.ops import CallOutcome, Environment, Op, OracleStep, Promised, Snapshot
from zaplock.oracle.program_operations import SETTLING_NS, is_pageout, patient_ns
from zaplock.oracle.program_setup import KsmNames, ProgramNames
from zaplock.oracle.surroundings import MachineWatch
from zaplock.oracle.threaded import ThreadedOutcome, ThreadedProgram
from zaplock.oracle.tmpfs_mounts import TmpfsMounts
from zaplock.scratch import Scratch


class ProcessFacts(NamedTuple):
    """What is asked about a bare process and its kernel, and not found out by trying; bytes."""

    data_length: int
    max_map_count: int
    mmap_min_addr: int
    limits: Mapping[int, tuple[int, int]]
    overcommit_pages: int
    hugetlb_pages: int
    gigantic_pages: int
    swap_pages: int
    group_pages: int
    filled_pages: int
    kills_all: bool
    has_mounts: bool
    huge_faults: int
    shared_huge: int
    shared_sizes: Sizes
    shows_peak: bool
    has_keys: bool


_POISONED = (  # what is told of a page; what a poisoned one does, if this kernel has that (6.6)
    Op("mmap", (ring.PAGE << 16, 2 * ring.PAGE, 3, 0x32, ops.NO_FILE, 0)),
    Op("store", ((ring.PAGE << 16) + ring.PAGE,)),
    Op("uffd_register", (ring.PAGE << 16, ring.PAGE, 1)),
    Op("uffd_poison", (ring.PAGE << 16, ring.PAGE, 0)),
    Op("load", (ring.PAGE << 16,)),
)


_MOST_STARTS = 5  # while somebody changes the machine's settings, or leaves no CPU


class RealSide:
    """Run sequences on the kernel that this process runs on, each in a fresh bare process."""

    def __init__(self) -> None:
        """Start the child; raise UserError where the kernel can't be observed enough."""
        machine_settings.check_settings()
        self._surroundings = MachineWatch()
        self._merging = MergingTurn()
        self._disk = _nameless("disk")
        self._names, self._strings = file_names(
            self._disk, _sysctl("max_map_count"), memory_group.filled_by()
        )
        self._begin()
        for _ in range(_MOST_STARTS):
            if not (changed := self._surroundings.changed_since(0)):
                return
            self._surroundings.close()
            self._surroundings = MachineWatch()
            self.restart()
        self.close()
        raise UserError(f"{changed} while the oracle began, each time: end who does that")

    def _start(self) -> None:
        self._mounts = HugeMounts() if huge_mounts.are_lent() else None
        self._tmpfs = TmpfsMounts() if tmpfs_mounts.are_lent() else None
        mounts = self._mounts.descriptors if self._mounts else ()
        tmpfs = self._tmpfs.descriptors if self._tmpfs else ()
        self._names = self._names._replace(mounts=mounts, tmpfs=tmpfs)
        self._child = BareProcess(self._disk, *mounts, *tmpfs)
        self._child.write(ring.FILE_STRINGS, self._strings)
        if group := memory_group.joined():
            (group / "cgroup.procs").write_text(str(self._child.pid))
            Path(f"/proc/{self._child.pid}/oom_score_adj").write_text("0")  # see _fill_memory
        self._parser = Parser()
        facts = ProcessFacts(
            data_length=_data_length(self._child.pid),
            max_map_count=_sysctl("max_map_count"),
            mmap_min_addr=_sysctl("mmap_min_addr"),
            limits=_own_limits(),
            overcommit_pages=total_pages(),
            hugetlb_pages=free_huge_pages(1 << 21),
            gigantic_pages=self._surroundings.free_at_first(1 << 30),
            swap_pages=free_swap_pages(),
            group_pages=memory_group.limit_pages(),
            filled_pages=memory_group.filled_pages(free_swap_pages()),
            kills_all=memory_group.kills_all(),
            has_mounts=self._mounts is not None,
            huge_faults=machine_settings.huge_faults(),
            shared_huge=machine_settings.shared_huge(),
            shared_sizes=Sizes(),  # as check_settings wants it
            shows_peak=True,
            has_keys=_has_keys(),
        )
        if facts.swap_pages:
            _stay_on_one_cpu(self._child.pid)
        one_cpu = -1 if facts.swap_pages else max(os.sched_getaffinity(self._child.pid))
        self._names = self._names._replace(
            settling_ns=SETTLING_NS if facts.swap_pages else (), cpu=one_cpu
        )
        self.environment = self._explore(facts)
        self._shows_peak = True
        self._parser = Parser(
            self.environment.baseline.counters, slack_kb=slack_of_peak(self._child.pid)
        )

    def _explore(self, facts: ProcessFacts) -> Environment:
        page, private_anonymous = ring.PAGE, 0x22
        probe = (
            Op("brk", (0,)),
            Op("mmap", (0, page, 0, private_anonymous, ops.NO_FILE, 0)),
            Op("mmap", (page, page, 0, private_anonymous, ops.NO_FILE, 0)),
        )
        built = program.build((), self._names)
        self._run(built.code)
        baseline = self._snapshots(built)[0]
        self._tracks_soft_dirty = self._names_soft_dirty()
        brk, mapped, lowest = (step.outcome.result for step in self.run(probe))
        steps = self.run(_POISONED)
        categories = steps[1].snapshot.regions[
            16:
        ]  # of the one page that there is, if they are told
        return Environment(
            poison_code=(ops.signalled(steps[-1].outcome.result) or (0, 0))[1],
            shows_lazyfree=self._names.cpu >= 0,
            shows_references=self._tells_who_was_used(),
            shows_soft_dirty=self._tracks_soft_dirty,
            shows_protection=bool(categories) and bool(categories[0] & ring.WRITTEN),
            ring=ring.RING,
            ring_length=ring.RING_SIZE,
            mmap_base=mapped + page,
            start_brk=brk,
            mmap_min_hint=lowest,
            task_size=ring.TASK_SIZE,
            baseline=baseline,
            **facts._asdict(),
        )

    def run(self, sequence: Sequence[Op], *, patient: bool = False) -> list[OracleStep]:
        """Run a sequence; a runner that dies midway raises Lost, and the next run starts afresh.

        `patient`: what is paged out has seconds to be written to swap, not milliseconds.
        """
        names = self._names
        if patient and self.settles(sequence):
            names = names._replace(settling_ns=patient_ns(sequence))
        built = program.build(sequence, names)
        self._run_in_turn(sequence, built)
        return self._steps(sequence, built)

    def settles(self, sequence: Sequence[Op]) -> bool:
        """Tell whether a sequence waits for the disk: it pages out, and there is swap."""
        return bool(self._names.settling_ns) and any(map(is_pageout, sequence))

    def surroundings(self, themes: Collection[str]) -> MachineWatch:
        """Begin to watch what others change on this machine meanwhile."""
        self._surroundings.themes = themes
        return self._surroundings

    def own_page_away(self) -> bool:
        """Tell whether, while the last program ran, a page of the ring was seen not to be mapped.

        Whoever pages out what is idle (DAMON) takes it out of the page table for a while, and the
        counters have it no more. It is told by smaps, so not where it is back by then.
        """
        return self._parser.ring_away

    def begin(self, sequence: Sequence[Op]) -> None:
        """Take note of what is to run next: nothing here, where the model is on the same CPU."""

    def run_unobserved(self, sequence: Sequence[Op]) -> tuple[int, list[int]]:
        """Run a sequence without looking at its address space: (thread id, results).

        A fork's result is 0, as in `run`.
        """
        built = program.build(sequence, self._names, program.MARKING)
        words, results = self._results(sequence, built)
        return words[built.baseline + stub.RESULT >> 3], results

    def run_promised(self, sequence: Sequence[Op]) -> tuple[list[Promised], list[int]]:
        """Run a sequence: what the machine has promised, before and after each operation; results.

        Whoever else runs on the machine changes it too.
        """
        built = program.build(sequence, self._names, program.COMMITTED)
        words, results = self._results(sequence, built)
        data, at, figures = self._child.observed(), 0, []
        for place in (program.Place(-1, -1, -1, built.baseline), *built.places):
            looks = [place.seen] if place.seen >= 0 else []
            looks += [place.child + k * stub.ENTRY for k in range(3)] if place.child >= 0 else []
            for look in (*looks, place.after):
                begin, at = at, at + max(words[look + stub.RESULT >> 3], 0)
            committed, *huge = (
                int(data[begin:at].partition(name)[2].split(None, 1)[0])
                for name in (b"Committed_AS:", b"HugePages_Free:", b"HugePages_Rsvd:")
            )
            figures.append(Promised(committed * 1024 // ring.PAGE, *huge))
        return figures, results

    def run_threads(
        self,
        threaded: ThreadedProgram,
        delays: Sequence[Sequence[int]],
        cpus: Sequence[int] = (),
    ) -> ThreadedOutcome:
        """Run a program of threads once, with these delays before its operations.

        `cpus`: on which the threads are, by default all that this process may use.
        """
        cpus = cpus or sorted(os.sched_getaffinity(0))
        built, places = threads.build(threaded, delays, self._names, cpus)
        self._run(built.code)
        self._parser.begin()
        code = self._child.program(len(built.code))
        words, reader = memoryview(code).cast("q"), _Reader(self._child, code, self._parser)
        reader.snapshot(built.baseline)
        results = tuple(
            tuple(
                threads.shown(op, words[place + stub.RESULT >> 3])
                for op, place in zip(operations, at, strict=True)
            )
            for operations, at in zip(threaded.threads, places.threads, strict=True)
        )
        return ThreadedOutcome(results, reader.snapshot(built.places[0].after))

    def _results(
        self, sequence: Sequence[Op], built: program.BareProgram
    ) -> tuple[memoryview, list[int]]:
        self._run_in_turn(sequence, built)
        words = memoryview(self._child.program(len(built.code))).cast("q")
        results = [words[place.result + stub.RESULT >> 3] for place in built.places]
        forked = [op.name in ops.SUCCEED_WITH_0 for op in sequence]
        return words, [min(r, 0) if f else r for r, f in zip(results, forked, strict=True)]

    def _run_in_turn(self, sequence: Sequence[Op], built: program.BareProgram) -> None:
        with self._merging.of(sequence):
            self._run(built.code)

    def _run(self, code: bytes) -> None:
        """Run machine code in the child; one that dies midway is made anew, and Lost is raised."""
        self._parser.ring_away = False
        try:
            status = self._child.run(code)
        except Lost:
            if not self._begins:
                self.restart()
            raise
        if status:
            raise Lost(f"the runner ended with wait status {status:#x}")
        if self._mounts and (lack := self._mounts.lacking()):
            self.restart()
            raise Lost(f"with all files gone, {lack} are still in use: the kernel has lost them")

    _mounts: HugeMounts | None = None
    _tmpfs: TmpfsMounts | None = None
    _begins = False

    def restart(self) -> None:
        """Replace the bare process, and its mounts."""
        self._close_child()
        self._begin()

    def _begin(self) -> None:
        """Start bare processes until one gets so far that it shows what it is."""
        self._begins = True
        for _ in range(_MOST_STARTS):
            try:
                self._start()
            except Lost as error:
                why = str(error)
                self._close_child()
            else:
                self._begins = False
                return
        raise UserError(f"no bare process gets far enough ({why}): let other work end")

    def _close_child(self) -> None:
        """Close what there is of it; one that never got far is closed already."""
        if "_child" in self.__dict__:
            self._child.close()
        if self._mounts:
            self._mounts.close()
            self._mounts = None
        if self._tmpfs:
            self._tmpfs.close()
            self._tmpfs = None

    def _steps(self, sequence: Sequence[Op], built: program.BareProgram) -> list[OracleStep]:
        end = ops.CROWD if ops.is_crowded(sequence) else ring.TASK_SIZE
        self._parser.begin(end, self._shown(sequence), self._shows_peak)
        code = self._child.program(len(built.code))
        reader = _Reader(self._child, code, self._parser)
        try:
            reader.snapshot(built.baseline)
            return reader.steps(sequence, built.places)
        except (ValueError, struct.error) as error:
            raise Lost(f"the runner's observations can't be read: {error}") from None

    def _shown(self, sequence: Sequence[Op]) -> tuple[str, ...]:
        """Name the figures that are compared in a sequence, beyond those that always are."""
        lazy = self._names.cpu >= 0 and ops.shows_lazyfree(sequence)
        shows = ops.shows_references(sequence)
        used = shows and self._tells_who_was_used()
        soft = shows and self._tracks_soft_dirty
        return ("LazyFree",) * lazy + ("Referenced",) * used + (SOFT_DIRTY,) * soft

    _tracks_soft_dirty = False
    _shows_peak = False

    def _names_soft_dirty(self) -> bool:
        """Return whether the ring, which nobody cleared, is soft-dirty: the kernel tracks that."""
        return bool(re.search(rb"VmFlags:.* sd\b", bytes(self._child.observed()[:8192])))

    def _tells_who_was_used(self) -> bool:
        """Return whether Referenced of smaps can be known: on one CPU, with classic LRU lists."""
        return self._names.cpu >= 0 and not has_generations()

    def _snapshots(self, built: program.BareProgram) -> list[Snapshot]:
        code = self._child.program(len(built.code))
        return [_Reader(self._child, code, self._parser).snapshot(built.baseline)]

    def close(self) -> None:
        """End the child and remove its files."""
        self._close_child()
        os.close(self._disk)
        self._merging.close()
        self._surroundings.close()


def file_names(disk: int, max_map_count: int, filled: str) -> tuple[ProgramNames, bytes]:
    """Lay out the names of the files for the ring, `disk` being open under that number.

    `filled`: the file by which a process joins the group that is filled.
    """
    data, where = ring.strings(
        {
            **dict(zip(ops.FILES, ops.FILES, strict=True)),
            "disk": f"/proc/self/fd/{disk}",
            "zero": "/dev/zero",
            "filled": f"/proc/self/fd/{ring.FIRST_FILE_FD + ops.READ_ONLY_SLOT}",
            "meminfo": "/proc/meminfo",
            "filled_group": filled,
            "ksm_run": f"{KSM}/run",
            "ksm_scans": f"{KSM}/full_scans",
            "ksm_zero_pages": f"{KSM}/use_zero_pages",
            "ksm_most": f"{KSM}/max_page_sharing",
            **{name: name for name in _huge_names().values()},
        },
        ring.FILE_STRINGS,
    )
    files = tuple(where[name] for name in ops.FILES)
    return ProgramNames(
        files,
        where["filled"],
        where["meminfo"],
        where["filled_group"],
        KsmNames(*(where[f"ksm_{name}"] for name in KsmNames._fields)),
        max_map_count,
        {slot: where[name] for slot, name in _huge_names().items()},
    ), data


def _huge_names() -> dict[int, str]:
    """Return the names of the files that have huge pages, by slot."""
    of_tmpfs = {slot: file.name for slot, file in ops.TMPFS_FILES.items()}
    return {slot: name for slot, (name, _) in ops.HUGE_FILES.items()} | of_tmpfs


_new = tuple.__new__


class _Reader:
    """Walk once through what a program left behind."""

    def __init__(self, child: BareProcess, code: bytes, parser: Parser) -> None:
        self._words, self._parser = memoryview(code).cast("q"), parser
        self._data = child.observed()
        self._at = 0

    def snapshot(self, entry: int) -> Snapshot:
        words, first = self._words, entry + stub.RESULT >> 3
        status, smaps, pages = words[first], words[first + 8], words[first + 16]
        if smaps == pages == status == ring.AS_BEFORE:
            return self._parser.same_again()
        counters = vmas = contents = None
        data, at = self._data, self._at
        if status != ring.AS_BEFORE:
            counters, at = data[at : at + status], at + status
        if smaps != ring.AS_BEFORE:
            vmas, at = data[at : at + smaps], at + smaps
        if pages != ring.AS_BEFORE:
            contents, at = data[at : at + pages], at + pages
        self._at = at
        return self._parser.snapshot(vmas, contents, counters)

    def steps(self, sequence: Sequence[Op], places: Sequence[program.Place]) -> list[OracleStep]:
        """Read every operation's outcome and what came after it; a snapshot precedes the first."""
        words, found = self._words, list[OracleStep]()
        shown = self._parser.same_again()
        for op, (at, seen, child, after) in zip(sequence, places, strict=True):
            result = words[at + stub.RESULT >> 3]
            if seen >= 0 or child >= 0 or op.name in ops.SUCCEED_WITH_0:
                outcome = self._outcome(op, result, seen, child)
                shown = self.snapshot(after)
            else:
                outcome = ops.returned(result)
                first = after + stub.RESULT >> 3
                if not words[first] == words[first + 8] == words[first + 16] == ring.AS_BEFORE:
                    shown = self.snapshot(after)
            found.append(_new(OracleStep, (outcome, shown)))
        return found

    def _outcome(self, op: Op, result: int, seen: int, child: int) -> CallOutcome:
        vector, of_child = b"", None
        if op.name in ops.SUCCEED_WITH_0:
            result = min(result, 0)
            if op.name == "fork" and result == 0:
                of_child = self.snapshot(child)
        if seen >= 0:
            begin, length = self._at, max(self._words[seen + stub.RESULT >> 3], 0)
            self._at = begin + length
            vector = self._data[begin : self._at] if result == 0 else b""
        return CallOutcome(result, vector, of_child)


def _nameless(name: str) -> int:
    """Open a file on a disk that has no place any more; mappings of it still tell its name.

    Nothing of it is left, however this process ends.
    """
    with Scratch("oracle") as directory:
        file = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 64)  # none of the child's small ones
        finally:
            os.close(file)


def _sysctl(name: str) -> int:
    return int(Path("/proc/sys/vm", name).read_text())


def _has_keys() -> bool:
    """Return whether the kernel has switched the CPU's protection keys on."""
    told = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    return "ospke" in told.split()


_WORDS = 1 << 64


def _own_limits() -> dict[int, tuple[int, int]]:
    """Return this process's limits, which its children inherit; Python says -1 for none."""
    found = {}
    for limited in ops.LIMITED:
        soft, hard = resource.getrlimit(limited)
        found[limited] = (soft % _WORDS, hard % _WORDS)
    return found


def _stay_on_one_cpu(pid: int) -> None:
    """Keep a process, and those that it makes, on the last of the CPUs that it may use.

    A page that was just touched is in a batch of the CPU where that was, and MADV_PAGEOUT takes
    pages out of its own CPU's batch only (lru_add_drain): what is in another's stays.
    """
    os.sched_setaffinity(pid, {max(os.sched_getaffinity(pid))})


def slack_of_peak(pid: int) -> int:
    """Return by how many kB at most VmHWM is off for a process.

    Each CPU that it may use keeps up to a batch of each of the three counts of pages to itself.
    Source: lib/percpu_counter.c compute_batch_value.
    """
    batch = max(32, 2 * (os.cpu_count() or 1))
    return 3 * (batch - 1) * len(os.sched_getaffinity(pid)) * ring.PAGE >> 10


def _data_length(pid: int) -> int:
    """Return how long the data segment of a process's program is; RLIMIT_DATA counts it to brk."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[43]) - int(fields[42])


def has_generations() -> bool:
    """Return whether this kernel ages pages in generations (MGLRU), which marks them otherwise."""
    try:
        return int(Path("/sys/kernel/mm/lru_gen/enabled").read_text(), 16) != 0
    except FileNotFoundError:
        return False


def free_huge_pages(size: int) -> int:
    """Return how many huge pages of so many bytes nobody uses or has reserved; 0 without a pool."""
    try:
        _, free, reserved = pool_figures(size)
    except OSError:
        return 0
    return free - reserved


def total_pages() -> int:
    """Return how many pages one mapping may promise (heuristic overcommit: all RAM and swap)."""
    fields = _meminfo()
    return (fields["MemTotal"] + fields["SwapTotal"]) // 4


def free_swap_pages() -> int:
    """Return how many pages swap has room for."""
    return _meminfo()["SwapFree"] // 4


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}
