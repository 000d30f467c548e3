"""Recorded programs: the kernel's own files, layers, early seals, removed segments, vectors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import BEGIN, ONE, built, replay, ruled

from zaplock.cli import main
from zaplock.programs import parser
from zaplock.programs.file_tables import facts_of, facts_text
from zaplock.programs.kernel_files import forbids_execution
from zaplock.programs.recorded_world import kind_of
from zaplock.programs.replay import StraceReplay

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
    assert ruled(tmp_path, f"100 {call} = {result}\n") == (1, 0, 0)
    assert ruled(tmp_path, f"100 {call} = 4096\n")[0] == 0


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
    assert "# sealed: 00000000-00001000\n" in text or "(Operation not permitted)" not in text
