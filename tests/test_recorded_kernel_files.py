"""Recorded programs: the kernel's own files, layers, early seals, removed segments, vectors."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import BEGIN, MAPPED, ONE, WRONG, built, replay, ruled

from zaplock.cli import main
from zaplock.model.flags import MAP_ABOVE4G
from zaplock.model.mm import NARROW_TASK_SIZE, ResourceLimits
from zaplock.oracle.guest_side import carries
from zaplock.programs import parser
from zaplock.programs.file_kinds import kind_of
from zaplock.programs.file_tables import facts_of, facts_text
from zaplock.programs.kernel_files import forbids_execution
from zaplock.programs.replay import StraceReplay
from zaplock.protocols.placement import lowest

AT, BELOW = "0x7ffff7efe000", "0x7ffff7efc000"
EINVAL, EPERM, EFAULT, EBADF = "-1 EINVAL (x)", "-1 EPERM (x)", "-1 EFAULT (x)", "-1 EBADF (x)"
SEES_WRITES = "# pid: 100\n# anon: 7ffffffde000-7ffffffdf000\n"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and tracing are root's")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/dev/shm/", "none"), ("/dev/shm/f", "shmem"), ("/tmp/", "none"), ("pid:100", "none"),
     ("mnt:[4026531832]", "none"), ("pipe:[7]", "none"), ("socket:[7]", "none"),
     ("/proc/100/mem", "none"), ("/proc/bus/pci/00/00.0", "shmem"), ("/dev/kvm", "none"),
     ("anon_inode:[fanotify]", "none"), ("anon_inode:[perf_event]", "shmem"),
     ("/tmp/a:[1]", "disk")],
)  # fmt: skip
def test_which_files_have_no_mmap_their_names_tell(path: str, kind: str) -> None:
    assert kind_of(path) == kind


@pytest.mark.parametrize("stacked", [False, True])
def test_a_new_mapping_of_a_layered_file_joins_no_neighbour(tmp_path: Path, stacked: bool) -> None:
    """It has the upper file until it is mapped, and its neighbour the lower one by then."""
    layer = " stacked" * stacked
    facts = f"# pid: 100\n# file: 3 rw 90:6{layer}\n"
    mapped = "100 mmap({}, 0x2000, 0x3, {}, 3</m/x>, {}) = {}\n"
    text = SEES_WRITES + facts + mapped.format("NULL", "0x1", "0x2000", AT)
    text += facts + mapped.format(BELOW, "0x11", "0", BELOW)
    assert facts_text(facts_of(f"3 rw 90:6{layer}")) == f"3 rw 90:6{layer}"
    apart = "# pid: 100\n# end: 7ffff7efc000-7ffff7efe000 rw-s 0 fe:00 6 /m/x\n"
    apart += "# end: 7ffff7efe000-7ffff7f00000 rw-s 2000 fe:00 6 /m/x\n"
    one = "# pid: 100\n# end: 7ffff7efc000-7ffff7f00000 rw-s 0 fe:00 6 /m/x\n"
    for end, differs in ((apart, not stacked), (one, stacked)):
        found = replay(tmp_path, text + end).differing_maps
        assert any("/x" in line or " x" in line for line in found) == differs
    both = f"100 mprotect({BELOW}, 0x4000, 0x1) = 0\n100 mprotect({BELOW}, 0x4000, 0x3) = 0\n"
    assert not any(" x" in line for line in replay(tmp_path, text + both + one).differing_maps)


def test_what_was_sealed_before_a_program_began_stays(tmp_path: Path) -> None:
    """Page 0 of MMAP_PAGE_ZERO, since 6.14."""
    begin = BEGIN.replace(
        "# begin: 5555", "# begin: 00000000-00001000 r-xp 0 00:00 0\n# begin: 5555", 1
    )
    lowest = f"# pid: 100\n# limit: lowest 0\n# limit: memlock unlimited\n100 {ONE}\n"
    calls = f"100 mmap(NULL, 4096, 0x1, 0x32, -1, 0) = {EPERM}\n100 munmap(NULL, 4096) = {EPERM}\n"
    sealed = "# pid: 100\n# sealed: 0-1000\n"
    assert ruled(tmp_path, sealed + lowest + calls + SEES_WRITES, begin) == (3, 0, 0)
    assert ruled(tmp_path, lowest + calls + SEES_WRITES, begin) == (1, 2, 0)
    verdict = replay(tmp_path, "# pid: 100\n# sealed: page 0\n" + calls, begin)
    assert "page 0" in " ".join(verdict.maps_not_compared)


def test_a_driver_may_choose_where_it_is_mapped(tmp_path: Path) -> None:
    arena = "100 mmap(NULL, 8192, 0x3, 0x1, 3<anon_inode:bpf-map>, 0) = 0x7ffff7000000\n"
    verdict = replay(tmp_path, arena)
    assert (verdict.differing, len(verdict.refused)) == ([], 1)
    assert "where the driver of anon_inode:bpf-map" in verdict.refused[0]
    assert ruled(tmp_path, arena.replace("anon_inode:bpf-map", "/tmp/f"))[1] == 1


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("process_madvise(0</dev/null>, [{iov_base=0x1000, iov_len=4096}], 1, 20, 0)", EBADF),
        (f"process_madvise(-10000, [{{iov_base=0x1000, iov_len={1 << 63}}}], 1, 20, 0)", EINVAL),
        ("process_madvise(-10000, [], 1, 20, 0)", EFAULT),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_vector_or_its_process_is_told(
    tmp_path: Path, call: str, result: str
) -> None:
    own = "# anon: 7ffffffde000-7ffffffdf000\n"
    assert ruled(tmp_path, f"100 {call} = {result}\n{own}") == (1, 0, 0)
    assert ruled(tmp_path, f"100 {call} = 4096\n{own}")[0] == 0


def test_a_removed_segment_goes_with_its_last_mapping(tmp_path: Path) -> None:
    made = f"100 shmget(IPC_PRIVATE, 8192, 0600) = 7\n100 shmat(7, NULL, 0) = {AT}\n"
    again = f"100 shmat(7, NULL, 0) = {EINVAL}\n"
    left = f"100 shmdt({AT}) = 0\n"
    for command in ("IPC_RMID", "0x0", "0x100"):
        removed = f"100 shmctl(7, {command}, NULL) = 0\n"
        assert ruled(tmp_path, made + removed + left + again) == (3, 0, 0)
        assert ruled(tmp_path, made + removed + again) == (1, 0, 1)
    asked = "100 shmctl(7, IPC_STAT, 0x7ffe) = 0\n100 shmctl(7, 0x2, 0x7ffe) = 0\n"
    verdict = replay(tmp_path, made + asked + left + again)
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (2, [], 1)
    assert "whether the segment was still there" in verdict.refused[0]


def test_what_was_mapped_of_a_file_is_gone_when_it_was_cut(tmp_path: Path) -> None:
    mapped = SEES_WRITES + f"100 mmap(NULL, 8192, 0x3, 0x1, 3</tmp/f>, 0) = {AT}\n"
    asks = f"100 madvise({AT}, 8192, MADV_POPULATE_WRITE) = "
    cut = f"# pid: 100\n# length: {AT[2:]} 4096\n"
    assert ruled(tmp_path, f"{mapped}{asks}0\n{cut}{asks}{EFAULT}\n") == (3, 0, 0)


def test_a_recording_by_bpftrace_has_another_number_than_its_maps(tmp_path: Path) -> None:
    """Its maps are of a run before; who executes what they begin with is that process."""
    begins = '7 close(4) = 0\n7 execve("./prog", 0x5555, 0x7fff) = 0\n'
    assert ruled(tmp_path, f"{begins}7 {ONE}\n7 {WRONG}\n") == (1, 1, 0)
    assert ruled(tmp_path, f"7 {ONE}\n7 {WRONG}\n") == (1, 0, 1)


def test_a_limit_that_another_process_sets_is_followed(tmp_path: Path) -> None:
    """By strace and bpftrace, which tell the call and nothing beside it."""
    limits = "".join(f"# limit: {name} unlimited\n" for name in ("as", "data", "memory"))
    begin = f"{BEGIN}{limits}# limit: mappings 65530\n"
    none = f"101 {MAPPED} = -1 ENOMEM (x)\n"
    sets = "100 prlimit64({}, {}, {{rlim_cur=4096, rlim_max=RLIM_INFINITY}}, NULL) = 0\n"
    for resource in ("RLIMIT_AS", "9"):
        assert ruled(tmp_path, f"100 fork() = 101\n{sets.format(101, resource)}{none}", begin) == (
            1,
            0,
            1,
        )
    assert ruled(tmp_path, f"100 fork() = 101\n{sets.format(0, 9)}{none}", begin)[1] == 1


def test_the_script_for_bpftrace_tells_limits_flags_and_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["oracle", "--bpftrace"]) == 0
    printed = capsys.readouterr().out
    assert "prlimit64(%d, %d, {rlim_cur=%llu, rlim_max=%llu} <unfinished" in printed
    assert "setrlimit(%d, {rlim_cur=%llu, rlim_max=%llu} <unfinished" in printed
    assert "clone3({flags=0x%lx}, 0x%lx <unfinished" in printed
    assert 'prctl(0x%lx, 0x%lx, 0x%lx, 0x%lx, \\"%s\\" <unfinished' in printed


def test_what_links_by_numbers_links(tmp_path: Path) -> None:
    """A dynamic linker asks for a limit: where it seems not to, limits are left out."""
    library = "100 mmap(0x7ffff7000000, 4096, {}, {}, 3</lib/c>, 0) = 0x7ffff7000000\n"
    linked = "100 brk(0x0) = 0x555555556000\n100 mprotect(0x7ffff7f00000, 4096, 0x1) = 0\n"
    limits = "".join(f"# limit: {name} unlimited\n" for name in ("as", "data", "memory"))
    begin = f"{BEGIN}{limits}# limit: mappings 65530\n"
    none = f"100 {MAPPED} = -1 ENOMEM (x)\n"
    for prot, flags in (("PROT_READ|PROT_EXEC", "MAP_PRIVATE|MAP_FIXED"), ("0x5", "0x12")):
        text = library.format(prot, flags) + linked + none
        assert ruled(tmp_path, text, begin) == (3, 0, 1)


def test_a_hint_that_strace_leaves_out_is_where_it_went(tmp_path: Path) -> None:
    moved = f"mremap({AT}, 8192, 8192, MREMAP_MAYMOVE|MREMAP_DONTUNMAP) = 0x7ffff0000000"
    text = f"100 {ONE}\n100 {moved}\n100 munmap(0x7ffff0000000, 4096) = 0\n"
    assert ruled(tmp_path, text) == (2, 0, 1)
    assert ruled(tmp_path, f"{text}100 {WRONG}\n") == (2, 1, 1)


def test_a_segment_of_a_guessed_size_makes_no_difference(tmp_path: Path) -> None:
    text = f"100 shmat(7, NULL, 0) = {AT}\n100 shmat(7, NULL, 0) = 0x7ffff7000000\n"
    assert ruled(tmp_path, text) == (0, 0, 2)


def test_what_lies_where_a_stack_may_have_grown_is_not_known(tmp_path: Path) -> None:
    seals = "100 mseal({}, 4096, 0) = 0\n"
    assert ruled(tmp_path, f"100 {ONE}\n{seals.format('0x7ffffff00000')}") == (1, 0, 1)
    assert ruled(tmp_path, f"100 {ONE}\n{seals.format('0x7fffff000000')}") == (1, 1, 0)
    told = seals.format("0x7ffffff00000") + SEES_WRITES
    assert ruled(tmp_path, f"100 {ONE}\n{told}") == (1, 1, 0)


@pytest.mark.parametrize(
    ("at", "agrees"),
    [("0x42135000", 1), ("0x40135000", 1), ("0x42400000", 0), ("0x42335000", 0)],
)
def test_a_low_place_may_be_laid_for_huge_pages(tmp_path: Path, at: str, agrees: int) -> None:
    """It begins up to 32 MiB above the second gigabyte, and is then rounded up."""
    call = f"100 mmap(NULL, 0x400005, 0x3, MAP_PRIVATE|MAP_32BIT, 3</f>, 0x135000) = {at}\n"
    assert ruled(tmp_path, call)[:2] == (agrees, 1 - agrees)


def test_nothing_of_a_32_bit_program_lies_above_4_gib() -> None:
    assert lowest(MAP_ABOVE4G, ResourceLimits()) == 1 << 32
    assert lowest(MAP_ABOVE4G, ResourceLimits(task_size=NARROW_TASK_SIZE)) == 0


def test_a_monitor_may_still_be_read_when_it_is_closed(tmp_path: Path) -> None:
    thread = "100 clone(flags=CLONE_VM|CLONE_THREAD|CLONE_FILES) = 101\n101 futex(0x1) = 0\n"
    watched = (
        f"100 userfaultfd(0) = 3<anon_inode:[userfaultfd]>\n100 {ONE}\n"
        f"100 ioctl(3<anon_inode:[userfaultfd]>, UFFDIO_REGISTER, {{range={{start={AT}, "
        f"len=0x1000}}, mode=0x1}}) = 0\n"
    )
    close = "100 close(3<anon_inode:[userfaultfd]>) = 0\n"
    moves = f"100 mremap({AT}, 8192, 12288, MREMAP_MAYMOVE) = {EFAULT}\n"
    moves += SEES_WRITES
    assert ruled(tmp_path, watched + close + moves)[1] == 1
    assert ruled(tmp_path, thread + watched + close + moves)[1:] == (0, 1)


@needs_kernel
def test_the_kernel_tells_whether_its_own_files_may_be_executed() -> None:
    assert not forbids_execution("/tmp/f")
    assert forbids_execution("/proc/1/maps")
    assert forbids_execution("/sys/power/state")


KERNELS_FILES = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sched.h>
#include <unistd.h>
int main(int n, char **v) {
    int fds[16], c = 0, p[2];
    if (n == 2) {
        personality(0x100000); /* MMAP_PAGE_ZERO */
        execl("/proc/self/exe", "again", v[1], "now", NULL);
    }
    pipe(p);
    fds[c++] = p[0];
    fds[c++] = socket(AF_UNIX, SOCK_STREAM, 0);
    fds[c++] = eventfd(0, 0);
    fds[c++] = syscall(SYS_pidfd_open, getpid(), 0);
    fds[c++] = open("/proc/self/ns/mnt", O_RDONLY);
    fds[c++] = open("/proc/self/mem", O_RDWR);
    fds[c++] = open("/proc/self/maps", O_RDONLY);
    fds[c++] = open("/dev/shm", O_RDONLY);
    fds[c++] = open("/tmp", O_RDONLY);
    for (int k = 0; k < c; k++) {
        mmap(0, 4096, PROT_READ, MAP_SHARED, fds[k], 0);
        mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fds[k], 0);
        mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fds[k], 0);
        mmap(0, 4096, PROT_WRITE, MAP_PRIVATE, fds[k], 0);
    }
    mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    struct iovec range = { mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096 };
    syscall(SYS_process_madvise, fds[0], &range, 1, MADV_DONTNEED, 0);
    syscall(SYS_process_madvise, fds[3], 1, 1, MADV_DONTNEED, 0);
    syscall(SYS_process_madvise, fds[3], &range, 1, MADV_DONTNEED, 0);
    unshare(CLONE_NEWNS);
    mount("", "/", 0, MS_REC | MS_PRIVATE, 0);
    chdir(v[1]);
    if (mount("t", ".", "tmpfs", 0, 0) || chdir(v[1]))
        return 1;
    mkdir("low", 0700), mkdir("up", 0700), mkdir("work", 0700), mkdir("all", 0700);
    if (mount("o", "all", "overlay", 0, "lowerdir=low,upperdir=up,workdir=work"))
        return 2;
    int f = open("all/f", O_CREAT | O_RDWR, 0600);
    ftruncate(f, 16384);
    char *at = mmap(0, 16384, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int k = 0; k < 4; k++)
        mmap(at + 4096 * k, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, f, 4096 * k);
    mprotect(at, 8192, PROT_READ);
    return 0;
}
"""


@needs_kernel
@needs_root
def test_the_kernels_own_files_layers_and_page_zero_are_compared(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, path, place = built(tmp_path, KERNELS_FILES), tmp_path / "own.trace", tmp_path / "at"
    place.mkdir()
    assert main(["oracle", "--trace", str(path), "--", str(program), str(place)]) == 0
    assert "ended with 0" in capfd.readouterr().err
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])
    assert verdict.calls > 60
    text = path.read_text()
    assert " stacked\n" in text
    if carries(platform.release(), "6.14"):
        assert "# sealed: 00000000-00001000\n" in text
