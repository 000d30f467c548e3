"""Recordings as people make them: what is left out is no difference, and no agreement either."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import BEGIN, END, MAPPED, ONE, TWO, UNCHANGED, WRONG, built, replay, ruled

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.programs import parser, ptrace
from zaplock.programs.replay import StraceReplay

FREE = "munmap(0x7ffff7efe000, 8192)"
FORK = "clone(child_stack=NULL, flags=SIGCHLD"
THREAD = "100 clone(flags=CLONE_VM|CLONE_THREAD) = 101\n"


@pytest.mark.parametrize(("child", "differs"), [(ONE, 0), (TWO, 0), (WRONG, 1)])
def test_a_fork_copies_what_was_there_at_its_moment(
    tmp_path: Path, child: str, differs: int
) -> None:
    """Another thread unmaps beside the fork: the child has the mapping, or it has not."""
    text = (
        f"100 {ONE}\n{THREAD}101 {FORK} <unfinished ...>\n100 {FREE[:-1]} <unfinished ...>\n"
        f"101 <... clone resumed>) = 102\n100 <... munmap resumed>) = 0\n102 {child}\n"
    )
    assert ruled(tmp_path, text)[1:] == (differs, 0)


@pytest.mark.parametrize("result", ["0", "-1 ENOMEM (x)"])
def test_a_later_call_tells_in_which_order_earlier_ones_came(tmp_path: Path, result: str) -> None:
    """A thread maps what another one unmaps; whether it is mapped then tells who was last."""
    maps = "mmap(0x10000000, 4096, PROT_NONE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0"
    both = (
        f"{THREAD}100 {maps} <unfinished ...>\n101 munmap(0x10000000, 4096 <unfinished ...>\n"
        "100 <... mmap resumed>) = 0x10000000\n101 <... munmap resumed>) = 0\n"
    )
    asks = f"100 mincore(0x10000000, 4096, [0]) = {result}\n"
    assert ruled(tmp_path, f"{both}100 {ONE}\n{asks}100 {TWO}\n") == (5, 0, 0)
    assert ruled(tmp_path, f"{both}100 {ONE}\n{asks}100 {WRONG}\n") == (4, 1, 0)


def test_maps_are_behind_the_call_in_which_their_process_was_killed(tmp_path: Path) -> None:
    """They are compared as if it was not done; what differs may come of it."""
    killed = f"100 {ONE}\n100 {FREE[:-1]} <unfinished ...>\n# pid: 100\n{END}"
    gone = "100 +++ killed by SIGKILL +++\n"
    for left, compared, doubtful in ((UNCHANGED, 4, 0), ("", 0, 1)):
        verdict = replay(tmp_path, f"{killed}{left}{gone}")
        assert (verdict.maps, len(verdict.maps_not_compared)) == (compared, doubtful)
        assert not verdict.differing_maps
        assert len(verdict.refused) == 1


def test_two_recordings_may_be_mixed_line_by_line(tmp_path: Path) -> None:
    """Whose a line is its context tells, also in the middle of maps."""

    def lines(pid: int) -> list[str]:
        told = f"{BEGIN}{ONE}\n{TWO}\n{END}{UNCHANGED.replace('7ffff7efe000', '7ffff7efc000')}"
        return [f"# pid: {pid}\n{line}\n" for line in told.splitlines()[1:]]

    for ahead in range(len(lines(100))):
        one, two = lines(100), lines(200)
        mixed = [*one[:ahead], *(x for pair in zip(one[ahead:], two, strict=False) for x in pair)]
        verdict = replay(tmp_path, "".join([*mixed, *two[len(one) - ahead :]]), "")
        assert (verdict.calls, verdict.differing, verdict.refused) == (4, [], []), ahead
        assert (verdict.maps, verdict.differing_maps) == (8, []), ahead


def test_a_process_that_begins_twice_is_in_doubt(tmp_path: Path) -> None:
    """Two recordings of one id, one behind the other or mixed."""
    behind = f"100 {ONE}\n{BEGIN}100 {ONE}\n"
    assert ruled(tmp_path, behind) == (2, 0, 0)
    verdict = replay(tmp_path, f"{behind}100 {WRONG}\n")
    assert (verdict.agreeing, verdict.differing) == (2, [])
    assert "process 100 begins again without an execve" in verdict.refused[0]
    ended = f"100 {ONE}\n100 +++ exited with 0 +++\n{BEGIN}100 {WRONG}\n"
    assert ruled(tmp_path, ended) == (1, 1, 0)


@pytest.mark.parametrize("flags", ["0x4100 /* CLONE_VM */", "CLONE_VM|0x4000", "0x4100"])
def test_flags_of_clone_are_read_as_numbers_too(tmp_path: Path, flags: str) -> None:
    made = f"100 clone3({{flags={flags}, exit_signal=17 /* SIGCHLD */}}, 88) = 101\n"
    assert ruled(tmp_path, f"{made}101 {ONE}\n100 {TWO}\n") == (2, 0, 0)


def test_a_clone3_that_nobody_has_read_may_be_a_fork(tmp_path: Path) -> None:
    text = f"100 clone3(0x7ffff7000000, 0x58) = 101\n101 {ONE}\n100 {{}}\n"
    assert ruled(tmp_path, text.format(TWO)) == (2, 0, 0)
    assert ruled(tmp_path, text.format(ONE)) == (1, 0, 1)


def test_who_appears_without_a_clone_may_be_a_child(tmp_path: Path) -> None:
    assert ruled(tmp_path, f"100 {ONE}\n101 {TWO}\n") == (2, 0, 0)
    assert ruled(tmp_path, f"100 {WRONG}\n101 futex(0x1) = 0\n")[1] == 1
    verdict = replay(tmp_path, f"100 {ONE}\n101 {TWO}\n100 {TWO}\n")
    assert "whether process 101 is a thread of process 100" in verdict.refused[0]


def test_a_child_that_is_written_before_its_maker_belongs_to_it(tmp_path: Path) -> None:
    """As strace -z writes: each call when it has ended, and not which of them overlap."""
    text = f"100 {ONE}\n101 {TWO}\n100 fork() = 101\n100 {TWO}\n"
    assert ruled(tmp_path, text) == (3, 0, 0)
    verdict = replay(tmp_path, text + f"100 {WRONG}\n")
    assert (verdict.agreeing, verdict.differing) == (3, [])
    assert "-z or -e status" in verdict.refused[0]


def test_without_ids_nothing_is_in_doubt(tmp_path: Path) -> None:
    begin = BEGIN.replace("# pid: 100\n", "")
    assert ruled(tmp_path, f"{ONE}\nfutex(0x1) = 0\n{WRONG}\n", begin) == (1, 1, 0)


def test_where_only_failures_are_told_nothing_is_known(tmp_path: Path) -> None:
    failed = (
        "munmap(0x1, 4096) = -1 EINVAL (x)\nmprotect(0x7ffff7efe000, 4096, 1) = -1 EACCES (x)\n"
    )
    verdict = replay(tmp_path, failed)
    assert (verdict.agreeing, verdict.differing) == (1, [])
    assert "-Z" in verdict.refused[0]


def test_a_recording_without_any_mmap_is_in_doubt(tmp_path: Path) -> None:
    """strace -e trace=!mmap: what the linker protects has been mapped by nobody."""
    linked = "100 brk(NULL) = 0x555555577000\n100 mprotect(0x7ffff7dc0000, 4096, PROT_READ) = 0\n"
    verdict = replay(tmp_path, linked)
    assert (verdict.differing, len(verdict.refused)) == ([], 1)
    assert "no mmap is in the recording" in verdict.refused[0]
    assert ruled(tmp_path, f"100 {ONE}\n{linked}")[1] == 1


def test_a_program_that_was_executed_unseen_is_in_doubt(tmp_path: Path) -> None:
    """strace -e trace=!execve: a C library asks for the heap when its program begins."""
    heap = "101 brk(NULL) = 0x555555577000\n"
    forked = f"100 {ONE}\n100 fork() = 101\n{heap}101 {WRONG}\n"
    first = f"100 {heap[4:]}{forked}"
    verdict = replay(tmp_path, first)
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (3, [], 1)
    assert "whether a program was executed" in verdict.refused[0]
    executes = '100 execve("a", ["a"], 0x1) = -1 ENOENT (No such file or directory)\n'
    assert ruled(tmp_path, executes + first) == (3, 1, 0)


def test_a_file_of_which_only_the_descriptor_is_told_is_followed_and_refused(
    tmp_path: Path,
) -> None:
    file = "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0) = "
    assert ruled(tmp_path, f"{file}0x7ffff7efe000\n100 {TWO}\n") == (1, 0, 1)
    assert ruled(tmp_path, f"{file}-1 EBADF (x)\n") == (1, 0, 0)
    odd = "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0x1) = -1 EINVAL (x)\n"
    assert ruled(tmp_path, odd) == (1, 0, 0)


def test_what_was_moved_out_of_a_cloud_is_in_the_way(tmp_path: Path) -> None:
    """The model does not follow what nobody knows: a place that it chooses there is none."""
    text = (
        "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0) = 0x7ffff7efe000\n"
        "100 mremap(0x7ffff7efe000, 8192, 16384, MREMAP_MAYMOVE) = 0x7ffff7efa000\n"
        "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7ef8000\n"
    )
    assert ruled(tmp_path, text) == (0, 0, 3)
    assert ruled(tmp_path, text.replace("ef8000", "ef0000")) == (0, 0, 3)


@pytest.mark.parametrize(
    ("flags", "mode"),
    [('open("f", O_RDONLY|O_CLOEXEC)', 0), ('open("f", 0x2)', 2), ('openat(-100, "f", 0x80000)', 0),
     ('openat(-100, "f", 0x80002 /* O_RDWR|O_CLOEXEC */)', 2),
     ('openat2(-100, "f", {flags=O_RDONLY, resolve=0}, 24)', 0)],
)  # fmt: skip
def test_how_a_file_was_opened_is_read_in_every_form(tmp_path: Path, flags: str, mode: int) -> None:
    call = "mmap(NULL, 8192, PROT_WRITE, MAP_SHARED, 3, 0) = "
    result = "-1 EACCES (x)" if mode == 0 else "0x7ffff7efe000"
    assert ruled(tmp_path, f"100 {flags} = 3\n100 {call}{result}\n") == (1, 0, 0)


def test_a_limit_that_nobody_has_read_is_an_excuse(tmp_path: Path) -> None:
    limits = "".join(f"# limit: {name} unlimited\n" for name in ("as", "data", "memory"))
    begin = f"{BEGIN}{limits}# limit: mappings 65530\n"
    none = f"100 {MAPPED} = -1 ENOMEM (x)\n"
    known = "100 prlimit64(0, RLIMIT_AS, NULL, 0x7fff) = 0\n"
    library = "mmap(0x7ffff7000000, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 3</lib/c>, 0)"
    linked = (
        f"100 {library} = 0x7ffff7000000\n100 brk(NULL) = 0x555555556000\n"
        "100 mprotect(0x7ffff7f00000, 4096, PROT_READ) = 0\n"
    )
    assert ruled(tmp_path, none, begin) == (0, 1, 0)
    assert ruled(tmp_path, linked + none, begin) == (3, 0, 1)
    assert ruled(tmp_path, linked + known + none, begin) == (3, 1, 0)
    for limit in ("prlimit64(0, RLIMIT_AS, 0x7fff, NULL)", "setrlimit(0x9, 0x7fff)"):
        assert ruled(tmp_path, f"{known}100 {limit} = 0\n{none}", begin) == (0, 0, 2)


def test_a_seal_that_was_not_traced_is_an_excuse(tmp_path: Path) -> None:
    sealed = f"100 {ONE}\n100 {FREE} = -1 EPERM (x)\n"
    assert ruled(tmp_path, sealed) == (1, 0, 1)
    traced = "100 mseal(0x555555554000, 4096, 0) = 0\n"
    assert ruled(tmp_path, traced + sealed) == (2, 1, 0)


def test_stacks_of_k_and_empty_lines_are_passed_over(tmp_path: Path) -> None:
    stack = " > /usr/lib/libc.so.6(__mmap+0x25) [0x1012]\n"
    (tmp_path / "t.100").write_text(
        f"{BEGIN}\n12:00:01.000001 {ONE} <0.000001>\n{stack}"
        f"12:00:01.000300 {TWO} <0.000010>\n{stack}"
    )
    (tmp_path / "t.101").write_text(f"12:00:01.000200 futex(0x1) = 0 <0.000010>\n{stack}")
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])
    assert ruled(tmp_path, f"\n100 {ONE}\n", BEGIN.replace("\n", "\n\n")) == (1, 0, 0)


def test_what_is_packed_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(BEGIN.encode()))
    with pytest.raises(UserError, match="is compressed: unpack it"):
        parser.parse(path)


NARROW = "[ Process PID=100 runs in 32 bit mode. ]\n"
WIDE = NARROW.replace("32", "64")
OWN = '# command: execve("prog")\n'
EXEC = '100 execve("prog", ["prog"], 0x1) = 0\n'


def test_32_bit_calls_of_a_64_bit_program_are_compared_but_for_where_they_map(
    tmp_path: Path,
) -> None:
    """Linux places what they map below 4 GiB, from a base that nothing tells."""
    low = "100 mmap2(NULL, 4096, 3, 34, -1, 0) = 0xf7fc5000\n"
    fixed = "100 mmap2(0x10000000, 4096, 3, 50, -1, 0) = 0x10000000\n"
    first = f"{EXEC}100 {ONE}\n{NARROW}"
    assert ruled(tmp_path, f"{first}{fixed}{low}{WIDE}100 {TWO}\n") == (3, 0, 1)
    old = fixed.replace("mmap2", "old_mmap")  # strace 4's name
    assert ruled(tmp_path, f"{first}{old}{WIDE}100 {TWO}\n") == (3, 0, 0)
    attached = "100 shmget(0, 8192, 0600) = 7\n100 shmat(7, NULL, 0) = 0xf7fc5000\n"
    end = END + "# end: f7fc5000-f7fc7000 rw-s 00000000 00:01 7 /SYSV00000000 (deleted)\n"
    verdict = replay(tmp_path, f"{first}{attached}{WIDE}# pid: 100\n{end}{UNCHANGED}")
    assert (verdict.agreeing, len(verdict.refused), verdict.differing_maps) == (1, 1, [])
    in_another_file = first.replace(NARROW, "")  # -o: strace says of no width there
    heap = "100 brk(NULL) = 0x555555556000\n100 brk(NULL) = 0x55556000\n"
    assert ruled(tmp_path, f"{in_another_file}{fixed}{low}{heap}100 {TWO}\n") == (5, 0, 1)
    assert ruled(tmp_path, f"{in_another_file}{heap}") == (2, 0, 1)
    assert ruled(tmp_path, f"{first}100 munmap(0xf7fc5000, 4096) = -1 EINVAL (x)\n") == (1, 1, 0)
    assert ruled(tmp_path, f"{first}{WIDE}100 {WRONG}\n") == (1, 1, 0)


def test_32_bit_calls_may_be_of_a_program_whose_execve_is_not_in_the_recording(
    tmp_path: Path,
) -> None:
    verdict = replay(tmp_path, f"100 {ONE}\n{NARROW}100 {WRONG}\n")
    assert (verdict.agreeing, verdict.differing) == (1, [])
    assert "runs in 32 bit mode" in verdict.refused[0]
    (tmp_path / "x.strace").write_text(BEGIN + NARROW)
    with pytest.raises(UserError, match="has no calls: record it with strace -f"):
        parser.parse(tmp_path / "x.strace")


@pytest.mark.parametrize("mode", ["32 bit", "x32"])
def test_what_the_recorder_did_not_record_is_refused_in_one_line(tmp_path: Path, mode: str) -> None:
    """Before it followed 32-bit calls, it said so; x32 it does not follow yet."""
    begin = OWN + ("# widths: 32 64\n" if mode == "x32" else "") + BEGIN
    verdict = replay(tmp_path, f"{NARROW.replace('32 bit', mode)}100 {ONE}\n", begin)
    assert verdict.agreeing == 0
    assert f"runs in {mode} mode, of which this recording has no calls" in verdict.refused[0]


@pytest.mark.parametrize(("end", "ruling"), [("bfffe000", (0, 1, 0)), ("ffffd000", (1, 0, 0))])
def test_a_32_bit_program_may_have_3_gib_only(
    tmp_path: Path, end: str, ruling: tuple[int, int, int]
) -> None:
    """ADDR_LIMIT_3GB: the stack, which is the last, tells it."""
    begin = (
        "# pid: 100\n# begin: 56555000-56556000 r-xp 00000000 fe:00 1 prog\n"
        f"# begin: b7fc0000-b7ff0000 r-xp 00000000 fe:00 2 ld.so\n"
        f"# begin: bff00000-{end} rw-p 00000000 00:00 0 [stack]\n"
    )
    high = "100 mmap2(0xd0000000, 4096, 3, 50, -1, 0) = 0xd0000000\n"
    assert ruled(tmp_path, high, begin) == ruling


def test_addresses_of_another_architecture_are_refused(tmp_path: Path) -> None:
    arm = BEGIN.replace("7ffff7f0", "ffff8c1d").replace("7fffffff", "ffffc7d1")
    verdict = replay(tmp_path, f"100 {MAPPED} = 0xffff8c1ce000\n", arm)
    assert (verdict.differing, verdict.agreeing) == ([], 0)
    assert "more than 47 bits" in verdict.refused[0]
    high = "100 mmap(0x800000000000, 4096, 1, 0x22, -1, 0) = 0x800000000000\n"
    assert ruled(tmp_path, f"100 {ONE}\n{high}") == (1, 0, 1)


INT_80 = r"""
static long call(long n, long a, long b, long c, long d, long e) {
  long r;
  __asm__ volatile("int $0x80" : "=a"(r)
                   : "a"(n), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
  return r;
}
"""
WITHOUT_LIBRARY = rf"""{INT_80}
static unsigned at, limit[] = {{4096, 4096}}, range[] = {{0, 4096}};
static unsigned map[] = {{0, 16384, 3, 0x22, -1, 0}};
static int same(long a, long b) {{ return a == b; }}
void _start(void) {{
  long a = call(90, (long)map, 0, 0, 0, 0), id = call(117, 23, 0, 8192, 01600, 0);
  int ok = same(call(125, a, 4096, 1, 0, 0), 0);
  ok &= same(call(117, 21, id, 0, (long)&at, 0), 0) & (at > 4096);
  ok &= same(call(117, 24, id, 0, 0, 0), 0);
  ok &= same(call(219, at, 4096, 4, 0, 0), 0);
  ok &= same(call(75, 8, (long)limit, 0, 0, 0), 0);
  range[0] = a + 4096;
  long own = call(434, call(20, 0, 0, 0, 0, 0), 0, 0, 0, 0);
  ok &= same(call(440, own, (long)range, 1, 20, 0), 4096);
  if (!call(2, 0, 0, 0, 0, 0)) {{
    call(91, a, 8192, 0, 0, 0);
    call(1, 0, 0, 0, 0, 0);
  }}
  ok &= same(call(117, 22, 0, 0, 0, at), 0);
  call(1, !ok, 0, 0, 0, 0);
}}
"""
"""mmap in one structure, a segment behind ipc, an advice, a limit, own ranges, a child."""


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing with a filter is for root here")
@pytest.mark.parametrize("every", [[], ["--every-call"]])
def test_the_recorder_follows_32_bit_calls_of_a_64_bit_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: list[str]
) -> None:
    """By int 0x80, whose numbers are those of i386: munmap, mmap in one structure, fork."""
    program = built(
        tmp_path,
        f"#include <sys/mman.h>\n#include <sys/wait.h>\n#include <unistd.h>\n{INT_80}"
        "int main(void) {\n"
        "  unsigned *a = mmap((void *)0x10000000, 65536, 3, 0x32, -1, 0);\n"
        "  unsigned told[] = {0x20000000, 8192, 3, 0x32, -1, 0};\n"
        "  for (int k = 0; k < 6; k++) a[4096 + k] = told[k];\n"
        "  long r = call(91, 0x10000000, 8192, 0, 0, 0);\n"
        "  if (call(90, 0x10004000, 0, 0, 0, 0) != 0x20000000) return 1;\n"
        "  if (!call(2, 0, 0, 0, 0, 0)) { munmap((void *)0x20000000, 4096); _exit(0); }\n"
        "  wait(0);\n"
        "  return !r && !madvise((void *)0x10002000, 4096, MADV_DONTNEED) ? 0 : 1;\n}\n",
    )
    kept = tmp_path / "x.trace"
    assert main(["oracle", "--trace", str(kept), *every, "--", str(program)]) == 0
    assert "0 calls refused" in capsys.readouterr().out
    recorded = kept.read_text()
    for call in ("munmap(0x10000000", "mmap(0x20000000, 0x2000, 0x3, 0x32, -1", "fork() = "):
        assert f" {call}" in recorded.partition("32 bit mode")[2]


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing with a filter is for root here")
@pytest.mark.parametrize("layout", [[], ["-3"], ["-L"], ["-R"]])
def test_the_recorder_follows_a_32_bit_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: list[str]
) -> None:
    """It has no C library, since there may be none for 32 bits."""
    source, program = tmp_path / "narrow.c", tmp_path / "narrow"
    source.write_text(WITHOUT_LIBRARY)
    made = [
        "cc",
        "-w",
        "-m32",
        "-static",
        "-nostdlib",
        "-fno-pie",
        "-no-pie",
        "-fno-stack-protector",
    ]
    if subprocess.run([*made, "-o", program, source], capture_output=True).returncode:
        pytest.skip("this compiler makes no 32-bit programs")
    kept = tmp_path / "x.trace"
    command = ["setarch", "i386", *layout, str(program)] if layout else [str(program)]
    assert main(["oracle", "--trace", str(kept), "--", *command]) == 0
    shown = capsys.readouterr()
    assert "ended with 0" in shown.err
    assert "0 calls refused" in shown.out
    recorded = kept.read_text()
    for call in (
        "shmat(",
        "shmdt(",
        "process_madvise(",
        "setrlimit(RLIMIT_MEMLOCK, {rlim_cur=4096",
    ):
        assert f" {call}" in recorded


def test_a_recording_given_without_its_option_is_told_which_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.strace"
    path.write_text(f"{BEGIN}100 {ONE}\n")
    assert main(["oracle", str(path)]) == 2
    assert f"zaplock oracle --strace {path}" in capsys.readouterr().err
    assert main(["oracle", "ls"]) == 2
    assert "zaplock oracle --trace -- PROGRAM" in capsys.readouterr().err


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing with a filter is for root here")
@pytest.mark.parametrize("every", [[], ["--every-call"]])
def test_who_asks_for_x32_where_there_is_none_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], every: list[str]
) -> None:
    """Each of its calls is ENOSYS; where the kernel has them, nobody has read them."""
    program = built(
        tmp_path,
        "#define _GNU_SOURCE\n#include <sys/mman.h>\n#include <unistd.h>\n"
        "int main(void) {\n"
        "  long r = syscall(0x40000000 | 9, 0, 4096, 3, 0x22, -1, 0);\n"
        "  return mmap(0, 4096, 3, 0x22, -1, 0) == MAP_FAILED || (r > 0 && r < 4096);\n}\n",
    )
    assert main(["oracle", "--trace", *every, "--", str(program)]) == 0
    told = "runs in x32 mode, of which this recording has no calls"
    shown = capsys.readouterr().out
    assert (told in shown) == ptrace.has_x32()
    assert ("0 calls refused" in shown) != ptrace.has_x32()


def test_what_a_list_of_calls_leaves_out_makes_no_difference(tmp_path: Path) -> None:
    """strace -e trace=mmap,munmap,mprotect,brk,mremap: what an mlock has cut shows as EFAULT."""
    library = "mmap(0x7ffff7000000, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 3</lib/c>, 0)"
    text = f"100 {library} = 0x7ffff7000000\n100 brk(NULL) = 0x555555556000\n"
    text += f"100 mprotect(0x7ffff7f00000, 4096, PROT_READ) = 0\n100 {ONE}\n"
    moves = "100 mremap(0x7ffff7efe000, 8192, 12288, MREMAP_MAYMOVE) = -1 EFAULT (x)\n"
    verdict = replay(tmp_path, text + moves)
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (4, [], 1)
    assert "whether mlock or madvise has cut" in verdict.refused[0]
    for shown in (
        "madvise(0x7ffff7efe000, 4096, MADV_NORMAL) = 0",
        'execve("x", [], []) = -1 E (x)',
    ):
        assert ruled(tmp_path, f"{text}100 {shown}\n{moves}")[1] == 1
