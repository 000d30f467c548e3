"""Recorded programs that do what few do, and what the recorder leaves as it is."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import subprocess
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import BEGIN, END, MAPPED, ONE, TWO, built, replay, ruled

from zaplock.cli import main
from zaplock.designs.linux import LINUX_6_18
from zaplock.engines.sequential import run
from zaplock.model import flags as f
from zaplock.model.files import new_file
from zaplock.model.machine import Machine
from zaplock.model.page_fault import populate_range
from zaplock.model.step import Task
from zaplock.model.store import RangeMap, Store
from zaplock.model.vma import lookup, vma_of
from zaplock.programs import parser, written_pages
from zaplock.programs.replay import StraceReplay
from zaplock.programs.tracer import record
from zaplock.protocols import mmap as mmap_protocol
from zaplock.protocols.design import Cx

AT = "0x7ffff7efe000"
EINVAL, ENOMEM, ENODEV = "-1 EINVAL (x)", "-1 ENOMEM (x)", "-1 ENODEV (x)"
SEES_WRITES = "# anon: 7ffffffde000-7ffffffdf000\n"
"""What zaplock's own recorder alone writes."""

VDSO = """\
# begin: 7ffff7f10000-7ffff7f14000 r--p 00000000 00:00 0 [vvar]
# begin: 7ffff7f14000-7ffff7f16000 r-xp 00000000 00:00 0 [vdso]
"""


@pytest.mark.parametrize(
    "call",
    [
        f"munmap(0x7ffff7f14000, 4096) = {EINVAL}",
        f"mprotect(0x7ffff7f15000, 4096, PROT_READ) = {EINVAL}",
        f"mseal(0x7ffff7f14000, 4096, 0) = {EINVAL}",
        f"madvise(0x7ffff7f10000, 4096, MADV_DONTFORK) = {EINVAL}",
        f"mremap(0x7ffff7f14000, 4096, 4096, MREMAP_MAYMOVE|MREMAP_FIXED, 0x600000) = {EINVAL}",
        "mprotect(0x7ffff7f10000, 16384, PROT_READ|PROT_WRITE) = -1 EACCES (x)",
        f"madvise(0x7ffff7f10000, 16384, MADV_DONTNEED) = {EINVAL}",
        "mprotect(0x7ffff7f14000, 8192, PROT_READ|PROT_WRITE) = 0",
        "mremap(0x7ffff7f14000, 8192, 8192, MREMAP_MAYMOVE|MREMAP_FIXED, 0x600000) = 0x600000",
        "munmap(0x7ffff7f10000, 24576) = 0",
    ],
)
def test_what_the_kernel_has_mapped_goes_whole_or_not_at_all(tmp_path: Path, call: str) -> None:
    assert ruled(tmp_path, f"100 {call}\n", BEGIN + VDSO) == (1, 0, 0)
    other = EINVAL if not call.endswith(EINVAL) else "0"
    wrong = f"{call.rpartition(' = ')[0]} = {other}"
    assert ruled(tmp_path, f"100 {wrong}\n", BEGIN + VDSO)[:2] == (0, 1)


def test_a_private_mapping_of_dev_zero_shows_its_offset(tmp_path: Path) -> None:
    call = f"mmap(NULL, 8192, 0x3, MAP_PRIVATE, 3</dev/zero>, 0x7000) = {AT}"
    end = "# end: 7ffff7efe000-7ffff7f00000 rw-p 00007000 00:05 4 /dev/zero\n"
    assert replay(tmp_path, f"100 {call}\n# pid: 100\n{END}{end}").agrees
    verdict = replay(tmp_path, f"100 {call}\n# pid: 100\n{END}{end.replace('7000 00', '0000 00')}")
    assert verdict.differing_maps


def test_private_mappings_of_two_opens_of_dev_zero_stay_two(tmp_path: Path) -> None:
    program = built(
        tmp_path,
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <sys/mman.h>\n#include <unistd.h>\n"
        "#define AT(n, fd, of) mmap(b + n * 4096L, 4096, 3, MAP_PRIVATE | 16, fd, of * 4096L)\n"
        "int main(void) {\n"
        '  int one = open("/dev/zero", O_RDWR), two = open("/dev/zero", O_RDWR);\n'
        "  char *b = mmap(0, 32 * 4096L, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);\n"
        "  AT(2, one, 0); AT(3, one, 1);\n"  # one open: one mapping
        "  AT(6, one, 0); AT(7, two, 1);\n"
        "  AT(10, two, 0); AT(11, dup(two), 1);\n"
        '  close(two); AT(14, one, 0); close(one); AT(15, open("/dev/zero", O_RDWR), 1);\n'
        "  return 0;\n}\n",
    )
    path = tmp_path / "zero.trace"
    assert record([str(program)], path) == 0
    end = [line for line in path.read_text().splitlines() if "# end: " in line]
    assert sum("/dev/zero" in line for line in end) == 6
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing_maps, verdict.differing, verdict.refused) == ([], [], [])


def test_memfd_secret_is_shared_locked_and_never_executed(tmp_path: Path) -> None:
    secret = "mmap(NULL, 8192, {}, {}, 3</secretmem (deleted)>, 0) = {}"
    shared = secret.format("0x3", "MAP_SHARED", AT)
    calls = (
        secret.format("0x3", "MAP_PRIVATE", EINVAL),
        secret.format("0x5", "MAP_SHARED", "-1 EPERM (x)"),
        shared,
        f"munlock({AT}, 8192) = 0",
        f"madvise({AT}, 8192, MADV_DONTNEED) = {EINVAL}",
        f"mlock({AT}, 8192) = {ENOMEM}",
        f"mprotect({AT}, 8192, 0x5) = -1 EACCES (x)",
    )
    assert ruled(tmp_path, "".join(f"100 {call}\n" for call in calls)) == (7, 0, 0)
    limited = "# capable: ipc_lock no\n# limit: memlock 4096\n"
    refused = secret.format("0x3", "MAP_SHARED", "-1 EAGAIN (x)")
    assert ruled(tmp_path, f"# pid: 100\n{limited}{SEES_WRITES}100 {refused}\n") == (1, 0, 0)


def test_what_lies_beyond_the_end_of_its_file_cannot_be_locked(tmp_path: Path) -> None:
    mapped = "# pid: 100\n# limit: memlock unlimited\n"
    mapped += f"100 mmap(NULL, 8192, 0x3, MAP_SHARED, 3</tmp/short>, 0) = {AT}\n"
    locks = f"100 mlock({AT}, 8192) = {ENOMEM}\n"
    told = f"# pid: 100\n# length: {AT[2:]} 4096\n"
    assert ruled(tmp_path, mapped + told + locks + SEES_WRITES) == (2, 0, 0)
    assert ruled(tmp_path, mapped + locks + SEES_WRITES) == (
        1,
        1,
        0,
    )
    unknown = told.replace("4096", "unknown")
    assert ruled(tmp_path, mapped + unknown + locks + SEES_WRITES) == (1, 0, 1)
    assert ruled(tmp_path, mapped + locks) == (1, 0, 1)  # strace tells no lengths
    populates = f"100 madvise({AT}, 8192, MADV_POPULATE_READ) = -1 EFAULT (x)\n"
    longer = f"# pid: 100\n# length: {AT[2:]} 8192\n100 mlock({AT}, 8192) = 0\n"
    assert ruled(tmp_path, mapped + told + populates + longer + SEES_WRITES) == (3, 0, 0)


def test_a_ring_of_io_setup_is_its_makers(tmp_path: Path) -> None:
    made = f"100 io_setup(8, [{AT}]) = 0\n100 fork() = 101\n"
    assert ruled(tmp_path, f"{made}101 io_destroy({AT}) = {EINVAL}\n") == (2, 0, 0)
    assert ruled(tmp_path, f"{made}100 io_destroy({AT}) = 0\n") == (2, 0, 0)
    for call in (
        "io_setup(8, 0x0) = -1 EFAULT (x)", f"io_setup(8, [{AT}]) = {EINVAL}",
        f"io_setup(4294967295, [0]) = {EINVAL}",
    ):  # fmt: skip
        assert ruled(tmp_path, f"100 {call}\n") == (1, 0, 0)


def test_a_userfaultfd_that_another_process_uses_watches_its_maker(tmp_path: Path) -> None:
    page = f"{{range={{start={AT}, len=4096}}, mode=1}}"
    watch = f"ioctl(5<anon_inode:[userfaultfd]>, UFFDIO_REGISTER, {page}) = 0"
    text = f"100 fork() = 101\n101 userfaultfd(0) = 3<anon_inode:[userfaultfd]>\n101 {ONE}\n"
    text += f"100 {watch}\n{END.replace('pid: 100', 'pid: 101')}"
    halves = "".join(
        f"# end: {part} rw-p 00000000 00:00 0\n"
        for part in ("7ffff7efe000-7ffff7eff000", "7ffff7eff000-7ffff7f00000")
    )
    verdict = replay(tmp_path, f"{text}{halves}{SEES_WRITES}")
    assert (verdict.agreeing, verdict.refused, verdict.agrees) == (2, [], True)
    whole = "# end: 7ffff7efe000-7ffff7f00000 rw-p 00000000 00:00 0\n"
    assert replay(tmp_path, f"{text}{whole}{SEES_WRITES}").differing_maps


def test_a_userfaultfd_that_came_with_a_child_hides_nothing_of_its_parent(tmp_path: Path) -> None:
    text = f"100 userfaultfd(0) = 3<anon_inode:[userfaultfd]>\n100 {ONE}\n100 fork() = 101\n"
    both = f"{{range={{start={AT}, len=8192}}}}"
    of_child = f"ioctl(7<anon_inode:[userfaultfd]>, UFFDIO_UNREGISTER, {both}) = 0"
    after = f"100 {of_child}\n100 munmap({AT}, 8192) = 0\n"
    assert ruled(tmp_path, text + after + SEES_WRITES) == (2, 0, 1)


def test_a_pidfd_of_who_is_gone_and_a_closed_one_are_known(tmp_path: Path) -> None:
    advise = (
        "process_madvise({}, [{{iov_base=0x7ffff7f00000, iov_len=4096}}], 1, 20, 0) = -1 {} (x)"
    )
    gone, closed = advise.format("4<pid:-1>", "ESRCH"), advise.format("77", "EBADF")
    assert ruled(tmp_path, f"100 {gone}\n100 {closed}\n{SEES_WRITES}") == (2, 0, 0)


def test_a_segment_of_huge_pages_lies_where_they_fit(tmp_path: Path) -> None:
    get = "shmget(IPC_PRIVATE, 3145728, IPC_CREAT|SHM_HUGETLB|0600) = 5"
    pool = "# pid: 100\n# limit: huge_pages 0\n"  # it has its pages since shmget
    attach = "shmat(5, NULL, 0) = 0x7ffff7a00000"
    assert ruled(tmp_path, f"100 {get}\n{pool}100 {attach}\n") == (1, 0, 0)
    assert ruled(tmp_path, f"100 {get}\n100 shmat(5, 0x40001000, 0) = {EINVAL}\n") == (1, 0, 0)


def test_a_pool_of_huge_pages_may_grow_meanwhile(tmp_path: Path) -> None:
    huge = "mmap(NULL, 2097152, 0x3, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB, -1, 0) = "
    pool = "# pid: 100\n# limit: huge_pages {}\n"
    text = f"{pool.format(0)}100 {huge}{ENOMEM}\n{pool.format(1 << 21)}100 {huge}0x7ffff7c00000\n"
    assert ruled(tmp_path, text) == (2, 0, 0)


@pytest.mark.parametrize("path", ["/tmp/", "/dev/null", "anon_inode:[eventfd]"])
def test_what_has_no_mmap_is_not_mapped(tmp_path: Path, path: str) -> None:
    call = f"100 mmap(NULL, 4096, 0x1, MAP_PRIVATE, 3<{path}>, 0) = {ENODEV}\n"
    assert ruled(tmp_path, call) == (1, 0, 0)


def test_where_reading_implies_executing_maps_show_it(tmp_path: Path) -> None:
    calls = "100 personality(0x400000) = 0\n100 brk(NULL) = 0x555555556000\n"
    calls += f"100 brk(0x555555557000) = 0x555555557000\n100 {ONE}\n"
    calls += f"100 mprotect({AT}, 4096, PROT_READ) = 0\n100 personality(0) = 0x400000\n100 {TWO}\n"
    end = END + (
        "# end: 555555556000-555555557000 rwxp 00000000 00:00 0 [heap]\n"
        "# end: 7ffff7efc000-7ffff7efe000 rw-p 00000000 00:00 0\n"
        "# end: 7ffff7efe000-7ffff7eff000 r-xp 00000000 00:00 0\n"
        "# end: 7ffff7eff000-7ffff7f00000 rwxp 00000000 00:00 0\n"
    )
    verdict = replay(tmp_path, f"{calls}# pid: 100\n{end}{SEES_WRITES}")
    assert (verdict.refused, verdict.differing, verdict.differing_maps) == ([], [], [])
    assert replay(tmp_path, f"{calls}# pid: 100\n{end.replace('rwx', 'rw-')}").differing_maps


def test_privileges_and_limits_may_change(tmp_path: Path) -> None:
    lock = "100 mlock(0x7ffff7f00000, 16384) = "
    no, yes = ("# pid: 100\n# capable: ipc_lock " + told + "\n" for told in ("no", "yes"))
    limit = "# pid: 100\n# limit: memlock 4096\n"
    text = f"{limit}{no}{lock}{ENOMEM}\n{yes}{lock}0\n"
    assert ruled(tmp_path, text + SEES_WRITES) == (2, 0, 0)
    low = "100 mmap(0x1000, 4096, 0x3, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0) = "
    lowest = "# pid: 100\n# limit: lowest {}\n"
    text = f"{lowest.format(65536)}{low}-1 EPERM (x)\n{lowest.format(0)}{low}0x1000\n"
    assert ruled(tmp_path, text + SEES_WRITES) == (2, 0, 0)
    smaller = "# pid: 100\n# limit: as 65536\n"
    assert ruled(tmp_path, f"{smaller}100 {MAPPED} = {ENOMEM}\n{SEES_WRITES}") == (1, 0, 0)


@pytest.mark.parametrize("kind", ["shmem", "disk"])
@pytest.mark.parametrize("write", [False, True])
def test_new_pages_of_a_file_come_at_once_as_one_by_one(kind: str, write: bool) -> None:
    """One run is what a loop of faults makes: pages, frames, tables, dirt and costs."""

    def populated(pages_at_once: int) -> tuple[object, ...]:
        m, task = Machine(), Task(1, 1)
        spent: dict[str, int] = {}
        m.spend = lambda unit, count=1: spent.__setitem__(unit, spent.get(unit, 0) + count)  # type: ignore[method-assign]
        file = new_file(m, 1, kind, 1000 << f.PAGE_SHIFT)
        cx = Cx(LINUX_6_18, task, limits=m.limits)
        call = mmap_protocol.mmap(cx, 0, 1200 << f.PAGE_SHIFT, 3, f.MAP_SHARED, file, 0)
        first = int(run(m, task, call)) >> f.PAGE_SHIFT
        vma = vma_of(m, task, lookup(m, m.mm(1), first << f.PAGE_SHIFT))
        results = [
            populate_range(m, task, vma, at, min(at + pages_at_once, first + 1200), write)
            for at in range(first, first + 1200, pages_at_once)
        ]
        ptes, frames = m.mm(1).ptes, m.frames
        return (
            min(results), list(ptes.overlapping(0, 1 << 60)), list(frames.overlapping(0, 1 << 90)),
            [m.mm(1).tables[level].total(0, 1 << 60) for level in m.mm(1).tables],
            list(m.dirty.overlapping(0, 1 << 90)), spent.get("fault_file"),
        )  # fmt: skip

    assert populated(1200) == populated(1)


@needs_kernel
def test_one_page_tells_of_its_mapping(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(64 << 12))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as area:
        known: RangeMap[bool] = RangeMap(Store(), "known")

        def told() -> list[tuple[int, int]]:
            lines = Path("/proc/self/maps").read_text().splitlines()
            (here,) = (line for line in lines if line.endswith(str(file)))
            low, high = (int(bound, 16) for bound in here.split()[0].split("-"))
            found = written_pages.written_ranges(os.getpid(), known)
            return [part for part in found if part[0] < high and low < part[1]]

        assert not told()
        area[40 << 12] = 1
        ((low, high),) = told()
        assert high - low == 64 << 12
        known.set(low, high, True)
        assert not told()


@needs_kernel
@pytest.mark.parametrize("holes", [0, 20, 300])
def test_every_mapping_with_a_page_is_told_once_among_many(holes: int) -> None:
    """Neighbours that are one run of pages are two mappings; few, some, and too many are known."""
    pages = 2 * holes + 8
    with mmap.mmap(-1, pages << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        first = ctypes.addressof(ctypes.c_char.from_buffer(area))
        known: RangeMap[bool] = RangeMap(Store(), "known")
        for page in range(pages - 8):
            area[page << 12] = 1
            if page % 2:
                known.set(first + (page << 12), first + (page + 1 << 12), True)
        at = first + (pages - 8 << 12)
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + (4 << 12)), 4 << 12, mmap.PROT_READ)
        area[pages - 6 << 12] = 1
        new = [part for part in written_pages.written_ranges(os.getpid(), known) if part[1] > first]
        here = [part for part in new if part[0] < first + (pages << 12)]
        for low, high in here:
            known.set(low, high, True)
        covered = {page for low, high in here for page in range(low, high, 4096)}
        wanted = {first + (page << 12) for page in range(0, pages - 8, 2)} | {at + (2 << 12)}
        assert wanted <= covered
        assert not covered & {first + (page << 12) for page in range(1, pages - 8, 2)}
        assert at + (4 << 12) not in covered  # another mapping, without a page
        again = written_pages.written_ranges(os.getpid(), known)
        assert not [part for part in again if first <= part[0] < first + (pages << 12)]


@needs_kernel
def test_what_is_known_is_not_walked_again_however_many_parts_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A walk costs 0.1 us a page: a process of many big mappings took 36 ms at each call."""
    looked: list[tuple[int, int]] = []
    look = written_pages.Scan.look

    def noted(scan: written_pages.Scan, begin: int, end: int) -> tuple[int, written_pages.Spans]:
        looked.append((begin, end))
        return look(scan, begin, end)

    monkeypatch.setattr(written_pages.Scan, "look", noted)
    parts, each = 300, 64
    with mmap.mmap(-1, parts * (each + 1) << 12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as area:
        first = ctypes.addressof(ctypes.c_char.from_buffer(area))
        known: RangeMap[bool] = RangeMap(Store(), "known")
        for k in range(parts):
            begin = first + (k * (each + 1) << 12)
            area[begin - first] = 1
            known.set(begin, begin + (each << 12), True)
        written_pages.written_ranges(os.getpid(), known)
        inside = [span for span in looked if first <= span[0] < span[1] <= first + len(area)]
        assert len(inside) >= parts - 1
        assert all(end - begin <= 4096 for begin, end in inside)


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing with a filter is for root here")
def test_the_recorder_tells_once_of_what_stays_written(tmp_path: Path) -> None:
    """Protected, named and beside threads it is as it was; mapped anew it is told again."""
    program = built(
        tmp_path,
        "#include <pthread.h>\n#include <sys/mman.h>\n#include <sys/prctl.h>\n"
        "static void *run(void *x) { return x; }\n"
        "int main(void) {\n"
        "  int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;\n"
        "  char *a = mmap((void *)0x30000000, 16384, 3, flags, -1, 0);\n"
        "  for (int k = 0; k < 3; k++) {\n"
        "    pthread_t t; *a = k; pthread_create(&t, 0, run, 0); pthread_join(t, 0);\n"
        "    mprotect(a, 8192, 1); mprotect(a, 8192, 3);\n"
        '    prctl(0x53564d41, 0, a, 4096, "x");\n'
        "  }\n"
        "  mmap(a, 4096, 3, flags, -1, 0); *a = 1;\n"
        "  return mprotect(a, 4096, 1);\n}\n",
    )
    path = tmp_path / "x.trace"
    assert record([str(program)], path) == 0
    told = [line for line in path.read_text().splitlines() if line.startswith("# anon: 300")]
    assert told == ["# anon: 30000000-30004000", "# anon: 30000000-30001000"]
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.differing_maps, verdict.refused) == ([], [], [])


def test_what_is_not_known_yet_is_found_among_many_parts() -> None:
    random_ = random.Random(3)

    def spans() -> list[tuple[int, int]]:
        cuts = sorted(random_.sample(range(30), 2 * random_.randrange(7)))
        return list(zip(cuts[::2], cuts[1::2], strict=True))

    def within(parts: list[tuple[int, int]]) -> list[int]:
        return [page for low, high in parts for page in range(low, high)]

    for _ in range(2000):
        found, known = spans(), spans()
        told: RangeMap[bool] = RangeMap(Store(), "known")
        for low, high in known:
            told.set(low, high, True)
        wanted = sorted({*within(found)}.difference(within(known)))
        assert (
            within([part for span in found for part in written_pages.unknown(told, *span)])
            == wanted
        )


ODD = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static struct sock_filter asks[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE | 7), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
int main(void) {
    char *hole = mmap(0, 4096 * 600, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(hole, 4096 * 600);
    char *stack = mmap(hole + 4096 * 500, 4096, 3,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
    stack[-1] = stack[-4097] = 1;  /* it grows, and its own page is never touched */
    mremap(stack - 4096, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, hole);
    int wait_for[2], made[2], status;
    pipe(wait_for), pipe(made);
    if (!fork()) {
        char byte;
        read(wait_for[0], &byte, 1);
        _exit(mmap(0, 1 << 30, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? 3 : 4);
    }
    int child = fork();
    if (!child) {
        struct sock_fprog filter = {4, asks};
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        prctl(PR_SET_SECCOMP, 2, &filter);
        _exit(munmap(hole, 4096) && errno == ENOSYS ? 5 : 6);
    }
    waitpid(child, &status, 0);
    printf("filter %d\n", WEXITSTATUS(status));
    if (!(child = fork())) _exit(ptrace(PTRACE_TRACEME, 0, 0, 0) ? 7 : 8);
    waitpid(child, &status, 0);
    printf("tracer %d\n", WEXITSTATUS(status));
    if (!(child = fork())) {
        struct rlimit none = {300000, 300000};
        setrlimit(RLIMIT_AS, &none);
        execl("/bin/true", "true", (char *)0);  /* it fails when its memory is gone */
        _exit(9);
    }
    waitpid(child, &status, 0);
    printf("exec %d\n", WIFSIGNALED(status));
    write(wait_for[1], "x", 1);
    wait(&status);
    printf("first %d\n", WEXITSTATUS(status));
    return 0;
}
"""


@needs_kernel
def test_the_recorder_leaves_a_program_as_it_is_but_for_its_tracer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, path = built(tmp_path, ODD), tmp_path / "odd.trace"
    alone = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert main(["oracle", "--trace", str(path), "--", str(program)]) == 0
    recorded = capfd.readouterr()
    for line in alone.splitlines():
        assert (line in recorded.out) == (not line.startswith("tracer"))
    assert "tracer 7" in recorded.out
    assert "wants to trace a process or to be traced" in recorded.err
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])
    assert verdict.maps > 80
