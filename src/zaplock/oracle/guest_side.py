"""The kernel of a guest as the real side: the same programs, run in QEMU under another kernel.

The guest's init is a small static program (guest_driver.c) that makes a bare process as on the host
and runs the programs that appear in the memory that host and guest share; what they observed comes
back the same way. So everything that judges the host's kernel judges a guest's, and the model
follows the design of that kernel's own release.

A kernel without PAGEMAP_SCAN (before 6.7) shows no residency and no contents page by page: then
results, maps, smaps' figures and counters are compared, and what loads return. Before 6.2 a task
keeps changes of RSS and VmSwap to itself for up to 64 faults (f1a7941243c1): they are left out.
Before 6.6 smaps passes over huge pages that nobody may access: so the model's are left out, too;
and it does not tell what KSM has merged. Before 6.11 a page that was written to looks for a merged
page with room while it still takes up its old place, so what was merged is undone before each scan.
Figures that a kernel has no line for are left out. Where there is no mseal (before 6.10), sequences
keep away from the ring.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from zaplock.designs.linux import design_of
from zaplock.errors import UserError
from zaplock.linux_version import find
from zaplock.measure.guest import build, kernels, qemu
from zaplock.model import flags as f
from zaplock.model.shared_folios import POLICIES, Sizes
from zaplock.oracle import memory_group, ops, ring, shmem_setting, stub, swap_file
from zaplock.oracle.bare_process import Late, check_machine
from zaplock.oracle.campaign import Bench, slice_seed
from zaplock.oracle.draw_arguments import TO_WATCHED
from zaplock.oracle.huge_pool import GIGANTIC_PAGES, PAGES
from zaplock.oracle.ksm import SETTINGS
from zaplock.oracle.modelside import COVERED, ModelSide
from zaplock.oracle.observe import NEW_FIGURES, Parser
from zaplock.oracle.ops import LIMITED, ObservedVma, Op, OracleStep, Snapshot
from zaplock.oracle.program import BareProgram
from zaplock.oracle.program_operations import SETTLING_NS
from zaplock.oracle.real import ProcessFacts, RealSide, file_names
from zaplock.oracle.report import Report
from zaplock.oracle.scope import Scope
from zaplock.oracle.surroundings import Peace
from zaplock.oracle.themes import BY_SETTING

DRIVER = Path(__file__).with_name("guest_driver.c")
MEMORY = 1 << 30
BOOT_LIMIT_S = 240.0
POOL = 24
"""Huge pages of 2 MiB in a guest that has a pool: few enough to have none left."""
_POOLED = {"hugetlb", "hugetlbfs"}
_GIGANTIC_MEMORY = 4 << 30
"""Of a guest that has pages of 1 GiB; the host gives what is touched."""
_WORD = 1 << 64
_NO_EXTRAS = ("init_on_alloc=0", "audit=0", "lsm=", "kfence.sample_interval=0")
"""What Debian's kernels do besides, a sixth of an emulated run."""
HANG_S = 120.0
_KEPT = 64  # the number of the disk file's descriptor in the guest
_GO, _DONE, _STATUS, _RESTART, _LENGTH, _OBSERVED, _PLACE = range(8, 64, 8)
_FACTS, _RING, _OBSERVATIONS = 0x1000, 0x10000, 0x100000
_READY = b"ZAPLIVE1"
_LOST = 0xFFFF_FFFF_FFFF
_POLL_S = 0.000_5


class GuestProcess:
    """The bare process of a guest, with the face of `BareProcess`."""

    def __init__(self, guest: qemu.LiveGuest, kept: tuple[int, ...]) -> None:
        """Lay the ring into the shared memory; the guest picks it up when it has booted.

        `kept`: the descriptors that the bare process has besides the small ones.
        """
        self._guest = guest
        with guest.memory.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._restarts = False
        self.write(0, bytes(ring.RING_SIZE))
        self.write(0, stub.CODE)
        self.write(ring.BOOT, ring.boot(kept))

    pid = -1

    def word(self, offset: int) -> int:
        """Read one signed 64-bit word of the ring."""
        value: int = struct.unpack_from("<q", self._memory, _RING + offset)[0]
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes into the ring's image."""
        self._memory[_RING + offset : _RING + offset + len(data)] = data

    def await_boot(self) -> dict[str, str]:
        """Wait until the guest is ready; return its facts. Raises UserError where it never is."""
        self._wait(lambda: self._memory[:8] == _READY, BOOT_LIMIT_S)
        text = self._memory[_FACTS : self._memory.find(b"\0", _FACTS)].decode("ascii", "replace")
        pairs = (line.split(maxsplit=1) for line in text.splitlines())
        return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def run(self, program: bytes) -> int:
        """Run a program to its end; return the runner's wait status, or raise Lost."""
        ring.require_room(program)
        self.write(ring.PROGRAM, program)
        for place, value in ((_LENGTH, len(program)), (_PLACE, ring.PROGRAM),
                             (_RESTART, int(self._restarts))):  # fmt: skip
            self._put(place, value)
        self._restarts = False
        number = self._get(_GO) + 1
        self._put(_GO, number)
        self._wait(lambda: self._get(_DONE) == number, HANG_S)
        status = self._get(_STATUS)
        if status == _LOST:
            raise Late("the guest's bare process was gone, or ran for a minute")
        return status

    def program(self, length: int) -> bytes:
        """Read the last program back, now with its results."""
        return self._memory[_RING + ring.PROGRAM : _RING + ring.PROGRAM + length]

    def observed(self) -> bytes:
        """Read what the last program observed."""
        length = min(self._get(_OBSERVED), len(self._memory) - _OBSERVATIONS)
        return self._memory[_OBSERVATIONS : _OBSERVATIONS + length]

    def restart(self) -> None:
        """Have the guest make a new bare process before the next program."""
        self._restarts = True

    def close(self) -> None:
        """Let go of the shared memory."""
        self._memory.close()

    def _get(self, place: int) -> int:
        value: int = struct.unpack_from("<Q", self._memory, place)[0]
        return value

    def _put(self, place: int, value: int) -> None:
        struct.pack_into("<Q", self._memory, place, value)

    def _wait(self, is_true: object, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not is_true():  # type: ignore[operator]
            if self._guest.process.poll() is not None or time.monotonic() > deadline:
                raise UserError(self._guest.why_it_ended(limit_s))
            time.sleep(_POLL_S)


class GuestSide(RealSide):
    """Run sequences on a guest's kernel."""

    def __init__(self, guest: qemu.LiveGuest, themes: Collection[str] = ()) -> None:
        """Wait for the guest, which has what some themes need, and find out about it."""
        mounts = len(ops.MOUNTS) if "hugetlbfs" in themes else 0
        tmpfs = len(ops.TMPFS_MOUNTS) if "shmem-huge" in themes else 0
        kept = tuple(range(_KEPT, _KEPT + 1 + mounts + tmpfs))
        self._guest_process = GuestProcess(guest, kept)
        self._worker = ThreadPoolExecutor(1)  # one after the other, whoever asks
        self._begun: tuple[Sequence[Op], Future[list[OracleStep]]] | None = None
        self._names, strings = file_names(_KEPT, 0, memory_group.FILLED_IN_GUESTS)
        control = ring.control_words(has_scan_guard=False)
        self._guest_process.write(ring.CONTROL, control[: ring.BOOT - ring.CONTROL])
        after = ring.MEETING - ring.CONTROL
        self._guest_process.write(ring.MEETING, control[after:])
        self._guest_process.write(ring.FILE_STRINGS, strings)
        self._child = self._guest_process  # type: ignore[assignment]
        facts = self._guest_process.await_boot()
        self.release = facts["release"]
        max_map_count = int(facts["max_map_count"])
        swaps = int(facts["swap_pages"]) > 0
        self._names = self._names._replace(
            max_map_count=max_map_count,
            cpu=-1 if swaps else 0,  # as on the host; it has no other
            mounts=kept[1 : 1 + mounts],
            tmpfs=kept[1 + mounts :],
            settling_ns=SETTLING_NS if swaps else (),
        )
        self.hidden = hidden_by(self.release)
        if carries(self.release, "6.16"):
            self._guest_process.write(
                ring.CONTROL, ring.control_words()[: ring.BOOT - ring.CONTROL]
            )
            self._guest_process.restart()
        self._parser = Parser(has_scan=not self.hidden.pages)
        self._facts = ProcessFacts(
            **{name: int(facts[name]) for name in _NUMBERS},
            limits={
                resource: (int(facts[f"soft_{resource}"]), int(facts[f"hard_{resource}"]))
                for resource in LIMITED
            },
            overcommit_pages=int(facts["total_kb"]) // 4,
            group_pages=memory_group.LIMIT >> 12 if "group" in themes else 0,
            filled_pages=memory_group.filled_pages(int(facts["swap_pages"])),
            kills_all=True,
            has_mounts=mounts > 0,
            huge_faults=1,  # as guest_driver.c sets it
            shared_huge=POLICIES.index(
                shmem_setting.VALUE if set(BY_SETTING) & set(themes) else "never"
            ),
            shared_sizes=shmem_setting.SIZES if "shmem-sizes" in themes else Sizes(),
            shows_peak=False,
            has_keys=facts["has_keys"] == "1",
        )
        self.environment = self._explore(self._facts)
        self._parser = Parser(self.environment.baseline.counters, not self.hidden.pages)

    def surroundings(self, themes: Collection[str]) -> Peace:
        """In a guest nobody else is there to change anything."""
        return Peace()

    def begin(self, sequence: Sequence[Op]) -> None:
        """Let the guest begin with a sequence that is to run next, while others work here."""
        self._begun = (sequence, self._worker.submit(self._run_shown, sequence))

    def run(self, sequence: Sequence[Op], *, patient: bool = False) -> list[OracleStep]:
        """Run a sequence, and leave out what the kernel shows in lumps only."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is sequence:
            return begun[1].result()
        self._begun = begun
        return self._worker.submit(self._run_shown, sequence, patient).result()

    def _run_shown(self, sequence: Sequence[Op], patient: bool = False) -> list[OracleStep]:
        if self._facts.has_mounts:  # what a kernel loses of a mount's share goes with the mount
            self._guest_process.restart()
        steps = super().run(sequence, patient=patient)
        return list(map(self.hidden.step, steps)) if any(self.hidden) else steps

    def _run_in_turn(self, sequence: Sequence[Op], built: BareProgram) -> None:
        self._run(built.code)

    def own_page_away(self) -> bool:
        """Nobody else is there to take one; and kernels before 5.14 do not populate the ring."""
        return False

    def _tells_who_was_used(self) -> bool:
        """Debian's kernels age pages in generations, and mark them otherwise than is known here."""
        return False

    def restart(self) -> None:
        """Replace the bare process."""
        self._guest_process.restart()

    def close(self) -> None:
        """Let go of the guest; who booted it ends it."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._guest_process.close()


_NUMBERS = (
    "data_length", "max_map_count", "mmap_min_addr", "hugetlb_pages", "gigantic_pages",
    "swap_pages",
)  # fmt: skip


@contextmanager
def booted(spec: str, themes: Collection[str] = ()) -> Iterator[GuestSide]:
    """Boot a kernel (`debian:6.1`, or a vmlinuz) and give its side. Raises UserError.

    For some `themes` it has a pool of huge pages, for "hugetlbfs" also mounts with shares of it,
    for "ksm" a ksmd that is quick when a sequence asks for it, for "group" a memory cgroup, for
    "swap" a disk to swap to, for "shmem-huge" mounts of tmpfs with huge=, and for "shmem-advise"
    shmem_enabled set, for "shmem-sizes" also those of single sizes.
    """
    check_machine()
    mounts = ops.MOUNTS if "hugetlbfs" in themes else ()
    tmpfs = ops.TMPFS_MOUNTS if "shmem-huge" in themes else ()
    swaps = "swap" in themes
    words = {
        "ring": ring.RING, "ring_size": ring.RING_SIZE, "go": ring.GO, "done": ring.DONE,
        "status": ring.STATUS, "boot": ring.BOOT, "kept": _KEPT, "shares": len(mounts),
        "swap": int(swaps), "tmpfs": len(tmpfs),
    }  # fmt: skip
    for number, huge in enumerate(tmpfs):
        words[f"huge{number}"] = POLICIES.index(huge)
    for number, share in enumerate(mounts):
        words[f"most{number}"] = share.most * f.PMD_SIZE % _WORD
        words[f"least{number}"] = share.least * f.PMD_SIZE % _WORD
    pool: tuple[str, ...] = (f"hugepages={POOL}",) if _POOLED & set(themes) else ()
    if "gigantic" in themes:
        pool = (*_pages("1G", GIGANTIC_PAGES), *_pages("2M", PAGES))
    arguments = [f"{name}={value:#x}" for name, value in words.items()]
    files: dict[str, Mapping[str, Mapping[str, object]]] = {
        "ksm": {"ksm": SETTINGS},
        "group": memory_group.IN_GUESTS,
        "shmem-advise": shmem_setting.IN_GUESTS,
        "shmem-sizes": shmem_setting.SIZES_IN_GUESTS,
    }
    for theme in files.keys() & set(themes):
        for prefix, settings in files[theme].items():
            arguments += [f"{prefix}:{name}={value}" for name, value in settings.items()]
    machine = qemu.GuestMachine(
        memory=_GIGANTIC_MEMORY if "gigantic" in themes else MEMORY,
        nr_cpus=1,
        cpu_has=("pdpe1gb",) if "gigantic" in themes else (),
        disk=qemu.Disk(swap_file.SIZE, swap_file.header(swap_file.SIZE)) if swaps else None,
        boot_options=(
            "norandmaps", "nokaslr", *_NO_EXTRAS, *pool, "GLIBC_TUNABLES=glibc.pthread.rseq=0",
        ),
    )  # fmt: skip
    kernel = kernels.find(spec)
    if told := kernels.release_in(kernel.content()):
        _refuse_younger(told, themes)
    with qemu.running(kernel, machine, build.compiled(DRIVER), arguments) as guest:
        side = GuestSide(guest, themes)
        try:
            _refuse_younger(side.release, themes)
            yield side
        finally:
            side.close()


def _pages(size: str, count: int) -> tuple[str, ...]:
    """Return the boot options for a pool of huge pages of a size."""
    return f"hugepagesz={size}", f"hugepages={count}"


def carries(release: str, since: str) -> bool:
    """Return whether a release has what came with another one."""
    version = find(release)
    return version is not None and version.carries(since)


class Hidden(NamedTuple):
    """What a kernel does not show: pages one by one, counters of residency, the flag "lf", huge
    pages that may not be accessed, the flag "gu", figures of smaps.
    """

    pages: bool
    rss: bool
    onfault: bool
    closed_huge: bool
    guards: bool
    figures: frozenset[str]

    def step(self, step: OracleStep) -> OracleStep:
        """Take it out of a step."""
        child = step.outcome.child
        outcome = step.outcome._replace(child=self.snapshot(child)) if child else step.outcome
        return OracleStep(outcome, self.snapshot(step.snapshot))

    def snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Take it out of a snapshot."""
        if self.pages:
            snapshot = snapshot._replace(regions=b"", tags=b"")
        if self.onfault:
            vmas = tuple(vma._replace(flags=vma.flags.replace("lf ", "")) for vma in snapshot.vmas)
            snapshot = snapshot._replace(vmas=vmas)
        if self.guards:
            vmas = tuple(vma._replace(flags=vma.flags.replace("gu ", "")) for vma in snapshot.vmas)
            snapshot = snapshot._replace(vmas=vmas)
        if self.figures:
            vmas = tuple(map(self._without_figures, snapshot.vmas))
            snapshot = snapshot._replace(vmas=vmas)
        if self.closed_huge:
            vmas = tuple(map(_without_closed_huge, snapshot.vmas))
            snapshot = snapshot._replace(vmas=vmas)
        if self.rss:
            pairs = zip(ops.COUNTERS, snapshot.counters, strict=True)
            counters = tuple(0 if name in _RSS else value for name, value in pairs)
            snapshot = snapshot._replace(counters=counters)
        return snapshot

    def _without_figures(self, vma: ObservedVma) -> ObservedVma:
        pairs = zip(ops.FIGURES, vma.figures, strict=True)
        return vma._replace(figures=tuple(0 if name in self.figures else kb for name, kb in pairs))


_RSS = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmSwap")


def _without_closed_huge(vma: ObservedVma) -> ObservedVma:
    """Leave huge pages out of a VMA's figures if it allows no access, and all of PSS and DIRT."""
    if not vma.perms.startswith("---"):
        return vma
    figures = dict(zip(ops.FIGURES, vma.figures, strict=True))
    figures |= dict.fromkeys((*ops.PSS, *ops.DIRT), 0)
    for kind in ("AnonHugePages", "ShmemPmdMapped"):
        huge = figures[kind]
        for name in ("Rss", "Locked", kind, *(("Anonymous",) if kind == "AnonHugePages" else ())):
            figures[name] -= min(huge, figures[name])
    return vma._replace(figures=tuple(figures.values()))


def hidden_by(release: str) -> Hidden:
    """Return what a release does not show: see the head of this file."""
    old = not carries(release, "6.2")
    unnamed = carries(release, "6.13") and not carries(release, "6.18")
    before_6_6 = not carries(release, "6.6")
    missing = {name for name, came in NEW_FIGURES.items() if not carries(release, came)}
    return Hidden(not carries(release, "6.7"), old, old, before_6_6, unnamed, frozenset(missing))


class GuestModel(ModelSide):
    """The model under the design of a guest's kernel, seen as that kernel shows itself."""

    def __init__(self, side: GuestSide) -> None:
        super().__init__(side.environment, design_of(side.release).design)
        self._hidden = side.hidden

    def run(self, sequence: Sequence[Op]) -> list[OracleStep]:
        """Run a sequence, and leave out what the kernel does not show."""
        steps = super().run(sequence)
        return list(map(self._hidden.step, steps)) if any(self._hidden) else steps


_YOUNGER = (
    ("5.19", ("uffd",), "can't watch writes to memory that is shared"),
    ("6.8", ("uffd-move", "uffd-huge"), "has no UFFDIO_MOVE"),
    ("6.11", ("shmem-sizes",), "has no hugepages-*kB/shmem_enabled"),
)
"""Themes by the release that brought what they are about, and what is missing before."""


def _refuse_younger(release: str, themes: Collection[str]) -> None:
    """Raise UserError for a theme that is all about what a release does not have."""
    for since, lacking, why in _YOUNGER:
        refused = next((theme for theme in lacking if theme in themes), None)
        if refused and not carries(release, since):
            raise UserError(f"{release} {why}: theme {refused} needs {since} or newer")


def guest_scope(release: str, asked: Sequence[str] = ()) -> Scope:
    """Return what sequences may hold for a guest: no disk, and no ring where nothing seals it.

    asked: the themes that are asked for, else those that always run. Raises UserError for one that
    is all about what a release is not asked of.
    """
    _refuse_younger(release, asked)
    slots = tuple(slot for slot in range(len(ops.FILES)) if slot != ops.DISK_SLOT)
    themes, without = COVERED.themes, COVERED.without
    for since, lacking, _ in _YOUNGER:
        if not carries(release, since):
            themes = tuple(theme for theme in themes if theme not in lacking)
    if not carries(release, "5.19"):
        without |= TO_WATCHED
    if not carries(release, "6.12"):  # some prctls are younger; file seals are judged from there on
        themes = tuple(theme for theme in themes if theme not in ("process", "memfd"))
    spares_ring = not carries(release, "6.10")
    shares = COVERED.shares
    if not carries(release, "6.14"):  # one that keeps pages loses some of the pool for good
        shares = tuple(slot for slot in shares if ops.MOUNTS[ops.MOUNT_OF[slot]].least < 0)
    return replace(
        COVERED,
        slots=slots,
        spares_ring=spares_ring,
        themes=tuple(asked) or themes,
        shares=shares,
        without=without,
        fills=(ops.LITTLE, ops.MORE, ops.MUCH),
        unmerges_first=not carries(release, "6.11"),  # a page looked for room while it held its own
    )


def run_in(side: GuestSide, *, seconds: float, seed: int, scope: Scope) -> Iterator[Report]:
    """Compare sequences on a guest's kernel for so many seconds; yield the sum after each slice."""
    bench = Bench(lambda real: GuestModel(side), scope, side)
    total, number = Report(), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        total.merge(bench.slice(slice_seed(seed, number)))
        number += 1
        yield total
