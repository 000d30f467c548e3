"""Recorded programs: names, drivers, rings, seccomp filters and other processes' memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import END, ONE, TWO, WRONG, built, replay, ruled

from zaplock.cli import main
from zaplock.programs import parser
from zaplock.programs.replay import StraceReplay
from zaplock.programs.text import file_of, without_comments

MAP = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_SHARED, {}, 0)"
AT = "0x7ffff7efe000"
NO = "-1 EINVAL (Invalid argument)"
FILTER = "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, {len=6, filter=0x7ffe}) = 0"
DENIED = f"mprotect({AT}, 4096, PROT_READ) = -1 EACCES (Permission denied)"


def test_comments_may_stand_in_comments() -> None:
    assert without_comments("0x28 /* 0x8 /* MAP_??? */|MAP_ANONYMOUS */|1") == "0x28 |1"
    assert without_comments("a /* b") == "a /* b"


def test_paths_are_read_as_strings_of_c_and_written_as_maps_does() -> None:
    assert file_of(r"3</tmp/a\nb\74\"\\>") == r'/tmp/a\012b<"' + "\\"
    assert file_of(r"3</tmp/\303\251\377>") == "/tmp/\u00e9\ufffd"


@pytest.mark.parametrize(
    "path", ["anon_inode:[perf_event]", "/dev/dri/card0", "socket:[1]", "TCP:[1->2]"]
)
def test_a_driver_decides_what_is_done_with_its_mappings(tmp_path: Path, path: str) -> None:
    text = f"100 {MAP.format(f'3<{path}>')} = {AT}\n"
    assert ruled(tmp_path, f"{text}100 {TWO}\n") == (2, 0, 0)
    refusals = (
        f"100 mprotect({AT}, 4096, PROT_READ) = {NO}\n"
        f"100 mremap({AT}, 8192, 12288, MREMAP_MAYMOVE) = -1 EFAULT (x)\n"
        f"100 munmap({AT}, 4096) = {NO}\n"
    )
    verdict = replay(tmp_path, f"{text}{refusals}100 {TWO}\n")
    assert (verdict.agreeing, verdict.differing) == (2, [])
    assert "the driver of" in verdict.refused[0]
    assert ruled(tmp_path, f"{text}100 {WRONG}\n")[1] == 1


@pytest.mark.parametrize("path", ["/tmp/f", "memfd:f", "/dev/shm/f"])
def test_what_is_no_drivers_is_compared(tmp_path: Path, path: str) -> None:
    text = f"100 {MAP.format(f'3<{path}>')} = {AT}\n100 mprotect({AT}, 4096, PROT_READ) = {NO}\n"
    assert ruled(tmp_path, text)[1] == 1


@pytest.mark.parametrize("child", [ONE, TWO])
def test_a_fork_may_leave_out_a_drivers_mapping(tmp_path: Path, child: str) -> None:
    text = f"100 {MAP.format('3<anon_inode:[perf_event]>')} = {AT}\n100 fork() = 101\n101 {child}\n"
    assert ruled(tmp_path, text)[1] == 0


@pytest.mark.parametrize(("told", "child"), [("yes", TWO), ("no", ONE)])
def test_the_recorder_tells_what_a_fork_has_copied_of_drivers(
    tmp_path: Path, told: str, child: str
) -> None:
    text = f"100 {MAP.format('3<anon_inode:[perf_event]>')} = {AT}\n100 fork() = 101\n"
    copied = f"# pid: 101\n# copied: 7ffff7efe000-7ffff7f00000 {told}\n"
    assert ruled(tmp_path, f"{text}{copied}101 {child}\n") == (2, 0, 0)
    assert ruled(tmp_path, f"{text}{copied}101 {WRONG}\n")[1] == 1


def test_the_ring_of_io_setup_is_mapped_and_unmapped(tmp_path: Path) -> None:
    ring = "# end: 7ffff7efe000-7ffff7f00000 rw-s 00000000 00:10 5 /[aio] (deleted)\n"
    made = f"100 {ONE}\n100 munmap({AT}, 8192) = 0\n100 io_setup(4, [{AT}]) = 0\n"
    later = f"100 {TWO}\n100 munmap(0x7ffff7efc000, 8192) = 0\n"
    # The size of a ring shows by what is above it: here one mapping more than nothing.
    text = (
        "100 mmap(0x7ffff7efe000, 8192, PROT_READ, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0)"
        f" = {AT}\n100 munmap({AT}, 8192) = 0\n100 io_setup(4, [{AT}]) = 0\n"
    )
    verdict = replay(tmp_path, f"{text}{later}# pid: 100\n{END}{ring}")
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (5, [], [])
    assert (verdict.maps, verdict.differing_maps) == (4, [])
    assert ruled(tmp_path, f"{made}100 io_destroy({AT}) = 0\n100 {ONE}\n") == (5, 0, 0)
    assert ruled(tmp_path, f"{made}100 io_destroy({AT}) = {NO}\n")[1] == 1
    assert ruled(tmp_path, "100 io_setup(4, [0x7ffff7000000]) = 0\n") == (1, 0, 0)
    assert ruled(tmp_path, "100 io_setup(4, 0x5555) = -1 EAGAIN (x)\n") == (0, 0, 1)
    above = f"100 {ONE}\n100 io_setup(4, [0x7ffff7f01000]) = 0\n"
    assert ruled(tmp_path, above)[1] == 1


def test_libaio_without_io_setup_is_a_doubt(tmp_path: Path) -> None:
    linked = '100 openat(AT_FDCWD, "/usr/lib/libaio.so.1", O_RDONLY) = 3\n'
    assert ruled(tmp_path, f"{linked}100 {ONE}\n100 {WRONG}\n") == (1, 0, 1)


def test_what_a_seccomp_filter_stops_was_never_done(tmp_path: Path) -> None:
    assert ruled(tmp_path, f"100 {ONE}\n100 {DENIED}\n")[1] == 1
    verdict = replay(tmp_path, f"100 {ONE}\n100 {FILTER}\n100 {DENIED}\n100 {TWO}\n")
    assert (verdict.agreeing, verdict.differing) == (2, [])
    assert "seccomp filter may have forbidden it" in verdict.refused[0]
    told = (
        "100 mremap(0x7ffff7efe000, 8192, 16384, MREMAP_MAYMOVE) = 0x19\n"
        "100 --- SIGSYS {si_signo=SIGSYS, si_code=SYS_SECCOMP, si_call_addr=0x7ffff7ed5a00, "
        "si_syscall=__NR_mremap, si_arch=AUDIT_ARCH_X86_64} ---\n"
    )
    assert ruled(tmp_path, f"100 {ONE}\n{told}100 {TWO}\n") == (2, 0, 1)
    killed = told.splitlines()[0] + "\n100 +++ killed by SIGSYS +++\n"
    assert ruled(tmp_path, f"100 {ONE}\n{killed}") == (1, 0, 1)


VECTOR = f"[{{iov_base={AT}, iov_len=4096}}]"


@pytest.mark.parametrize(
    ("fd", "vector", "result", "kinds"),
    [
        ("3<pid:100>", VECTOR, "4096", (2, 0, 0)),
        ("3<pid:100>", VECTOR, NO, (1, 1, 0)),
        ("3<pid:101>", VECTOR, NO, (2, 0, 0)),
        ("3<pid:101>", VECTOR, "4096", (1, 0, 1)),
        ("3<anon_inode:[pidfd]>", VECTOR, NO, (1, 0, 1)),
        ("3<anon_inode:[pidfd]>", VECTOR, "4096", (2, 0, 0)),
        ("-1", VECTOR, "-1 EBADF (x)", (2, 0, 0)),
        ("3<pid:100>", "[{iov_base=0x800000000000, iov_len=8}]", "-1 EFAULT (x)", (2, 0, 0)),
    ],
)
def test_a_pidfd_may_be_anothers(
    tmp_path: Path, fd: str, vector: str, result: str, kinds: tuple[int, int, int]
) -> None:
    call = f"100 process_madvise({fd}, {vector}, 1, MADV_DONTNEED, 0) = {result}\n"
    assert ruled(tmp_path, f"100 {ONE}\n{call}") == kinds


def test_whose_a_pidfd_is_its_open_tells(tmp_path: Path) -> None:
    call = f"100 process_madvise(3, {VECTOR}, 1, MADV_DONTNEED, 0) = {NO}\n"
    assert ruled(tmp_path, f"100 {ONE}\n100 pidfd_open(101, 0) = 3\n{call}") == (2, 0, 0)
    assert ruled(tmp_path, f"100 {ONE}\n100 pidfd_open(100, 0) = 3\n{call}") == (1, 1, 0)
    cut = call.replace(", 1, MADV", ", 2, MADV")
    assert ruled(tmp_path, f"100 {ONE}\n100 pidfd_open(100, 0) = 3\n{cut}") == (1, 0, 1)


def test_other_sizes_of_huge_pages_have_a_pool_that_is_not_recorded(tmp_path: Path) -> None:
    flags = "MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB|30<<MAP_HUGE_SHIFT"
    limit = "# limit: huge_pages 0\n"
    text = f"100 mmap(NULL, 8192, PROT_READ, {flags}, -1, 0) = 0x7fff80000000\n100 {ONE}\n"
    assert ruled(tmp_path, limit + text) == (1, 0, 1)


@pytest.mark.parametrize(("told", "kinds"), [
    ("0xffffffff", "rw-p"), ("0xffffffffffffffff", "rw-p"), ("PER_LINUX|ADDR_NO_RANDOMIZE", "rw-p"),
    ("PER_LINUX|READ_IMPLIES_EXEC", "rwxp"), ("0x440000", "rwxp"),
])  # fmt: skip
def test_only_a_personality_with_executable_reads_shows(
    tmp_path: Path, told: str, kinds: str
) -> None:
    end = f"# pid: 100\n{END}# end: 7ffff7efe000-7ffff7f00000 {kinds} 00000000 00:00 0\n"
    verdict = replay(tmp_path, f"100 personality({told}) = 0\n100 {ONE}\n{end}")
    assert (verdict.agreeing, verdict.refused, verdict.agrees) == (1, [], True)


def test_a_file_may_get_another_name(tmp_path: Path) -> None:
    opened = '100 openat(AT_FDCWD, "/tmp/one", O_RDWR) = 3\n'
    mapped = f"{opened}100 {MAP.format('3</tmp/one>')} = {AT}\n"
    end = "# pid: 100\n" + END + "# end: 7ffff7efe000-7ffff7f00000 rw-s 00000000 fe:00 9 /tmp/two\n"
    verdict = replay(tmp_path, mapped + end)
    assert (verdict.maps, verdict.differing_maps, len(verdict.maps_not_compared)) == (3, [], 1)
    again = MAP.format("3</tmp/two>").replace("SHARED", "PRIVATE")
    known = f"{mapped}100 {again} = 0x7ffff7efc000\n100 close(4) = 0\n"
    end += "# end: 7ffff7efc000-7ffff7efe000 rw-p 00000000 fe:00 9 /tmp/two\n"
    verdict = replay(tmp_path, known + end)
    assert (verdict.maps, verdict.differing_maps, verdict.maps_not_compared) == (5, [], [])


ODD = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    int fd = memfd_create("a\nb\"\\<c>", 0);
    long context = 0;
    ftruncate(fd, 8192);
    mmap(0, 8192, PROT_READ, MAP_SHARED, fd, 0);
    syscall(SYS_io_setup, 8, &context);
    mmap(0, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    syscall(SYS_io_destroy, context);
    mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    syscall(SYS_io_setup, 8, (context = 0, &context));
    return 0;
}
"""


@needs_kernel
def test_the_recorder_writes_names_and_rings_that_can_be_read(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, path = built(tmp_path, ODD), tmp_path / "odd.trace"
    assert main(["oracle", "--trace", str(path), "--", str(program)]) == 0
    capfd.readouterr()
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])
    assert verdict.calls > 15
    assert "/[aio]" in path.read_text()


@pytest.mark.parametrize(
    "made",
    [
        "100 fork() = 101",
        "100 clone(child_stack=0x7f00, flags=CLONE_VM|CLONE_THREAD|CLONE_SIGHAND) = 101",
        f"101 {ONE}",  # who has made it was not recorded
    ],
)
def test_a_filter_holds_for_what_its_process_makes_later(tmp_path: Path, made: str) -> None:
    text = f"100 {ONE}\n100 {FILTER}\n{made}\n101 {DENIED}\n"
    assert ruled(tmp_path, text)[1] == 0


def test_a_childs_filter_is_none_of_its_parents(tmp_path: Path) -> None:
    text = f"100 {ONE}\n100 fork() = 101\n101 {FILTER}\n101 {DENIED}\n100 {DENIED}\n"
    verdict = replay(tmp_path, text)
    assert len(verdict.differing) == 1
    assert "seccomp filter may have forbidden it" in verdict.refused[0]
