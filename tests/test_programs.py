"""Recorded programs on the model: every return value, and the maps in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import waits_with
from test_oracle import needs_kernel

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.programs import parser
from zaplock.programs import text as strace_text
from zaplock.programs.about_memory import UNMODELLED
from zaplock.programs.calls import CALLS
from zaplock.programs.descriptors import DESCRIPTORS
from zaplock.programs.recording import EXECS
from zaplock.programs.replay import StraceReplay, StraceVerdict
from zaplock.system_calls import CLONES

FIXTURES = sorted((Path(__file__).parent / "fixtures" / "strace").glob("*.strace"))


BEGIN = """\
# pid: 100
# begin: 555555554000-555555556000 r-xp 00000000 fe:00 1 prog
# begin: 7ffff7f00000-7ffff7f04000 rw-p 00031000 fe:00 2 ld.so
# begin: 7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
"""
MAPPED = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
ONE = f"{MAPPED} = 0x7ffff7efe000"
TWO = f"{MAPPED} = 0x7ffff7efc000"
WRONG = f"{MAPPED} = 0x7ffff7000000"
END = BEGIN.replace("begin", "end")
UNCHANGED = "# end: 7ffff7efe000-7ffff7f00000 rw-p 00000000 00:00 0\n"


def replay(tmp_path: Path, text: str, begin: str = BEGIN) -> StraceVerdict:
    path = tmp_path / "program.strace"
    path.write_text(begin + text)
    return StraceReplay(parser.parse(path)).play()


def built(folder: Path, text: str) -> Path:
    """Compile a C program; its path."""
    source, program = folder / "program.c", folder / "program"
    source.write_text(text)
    subprocess.run(["cc", "-w", "-o", program, source], check=True)
    return program


def ruled(tmp_path: Path, text: str, begin: str = BEGIN) -> tuple[int, int, int]:
    """Return how many calls agree, differ and were refused."""
    verdict = replay(tmp_path, text, begin)
    return verdict.agreeing, len(verdict.differing), len(verdict.refused)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_a_program_agrees_to_the_last_mapping(path: Path) -> None:
    verdict = StraceReplay(parser.parse(path)).play()
    assert verdict.calls > 80
    assert not verdict.differing
    assert verdict.maps > 40
    assert not verdict.differing_maps
    assert len(verdict.refused) <= 1  # stress-ng asks for huge pages, whose pool nobody recorded


@pytest.mark.parametrize(
    "prefix",
    ["100 ", "[pid   100] ", "100<prog> ", "100 12:00:01 ", "100 12:00:01.123456 ",
     "100 1700000000.123456 ", "100 12:00:01.1 (+     0.000123) ", "100 [00007ffff7ec1234] ",
     "100 12:00:01.1 [   9] [00007ffff7ec1234] ", "", "12:00:01.123456 ", "     0.000012 "],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", " <0.000012>", "  (DELAYED)"])
def test_every_prefix_and_suffix_is_read(tmp_path: Path, prefix: str, suffix: str) -> None:
    assert ruled(tmp_path, f"{prefix}{ONE}{suffix}\n{prefix}{TWO}{suffix}\n") == (2, 0, 0)


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("mmap(NULL, 8192, PROT_READ|PROT_SEM, 0x8 /* MAP_??? */|MAP_ANONYMOUS, -1, 0)",
         "0x7ffff7efe000"),
        ("mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3</tmp/a(b, c>, 0)", "0x7ffff7efe000"),
        ("mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3</dev/zero<char 1:5>>, 0)", "0x7ffff7efe000"),
        ("mmap(NULL, 4194304, PROT_READ, MAP_SHARED, 3</memfd:x>(deleted), 0)", "0x7ffff7b00000"),
        ("mmap(NULL, 8192, PROT_READ, MAP_SHARED, 3<UNIX:[1->2]>, 0)", "-1 ENODEV (x)"),
        ("syscall_0x1ce(0x555555554000, 0x1000, 0, 0xffffffff, 0, 0)", "0"),
        ("pkey_mprotect(0x555555554000, 4096, PROT_READ, -1)", "0"),
        ("pkey_mprotect(0x555555554000, 4096, PROT_READ, 3)", "0"),
        ("process_madvise(3, [{iov_base=0x555555554000, iov_len=4096}], 1, MADV_DONTNEED, 0)",
         "4096"),
        ("mincore(0x555555554000, 8192, [1, 0])", "0"),
    ],
)  # fmt: skip
def test_arguments_are_read_as_people_write_them(tmp_path: Path, call: str, result: str) -> None:
    assert ruled(tmp_path, f"100 {call} = {result}\n") == (1, 0, 0)


@pytest.mark.parametrize(
    "argument", ["zz", "[", "{}", '"x"', "NULL", "5", "0x7ffff7f00000", "-1", "UFFDIO_REGISTER"]
)
@pytest.mark.parametrize("result", ["0", "3", "-1 EINVAL (x)", "0x7ffff7f10000"])
def test_arguments_that_are_missing_or_can_not_be_read_are_no_reason_to_stop(
    tmp_path: Path, argument: str, result: str
) -> None:
    """Whatever a stranger's recording has there: each call is followed, compared or refused.

    Each in a child of its own, so that none is behind what another one has made unknown.
    """
    monitor = (
        "userfaultfd(0) = 4",
        "ioctl(4, UFFDIO_REGISTER, {range={start=0x7ffff7f00000, len=0x1000}, mode=0x1}) = 0",
    )
    told = {
        f"{name}({', '.join([first, *[argument] * 5][:count])}) = {result}"
        for name in (*CALLS, *DESCRIPTORS, *UNMODELLED, *CLONES, *EXECS)
        for first in (argument, "0x7ffff7f00000")
        for count in range(7)
    }
    text = "".join(
        f"100 fork() = {pid}\n" + "".join(f"{pid} {line}\n" for line in (*monitor, call, ONE))
        for pid, call in enumerate(sorted(told), 1000)
    )
    verdict = replay(tmp_path, text)
    assert verdict.calls + len(verdict.refused) > len(told) > 300


def test_a_trace_that_begins_with_its_execve_is_compared(tmp_path: Path) -> None:
    execve = '100 execve("/usr/bin/prog", ["prog"], 0x1 /* 0 vars */) = 0\n'
    assert ruled(tmp_path, f"{execve}100 {ONE}\n") == (1, 0, 0)
    assert ruled(tmp_path, f"{execve}100 {WRONG}\n") == (0, 1, 0)


@pytest.mark.parametrize(
    ("after", "compared"),
    [
        ("brk(NULL) = 0x555555556000", 2),  # where the memory of these maps ends, exactly
        ("brk(NULL) = 0x555555559000", 0),
        ("brk(NULL) = 0x555555559000\nmprotect(0x7ffff7f00000, 4096, PROT_READ) = 0", 3),
        ("brk(NULL) = 0x555555559000\nmprotect(0x7ffff7f01000, 4096, PROT_READ) = 0", 0),
    ],
)
def test_a_link_or_a_script_begins_with_the_maps_of_what_it_is(
    tmp_path: Path, after: str, compared: int
) -> None:
    begin = BEGIN.replace("ld.so", "/lib/ld.so").replace("2 prog", "2 /bin/prog")
    text = f'execve("/usr/bin/link", ["link"], 0x7ff /* 3 vars */) = 0\n{after}\n{ONE}\n'
    verdict = replay(tmp_path, text, begin)
    assert verdict.agreeing == compared


def test_what_the_script_for_bpftrace_prints_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "100 7.000000001 close(4 <unfinished ...>\n"
        "100 7.000000002 <... close resumed>) = 0\n"
        '100 7.000000003 execve("./prog", 0x5555, 0x7fff <unfinished ...>\n'
        "100 7.000000004 <... execve resumed>) = 0\n"
        "100 7.000000005 mmap(0x0, 0x2000, 0x3, 0x22, -1, 0x0 <unfinished ...>\n"
        "100 7.000000006 <... mmap resumed>) = 140737353080832\n"
        "100 7.000000007 munmap(0x1, 0x2000 <unfinished ...>\n"
        "100 7.000000008 <... munmap resumed>) = -22\n"
        "100 7.000000009 +++ exited with 0 +++\n"
    )
    assert int(ONE.rpartition(" ")[2], 16) == 140737353080832
    assert ruled(tmp_path, text) == (2, 0, 0)
    assert ruled(tmp_path, text.replace("= -22", "= -12")) == (1, 1, 0)
    assert main(["oracle", "--bpftrace"]) == 0
    printed = capsys.readouterr().out
    assert 'printf("%d %llu.%09llu mmap(0x%lx, 0x%lx, 0x%lx, 0x%lx, %d, 0x%lx <unfin' in printed
    assert printed.count("{") == printed.count("}")


def test_a_path_in_numbers_is_the_same_path(tmp_path: Path) -> None:
    text = r'execve("\x2f\x70\x72\x6f\x67", ["\x22"], 0x7ff) = 0'
    assert ruled(tmp_path, f"{text}\n{ONE}\n") == (1, 0, 0)


def test_a_failed_execve_changes_nothing(tmp_path: Path) -> None:
    execve = '100 execve("a", ["a"], 0x1) = -1 ENOENT (No such file or directory)\n'
    assert ruled(tmp_path, f"{execve}100 {WRONG}\n") == (0, 1, 0)


def test_after_another_execve_nothing_is_known_until_its_maps_are(tmp_path: Path) -> None:
    text = f'100 {ONE}\n100 execve("/bin/ls", ["ls"], 0x1) = 0\n'
    assert ruled(tmp_path, f"{text}100 {TWO}\n") == (1, 0, 1)
    maps = BEGIN.replace("prog", "ls")
    assert ruled(tmp_path, f"{text}{maps}100 {ONE}\n") == (2, 0, 0)


def test_a_thread_of_a_child_that_has_executed_is_not_the_first_process(tmp_path: Path) -> None:
    text = (
        "100 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD, child_tidptr=0x1) = 101\n"
        f'101 execve("/bin/ls", ["ls"], 0x1) = 0\n{BEGIN.replace("100", "101")}'
        "101 clone3({flags=CLONE_VM|CLONE_THREAD, exit_signal=0} => {parent_tid=[102]}, 88) = 102\n"
        f"102 {ONE}\n101 {TWO}\n100 {ONE}\n"
    )
    assert ruled(tmp_path, text) == (3, 0, 0)


def test_a_forked_child_goes_on_where_its_parent_was(tmp_path: Path) -> None:
    text = f"100 {ONE}\n100 fork() = 101\n101 {TWO}\n100 {TWO}\n101 +++ exited with 0 +++\n"
    assert ruled(tmp_path, text) == (3, 0, 0)


def test_a_childs_calls_may_come_before_its_maker_returns(tmp_path: Path) -> None:
    text = (
        f"100 {ONE}\n100 clone(flags=SIGCHLD <unfinished ...>\n101 {TWO}\n"
        f"100 <... clone resumed>, child_tidptr=0x1) = 101\n100 {TWO}\n"
    )
    assert ruled(tmp_path, text) == (3, 0, 0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_overlapping_calls_are_tried_in_either_order(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    ends = [f"10{k} <... mmap resumed>) = {(ONE, TWO)[k].rpartition(' ')[2]}\n" for k in (0, 1)]
    text = (
        "100 clone(flags=CLONE_VM|CLONE_THREAD) = 101\n"
        f"101 {MAPPED[:-1]} <unfinished ...>\n100 {MAPPED[:-1]} <unfinished ...>\n"
        + ends[order[0]] + ends[order[1]]
    )  # fmt: skip
    assert ruled(tmp_path, text) == (2, 0, 0)


def test_calls_one_after_the_other_are_not_swapped(tmp_path: Path) -> None:
    text = f"100 clone(flags=CLONE_VM|CLONE_THREAD) = 101\n101 {TWO}\n100 {ONE}\n"
    assert ruled(tmp_path, text)[1] > 0


@pytest.mark.parametrize(
    "line", [f"{MAPPED[:30]}100 {ONE}", f"{MAPPED[:30]}", "<... munmap resumed>) = 0"]
)
def test_what_a_cut_line_did_is_not_known(tmp_path: Path, line: str) -> None:
    verdict = replay(tmp_path, f"100 {ONE}\n100 {line}\n100 {WRONG}\n{END}")
    assert (verdict.agreeing, len(verdict.differing)) == (1, 0)
    assert verdict.refused
    assert verdict.maps_not_compared


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, 3<f>, 0) = -1 EACCES (x)", "what f allows"),
        ("mprotect(0x555555554000, 4096, PROT_READ|PROT_EXEC) = -1 EACCES (x)", "PR_SET_MDWE"),
        ("mlock(0x555555554000, 4096) = -1 ENOMEM (x)", "RLIMIT_MEMLOCK"),
        ("madvise(0x555555554000, 4096, MADV_COLLAPSE) = -1 EAGAIN (x)", "depends on pages"),
        ("munmap(0x555555554000, 4096) = -1 ENOSYS (x)", "no munmap"),
        ("map_shadow_stack(NULL, 4096, 0) = 0x7ffff7000000", "the model has no map_shadow_stack"),
    ],
)
def test_what_a_trace_does_not_tell_is_refused(tmp_path: Path, call: str, why: str) -> None:
    verdict = replay(tmp_path, f"100 {call}\n")
    assert not verdict.differing
    assert [why in told for told in verdict.refused] == [True]


def test_what_was_traced_is_no_excuse(tmp_path: Path) -> None:
    opened = '100 openat(AT_FDCWD, "f", O_RDWR) = 3<f>\n'
    call = "100 mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, 3<f>, 0) = -1 EACCES (x)\n"
    assert ruled(tmp_path, opened + call) == (0, 1, 0)
    assert ruled(tmp_path, opened.replace("O_RDWR", "O_RDONLY") + call) == (1, 0, 0)


def test_limits_and_mdwe_bind_where_they_were_recorded(tmp_path: Path) -> None:
    limit = (
        "100 prlimit64(0, RLIMIT_AS, {rlim_cur=1024*1024, rlim_max=RLIM64_INFINITY}, NULL) = 0\n"
    )
    call = "mmap(NULL, 8388608, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
    assert ruled(tmp_path, f"{limit}100 {call} = -1 ENOMEM (x)\n")[:2] == (2, 0)
    mdwe = "100 prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) = 0\n"
    both = "mmap(NULL, 4096, PROT_WRITE|PROT_EXEC, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
    assert ruled(tmp_path, f"{mdwe}100 {both} = -1 EACCES (x)\n") == (2, 0, 0)


def test_a_segment_is_as_long_as_the_hole_that_it_fills(tmp_path: Path) -> None:
    text = "100 shmat(0, NULL, 0) = 0x7ffff7efe000\n100 shmdt(0x7ffff7efe000) = 0\n"
    assert ruled(tmp_path, text) == (1, 0, 1)
    segment = "100 shmget(IPC_PRIVATE, 8192, IPC_CREAT|0600) = 0\n"
    assert ruled(tmp_path, segment + text) == (2, 0, 0)


def test_huge_pages_can_not_be_split(tmp_path: Path) -> None:
    text = (
        "100 mmap(NULL, 2097152, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_HUGETLB, -1, 0)"
        " = 0x7ffff7c00000\n100 munmap(0x7ffff7c00000, 4096) = -1 EINVAL (Invalid argument)\n"
    )
    assert ruled(tmp_path, text) == (2, 0, 0)


def test_a_legacy_layout_and_page_0_are_learnt(tmp_path: Path) -> None:
    begin = BEGIN.replace("7ffff7f0", "2aaaaaab")
    up = "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x2aaaaaab4000\n"
    assert ruled(tmp_path, up, begin) == (1, 0, 0)
    zero = "100 mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0) = 0\n"
    assert ruled(tmp_path, zero) == (1, 0, 0)


def test_borders_that_written_pages_decide_are_counted(tmp_path: Path) -> None:
    """Three pages, the middle one mapped last: whether they are one depends on who was written."""
    at = (0x10000000, 0x10002000, 0x10001000)
    calls = [
        f"100 mmap({a:#x}, 4096, PROT_READ, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0) = {a:#x}\n"
        for a in at
    ]
    end = (
        END
        + "# end: 10000000-10002000 r--p 00000000 00:00 0\n"
        + ("# end: 10002000-10003000 r--p 00000000 00:00 0\n")
    )
    unknown = replay(tmp_path, "".join(calls) + end)
    assert (unknown.differing_maps, unknown.unknown_borders) == ([], 1)
    written = "# anon: 10000000-10001000\n# anon: 10002000-10003000\n"
    known = replay(tmp_path, "".join(calls[:2]) + f"# pid: 100\n{written}{calls[2]}{end}")
    assert (known.differing_maps, known.unknown_borders) == ([], 0)


def test_files_of_ff_are_merged_by_time(tmp_path: Path) -> None:
    (tmp_path / "t.100").write_text(
        f"{BEGIN}12:00:01.000001 clone(flags=CLONE_VM|CLONE_THREAD) = 101 <0.000001>\n"
        f"12:00:01.000300 {TWO} <0.000010>\n"
    )
    (tmp_path / "t.101").write_text(f"12:00:01.000200 {ONE} <0.000010>\n+++ exited with 0 +++\n")
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def files_of_threads(tmp_path: Path, **files: str) -> StraceVerdict:
    """Replay files of -ff; that of thread 100, with the maps, makes two threads."""
    made = "clone(flags=CLONE_VM|CLONE_THREAD) = 101\nclone(flags=CLONE_VM|CLONE_THREAD) = 102\n"
    files = {"t100": "", "t101": "", "t102": ""} | files
    for name, text in files.items():
        head = BEGIN + made if name == "t100" else ""
        (tmp_path / f"t.{name[1:]}").write_text(f"{head}{text}+++ exited with 0 +++\n")
    return StraceReplay(parser.parse(tmp_path / "t")).play()


def test_files_of_ff_without_times_are_put_into_an_order_that_explains_them(tmp_path: Path) -> None:
    """Thread 102 went where 101's first mapping had been, and 101 to below that."""
    free = "munmap(0x7ffff7efe000, 8192) = 0"
    verdict = files_of_threads(tmp_path, t101=f"{ONE}\n{free}\n{TWO}\n", t102=f"{ONE}\n")
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (4, [], [])


def test_the_last_maps_of_files_of_ff_are_compared_behind_every_thread(tmp_path: Path) -> None:
    free = "munmap(0x7ffff7efe000, 8192) = 0"
    verdict = files_of_threads(tmp_path, t100=END, t101=f"{ONE}\n{free}\n")
    assert (verdict.agreeing, verdict.maps, verdict.maps_not_compared) == (2, 3, [])


def test_who_keeps_a_place_for_good_comes_there_last(tmp_path: Path) -> None:
    """Both threads mapped the same place; only 102 has given it back, so it came first."""
    free = "munmap(0x7ffff7efe000, 8192) = 0"
    verdict = files_of_threads(tmp_path, t101=f"{ONE}\n", t102=f"{ONE}\n{free}\n")
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (3, [], [])


def test_what_a_child_maps_tells_when_its_fork_came_among_threads(tmp_path: Path) -> None:
    """The child goes where thread 101 went: it was copied before, or behind its munmap."""
    child = tmp_path / "t.103"
    child.write_text(f"{ONE}\n{TWO}\n+++ exited with 0 +++\n")
    below = "mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
    verdict = files_of_threads(
        tmp_path,
        t100="clone(flags=SIGCHLD) = 103\n",
        t101=f"{ONE}\n{TWO}\n",
        t102=f"{below} = 0x7ffff7efb000\n",
    )
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (5, [], [])


def threads_that_contend(count: int, rounds: int) -> dict[str, str]:
    """Files of threads that map and free places of each other, one call after the other by turns.

    They are recorded by a machine that places as the kernel does: in the first hole from above.
    """
    taken: set[int] = set()
    files = {f"t{101 + k}": "" for k in range(count)}
    own: dict[str, list[tuple[int, int]]] = {name: [] for name in files}

    def place(pages: int) -> int:
        at = 0x7FFFF7F00
        while any(at - k in taken for k in range(1, pages + 1)):
            at -= 1
        return at - pages

    for turn in range(rounds * count):
        name = f"t{101 + (turn * 7 + turn // count) % count}"
        if own[name] and turn % 3 == 2:
            at, pages = own[name].pop(turn % len(own[name]))
            taken -= set(range(at, at + pages))
            files[name] += f"munmap({at << 12:#x}, {pages << 12}) = 0\n"
        else:
            pages = 1 + turn % 4
            at = place(pages)
            taken |= set(range(at, at + pages))
            own[name].append((at, pages))
            call = f"mmap(NULL, {pages << 12}, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0)"
            files[name] += f"{call} = {at << 12:#x}\n"
    return files


def test_many_threads_that_contend_for_places_are_put_into_an_order(tmp_path: Path) -> None:
    """120 calls of five threads have 10^79 orders: reasons for failures tell what to change."""
    count, rounds = 5, 24
    files = threads_that_contend(count, rounds)
    made = "".join(f"clone(flags=CLONE_VM|CLONE_THREAD) = {103 + k}\n" for k in range(count - 2))
    verdict = files_of_threads(tmp_path, t100=made, **files)
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (count * rounds, [], [])


def test_files_of_ff_that_no_order_explains_are_refused(tmp_path: Path) -> None:
    verdict = files_of_threads(tmp_path, t101=f"{ONE}\n", t102=f"{WRONG}\n")
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (0, [], 2)
    assert "which order its threads called in" in verdict.refused[0]


@pytest.mark.parametrize(
    "made",
    [
        ("clone(flags=CLONE_VM|CLONE_THREAD) = 100", ""),
        ("vfork() = 100", ""),
        ("clone(flags=CLONE_VM|CLONE_THREAD) = 101", ""),
        ("", "clone(flags=CLONE_VM|CLONE_THREAD) = 100"),
    ],
)
def test_a_thread_that_files_of_ff_make_twice_or_by_itself_is_read_once(
    tmp_path: Path, made: tuple[str, str]
) -> None:
    """An id is used again, or a file is wrong: every call has one ruling, and there is an end."""
    first, second = made
    verdict = files_of_threads(tmp_path, t100=f"{first}\n{ONE}\n", t101=f"{second}\n{TWO}\n")
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_a_file_of_ff_alone_tells_that_others_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "t.100"
    path.write_text(f"{BEGIN}{ONE}\nclone(flags=CLONE_VM|CLONE_THREAD) = 101\n{WRONG}\n")
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (1, [], 1)
    assert "thread 101 is not in the recording" in verdict.refused[0]


def test_a_child_that_its_maker_waits_for_need_not_be_in_the_recording(tmp_path: Path) -> None:
    vfork = "clone(child_stack=0x7f00, flags=CLONE_VM|CLONE_VFORK|SIGCHLD) = 101"
    verdict = replay(tmp_path, f"{ONE}\n{vfork}\n{TWO}\n")
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_files_of_ff_over_midnight_stay_in_order(tmp_path: Path) -> None:
    (tmp_path / "t.100").write_text(
        f"{BEGIN}23:59:59.900000 clone(flags=CLONE_VM|CLONE_THREAD) = 101 <0.000001>\n"
        f"00:00:00.100000 {TWO} <0.000010>\n"
    )
    (tmp_path / "t.101").write_text(f"23:59:59.950000 {ONE} <0.000010>\n+++ exited with 0 +++\n")
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_a_result_that_strace_has_put_in_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    injected = f"100 {MAPPED} = -1 ENOMEM (Cannot allocate memory) (INJECTED)\n"
    verdict = replay(tmp_path, f"{injected}100 {ONE}\n100 fork() = 101 (INJECTED)\n100 {TWO}\n")
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (2, [], 2)
    assert "-e inject" in verdict.refused[0]


def test_a_line_that_a_message_of_strace_has_broken_is_read_whole(tmp_path: Path) -> None:
    """As it is on a terminal, where strace's own words go to where its lines go."""
    clone = "clone3({flags=CLONE_VM|CLONE_THREAD, stack=0x7f00}"
    text = (
        f"{clone}strace: Process 101 attached\n => {{parent_tid=[101]}}, 88) = 101\n"
        f"[pid   101] {MAPPED[:-1]}strace: Process 102 attached\n) = 0x7ffff7efe000\n"
        f"[pid   100] {TWO}\n"
    )
    verdict = replay(tmp_path, text)
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_a_recording_without_calls_that_a_linker_makes_is_refused(tmp_path: Path) -> None:
    """As strace -e trace=mmap writes one: what was unmapped is not known."""
    library = "mmap(0x7ffff7e00000, 4096, PROT_READ|PROT_EXEC, MAP_PRIVATE|MAP_FIXED, 3, 0)"
    mapped = f"100 {library} = 0x7ffff7e00000\n100 {WRONG}\n"
    assert not replay(tmp_path, f"{mapped}100 brk(NULL) = 0x555555556000\n").differing
    told = replay(tmp_path, mapped).refused[0]
    assert "no mprotect and no brk is in the recording" in told


def test_nothing_compared_is_no_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nothing.strace"
    path.write_text(BEGIN + '100 execve("/bin/ls", ["ls"], 0x1) = 0\n100 brk(NULL) = 0x1000\n')
    assert main(["oracle", "--strace", str(path)]) == 2
    told = capsys.readouterr().err
    assert "nothing could be compared" in told
    assert "maps of ls" in told
    assert len(told.splitlines()) == 1


def test_a_verdict_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle", "--strace", str(FIXTURES[1]), "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["differing"], one["differing_maps"]) == ([], [])
    assert main(["oracle", "--strace", *map(str, FIXTURES[1:3]), "--json"]) == 0
    several = json.loads(capsys.readouterr().out)
    assert several[FIXTURES[1].stem]["compared"] == one["calls"]


def test_several_files_make_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle", "--strace", *map(str, FIXTURES[:2])]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["java-version", "455", "0", "0", "179", "0"] in rows
    assert ["all", "713"] in [row[:2] for row in rows]


@needs_kernel
@pytest.mark.skipif(os.geteuid() != 0, reason="tracing with a filter is for root here")
def test_a_program_is_recorded_and_agrees(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Threads, a forked child and a pipeline: every process's calls and its last maps."""
    code = (
        "import threading, os, subprocess, mmap\n"
        "ts = [threading.Thread(target=lambda: bytearray(1 << 22)) for _ in range(3)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\n"
        "m = mmap.mmap(-1, 1 << 21); m[0] = 1\n"
        "pid = os.fork()\n"
        "if not pid: m.close(); os._exit(0)\n"
        "os.waitpid(pid, 0); subprocess.run(['/bin/sh', '-c', 'true | cat'])\n"
    )
    path = tmp_path / "threads.trace"
    assert main(["oracle", "--trace", str(path), "--", sys.executable, "-S", "-c", code]) == 0
    told = capfd.readouterr()
    assert "0 differences" in told.out
    assert path.read_text().count("execve(") >= 2
    verdict = StraceReplay(parser.parse(path)).play()
    assert verdict.calls > 100
    assert verdict.maps > 100
    assert not verdict.refused
    assert "ended with 0" in told.err


@needs_kernel
@pytest.mark.parametrize(
    ("script", "sent", "ended"),
    [
        ("echo ready; exec sleep 90", [signal.SIGINT], -signal.SIGINT),
        ("echo ready; exec sleep 90", [signal.SIGTERM], -signal.SIGTERM),
        ("trap '' HUP; echo ready; exec sleep 90", [signal.SIGHUP] * 2, -signal.SIGKILL),
    ],
)
def test_a_signal_ends_the_recorded_program_and_keeps_the_recording(
    tmp_path: Path, script: str, sent: list[signal.Signals], ended: int
) -> None:
    """A server has no end of its own: Ctrl-C ends its recording, a second kills what ignores it."""
    path = tmp_path / "server.trace"
    tracing = [sys.executable, "-m", "zaplock", "oracle", "--trace", str(path)]
    with subprocess.Popen(
        [*tracing, "--", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as zaplock:
        assert zaplock.stdout is not None
        assert zaplock.stdout.readline() == "ready\n"
        for number in sent:
            zaplock.send_signal(number)
            while waits_with(zaplock.pid, number):  # two of a kind that come at once are one
                time.sleep(0.01)
            time.sleep(0.2)
        told, errors = zaplock.communicate()
    assert zaplock.returncode == 0
    assert f"sh ended with {ended}" in errors
    assert "0 differences" in told
    verdict = StraceReplay(parser.parse(path)).play()
    assert verdict.calls > 10
    assert verdict.maps > 0


@needs_kernel
def test_an_empty_argument_of_a_recorded_program_is_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.trace"
    assert main(["oracle", "--trace", str(path), "--", "sh", "-c", "exit $#", "sh", ""]) == 0
    assert "sh ended with 1" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/no/such/program", "No such file or directory"),
        ("no-such-program", "No such file or directory"),
        ("", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
    ],
)
def test_a_program_that_can_not_be_executed_is_one_clear_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], program: str, why: str
) -> None:
    assert main(["oracle", "--trace", str(tmp_path / "x"), "--", program]) == 2
    assert not (tmp_path / "x").exists()
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"'{program}' could not be executed ({why})" in told[0]


def test_a_changed_result_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = FIXTURES[1].read_text()
    broken = text.replace("= 0x7ffff7fc0000", "= 0x7ffff7fc1000", 1)
    assert broken != text
    path = tmp_path / "changed.strace"
    path.write_text(broken)
    assert main(["oracle", "--strace", str(path)]) == 1
    assert "kernel 0x7ffff7fc1000, model 0x7ffff7fc0000" in capsys.readouterr().out


def test_arguments_are_split_outside_brackets() -> None:
    text = '3</a, b>, {one=[1, 2], two="x, y"}, A|B, 21<<26'
    assert list(strace_text.split_arguments(text)) == [
        "3</a, b>", '{one=[1, 2], two="x, y"}', "A|B", "21<<26",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("NULL", 0), ("0x10", 16), ("010", 8), ("PROT_READ|PROT_WRITE", 3), ("21<<MAP_HUGE_SHIFT",
     21 << 26), ("MAP_PRIVATE|0x8000 /* MAP_??? */", 0x8002), ("8192*1024", 8 << 20),
     ("0x8 /* MAP_??? */|MAP_ANONYMOUS", 0x28), ("~0", -1)],
)  # fmt: skip
def test_numbers_are_read_as_strace_writes_them(text: str, value: int) -> None:
    assert strace_text.number(text) == value


@pytest.mark.parametrize("text", ["", "no call at all\n"])
def test_what_is_no_recording_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "not.strace"
    path.write_text(text)
    assert main(["oracle", "--strace", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("lines", "size", "says"), [(1_000_001, 0, "lines"), (1, 65 << 20, "MiB")])
def test_a_recording_beyond_all_bounds_is_one_clear_line(
    tmp_path: Path, lines: int, size: int, says: str
) -> None:
    path = tmp_path / "x.strace"
    path.write_text("\n" * lines)
    os.truncate(path, max(size, lines))
    with pytest.raises(UserError, match=rf"has over 1?[\d,]+ {says}: record a shorter run"):
        parser.parse(path)
