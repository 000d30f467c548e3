"""Recordings of strace 4.10 to 7.2 with what each can write, and of ltrace and perf trace."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_programs import BEGIN, END, ONE, TWO, UNCHANGED, WRONG, replay, ruled

from zaplock.programs import parser, search
from zaplock.programs.replay import StraceReplay

THREAD = "100 clone(flags=CLONE_VM|CLONE_THREAD) = 101\n"
AT = "0x7ffff7efe000"
NO = "-1 EINVAL (Invalid argument)"
NAMED = (
    "mmap(addr=NULL, length=8192, prot=PROT_READ|PROT_WRITE, flags=MAP_PRIVATE|MAP_ANONYMOUS, "
    "fd=-1, offset=0)"
)


def test_names_of_arguments_are_no_part_of_them(tmp_path: Path) -> None:
    """strace -N, since 6.16; with -e raw the names are numbers."""
    raw = "mmap(arg1=0, arg2=0x2000, arg3=0x3, arg4=0x22, arg5=0xffffffff, arg6=0)"
    fork = "100 clone(arg1=0x4100, arg2=0, arg3=0) = 101\n"
    text = f"100 {NAMED} = {AT}\n{fork}101 {raw} = 0x7ffff7efc000\n"
    assert ruled(tmp_path, text) == (2, 0, 0)
    assert ruled(tmp_path, text.replace("efc000", "ef0000")) == (1, 1, 0)


def test_colours_are_passed_over(tmp_path: Path) -> None:
    """strace --color, since 7.0."""
    text = (
        "100\x1b[0m<\x1b[35mprog\x1b[0m>\x1b[35m \x1b[33mmmap\x1b[0m(\x1b[35mNULL\x1b[0m, "
        "\x1b[35m8192\x1b[0m, \x1b[34mPROT_READ\x1b[0m|\x1b[34mPROT_WRITE\x1b[0m, "
        "MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = \x1b[32m0x7ffff7efe000\x1b[0m\n"
    )
    assert ruled(tmp_path, f"{text}100 {TWO}\n") == (2, 0, 0)


@pytest.mark.parametrize(
    "prefix",
    ["     1 ", "1700000001 ", "100   1700000001 ", "100        1 ", "12:00:01 (+     0) ",
     "100   [unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023] 12:00:01.1 ",
     "[pid   100] [init_t] "],
)  # fmt: skip
def test_times_of_whole_seconds_and_contexts_stand_in_front(tmp_path: Path, prefix: str) -> None:
    later = prefix.replace("     1 ", "     0 ").replace("0001 ", "0002 ")
    begin = BEGIN if "100 " in prefix else BEGIN.replace("# pid: 100\n", "")
    assert ruled(tmp_path, f"{prefix}{ONE}\n{later}{TWO}\n", begin) == (2, 0, 0)


def test_a_table_of_counts_is_no_call(tmp_path: Path) -> None:
    table = "    calls syscall\n--------- ----------------\n      334 mmap\n--------- --------\n"
    assert ruled(tmp_path, f"100 {ONE}\n100 {TWO}\n{table}      334 total\n") == (2, 0, 0)


def test_a_name_may_hold_quotes(tmp_path: Path) -> None:
    made = r'100 memfd_create("a,b(c) \"d\"", MFD_CLOEXEC) = 3' + "\n"
    call = "100 mmap(NULL, 8192, PROT_READ, MAP_SHARED, 3, 0) = 0x7ffff7efe000\n"
    end = '# end: 7ffff7efe000-7ffff7f00000 r--s 00000000 00:01 7 /memfd:a,b(c) "d" (deleted)\n'
    verdict = replay(tmp_path, f"{made}{call}# pid: 100\n{END}{end}")
    assert (verdict.maps, verdict.differing_maps) == (4, [])
    unread = made.replace(made[17 : made.index(", MFD")], "0x5555")
    verdict = replay(tmp_path, f"{unread}{call}# pid: 100\n{END}{end}")
    assert (verdict.maps, verdict.differing_maps) == (4, [])


def test_a_name_that_was_cut_is_none(tmp_path: Path) -> None:
    call = f'100 prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, {AT}, 4096, "na"...) = 0\n'
    verdict = replay(tmp_path, f"100 {ONE}\n{call}")
    assert "is cut: record with a longer -s" in verdict.refused[0]


def test_without_t_a_call_ended_before_its_threads_next_line(tmp_path: Path) -> None:
    """-ff -tt: thread 100 began first, and 101 was first."""
    (tmp_path / "t.100").write_text(
        f"{BEGIN}12:00:01.000001 clone(flags=CLONE_VM|CLONE_THREAD) = 101\n"
        f"12:00:01.000200 {TWO}\n12:00:01.000400 futex(0x1) = 0\n"
        f"{END}{UNCHANGED.replace('7ffff7efe', '7ffff7efc')}"
        "12:00:01.000500 +++ exited with 0 +++\n"
    )
    (tmp_path / "t.101").write_text(f"12:00:01.000300 {ONE}\n12:00:01.000350 futex(0x1) = 0\n")
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])
    assert (verdict.maps, verdict.differing_maps) == (4, [])
    late = (tmp_path / "t.101").read_text().replace("000300", "000401").replace("000350", "000450")
    (tmp_path / "t.101").write_text(late)
    assert StraceReplay(parser.parse(tmp_path / "t")).play().differing


def test_a_thread_that_a_number_has_made_is_behind_it_in_files_of_ff(tmp_path: Path) -> None:
    """strace 5.0 knows clone3 by its number, and what it returns in hexadecimal."""
    made = "syscall_0x1b3(0x7fffffffea90, 0x58, 0x7ffff7e4bef0, 0x8, 0, 0) = 0x65\n"
    (tmp_path / "t.100").write_text(f"{BEGIN}{made}fork() = 102\n+++ exited with 0 +++\n")
    (tmp_path / "t.101").write_text(f"{ONE}\n+++ exited with 0 +++\n")
    (tmp_path / "t.102").write_text(f"{TWO}\n+++ exited with 0 +++\n")
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_an_execve_in_a_thread_ends_in_its_process(tmp_path: Path) -> None:
    """-ff -ttt -T: what the resumed line tells is how long it took, not from when on."""
    (tmp_path / "t.100").write_text(
        f"{BEGIN}1700000001.000001 clone(flags=CLONE_VM|CLONE_THREAD) = 101 <0.000010>\n"
        "1700000001.000100 pause() = ?\n1700000001.000500 +++ superseded by execve in pid 101 +++\n"
        f"1700000001.000600 <... execve resumed>) = 0 <0.000450>\n{BEGIN}"
        f"1700000001.000700 {ONE} <0.000010>\n"
    )
    (tmp_path / "t.101").write_text(
        f'1700000001.000130 {ONE} <0.000010>\n1700000001.000150 execve("./prog" <unfinished ...>\n'
    )
    verdict = StraceReplay(parser.parse(tmp_path / "t")).play()
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (2, [], [])


def test_what_strace_4_10_has_no_name_for_is_a_number(tmp_path: Path) -> None:
    text = (
        f"100 {ONE}\n100 syscall_325({AT}, 0x1000, 0x1, 0x32, 0x4000, 0x7ffe) = 0\n"
        f"100 syscall_325(0x1000, 0x1000, 0x1, 0x32, 0x4000, 0x7ffe) = -1 (errno 12)\n"
        f"100 mbind({AT}, 4096, MPOL_BIND, {{0x0000000000000001}}, 64, 0) = 0\n"
        f"100 mbind({AT}, 4096, MPOL_DEFAULT, {{}}, 0, 0) = 0\n"
    )
    assert ruled(tmp_path, text) == (5, 0, 0)
    assert ruled(tmp_path, text.replace("errno 12", "errno 22")) == (4, 1, 0)
    ring = "100 io_setup(4, {140737353080832}) = 0\n"
    assert int(AT, 16) == 140737353080832
    assert ruled(tmp_path, f"{ring}100 {TWO}\n") == (2, 0, 0)


def test_strace_4_spoke_without_its_name(tmp_path: Path) -> None:
    made = "clone(Process 101 attached\nchild_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLD"
    text = f"[pid   100] {made}, child_tidptr=0x1) = 101\n[pid   101] {ONE}\n[pid   100] {ONE}\n"
    assert ruled(tmp_path, text) == (2, 0, 0)


@pytest.mark.parametrize("told", ["(INJECTED)", "(INJECTED) (DELAYED)", "(INJECTED: args, retval)"])
def test_what_was_injected_is_seen_before_how_long_it_took(tmp_path: Path, told: str) -> None:
    text = f"100 munmap({AT}, 8192) = 0 {told} <0.000012>\n100 {TWO} <0.000012>\n"
    assert ruled(tmp_path, f"100 {ONE}\n{text}") == (2, 0, 1)


def test_a_call_without_a_beginning_hides_only_what_it_may_have_done(tmp_path: Path) -> None:
    """As a recording begins that was attached, or has been cut at its beginning."""
    assert ruled(tmp_path, f"100 <... futex resumed>) = 0\n100 {ONE}\n") == (1, 0, 0)
    assert ruled(tmp_path, f"100 <... mmap resumed>) = {AT}\n100 {ONE}\n") == (0, 0, 2)


def test_an_execve_of_which_nobody_knows_the_end_may_have_succeeded(tmp_path: Path) -> None:
    verdict = replay(tmp_path, f'100 {ONE}\n100 execve("./x", ["x"\n100 {ONE}\n')
    assert (verdict.agreeing, verdict.differing) == (1, [])
    assert "whether execve has succeeded is not in the recording" in verdict.refused[0]


NARROW = (
    "# pid: 100\n"
    "# begin: 56555000-56556000 r-xp 00000000 fe:00 1 /bin/prog\n"
    "# begin: f7fc5000-f7ffe000 rw-p 00000000 fe:00 2 /lib/ld-linux.so.2\n"
    "# begin: fffdd000-ffffe000 rw-p 00000000 00:00 0 [stack]\n"
)
IN_32_BITS = "[ Process PID=100 runs in 32 bit mode. ]\n"


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("mmap2(NULL, 8192, 3, 0x22, -1, 0)", "0xf7fc3000"),
        ("mmap2(NULL, 4194304, 3, 0x22, -1, 0)", "0xf7bc5000"),  # nothing is laid for huge pages
        ("mmap2(NULL, 4096, 3, 0x62, -1, 0)", "0xf7fc4000"),  # MAP_32BIT says nothing
        ("mmap2(NULL, 8192, 1, 2, 3</lib/a.so>, 0x3000)", "0xf7fc3000"),
        ("mmap2(NULL, 3221225472, 0, 0x4022, -1, 0)", "-1 ENOMEM (Cannot allocate memory)"),
        ("mmap2(0xffffe000, 4096, 3, 0x32, -1, 0)", "-1 ENOMEM (Cannot allocate memory)"),
        ("mmap2(0xfffff000, 4096, 3, 0x22, -1, 0)", "0xf7fc4000"),
        ("mmap2(0x40000000, 4096, 3, 0x22, -1, 0)", "0x40000000"),
    ],
)
def test_a_32_bit_program_has_4_gib(tmp_path: Path, call: str, result: str) -> None:
    """As they came back to one on Linux 6.18, but for the addresses of its loader."""
    assert ruled(tmp_path, f"{IN_32_BITS}100 {call} = {result}\n", NARROW) == (1, 0, 0)
    assert ruled(tmp_path, f"{IN_32_BITS}100 {call} = 0x12345000\n", NARROW) == (0, 1, 0)


def test_what_zaplock_did_not_record_of_a_32_bit_program_is_refused(tmp_path: Path) -> None:
    """Its recorder has not always followed 32-bit calls."""
    text = f"{IN_32_BITS}100 exit_group(0) = ?\n100 madvise(0xf7fc5000, 4096, 4) = 0\n"
    verdict = replay(tmp_path, text, f'# command: execve("prog")\n{NARROW}')
    assert (verdict.calls, len(verdict.refused)) == (0, 1)
    assert "runs in 32 bit mode, of which this recording has no calls" in verdict.refused[0]
    x32 = IN_32_BITS.replace("32 bit", "x32")
    assert ruled(tmp_path, f"{x32}100 mmap(NULL, 4096, 3, 34, -1, 0) = 0\n", NARROW) == (0, 0, 1)


def test_whose_calls_have_no_id_is_told_by_one_of_them(tmp_path: Path) -> None:
    vector = f"[{{iov_base={AT}, iov_len=4096}}]"
    text = (
        f"set_tid_address(0x7fff) = 4711\n{ONE}\npidfd_open(4711, 0) = 3\n"
        f"process_madvise(3, {vector}, 1, MADV_DONTNEED, 0) = "
    )
    begin = BEGIN.replace("# pid: 100\n", "")
    assert ruled(tmp_path, f"{text}4096\n", begin) == (2, 0, 0)
    assert ruled(tmp_path, f"{text}{NO}\n", begin) == (1, 1, 0)


def test_an_id_on_every_line_does_not_show_all_threads(tmp_path: Path) -> None:
    """--always-show-pid without -f."""
    assert ruled(tmp_path, f"100 {ONE}\n{THREAD}100 {WRONG}\n") == (1, 0, 1)
    assert ruled(tmp_path, f"100 {ONE}\n{THREAD}101 futex(0x1) = 0\n100 {WRONG}\n") == (1, 1, 0)


def test_written_pages_at_a_beginning_tell_nothing_of_later_ones(tmp_path: Path) -> None:
    again = f"{BEGIN}# anon: 7ffff7f00000-7ffff7f01000\n"
    text = f'100 execve("prog", ["prog"], 0x1) = 0\n100 {ONE}\n'
    assert not parser.parse(_file(tmp_path, f"{again}{text}{text}{again}")).knows_writes
    written = "# pid: 100\n# anon: 7ffff7efe000-7ffff7eff000\n"
    assert parser.parse(_file(tmp_path, f"{again}{text}{written}")).knows_writes


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "some.strace"
    path.write_text(text)
    return path


def test_a_search_that_was_given_up_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a group that is held comes one with more orders than are tried, and none is right."""
    monkeypatch.setattr(search, "STEPS", 60)
    monkeypatch.setattr(search, "STEPS_AGAIN", 60)
    made = "".join(THREAD.replace("101", str(pid)) for pid in range(101, 108))
    calls = {
        pid: f"mprotect({AT}, {4096 + 4096 * (pid % 2)}, {pid % 3})" for pid in range(101, 107)
    }
    calls[107] = f"mlock({AT}, 4096)"
    held = (
        f"100 {ONE}\n101 munmap(0x10000000, 4096 <unfinished ...>\n"
        "102 mmap(0x10000000, 4096, 0, 0x32, -1, 0 <unfinished ...>\n"
        "101 <... munmap resumed>) = 0\n102 <... mmap resumed>) = 0x10000000\n"
    )
    begun = "".join(f"{pid} {call[:-1]} <unfinished ...>\n" for pid, call in calls.items())
    ended = "".join(
        f"{pid} <... {call.partition('(')[0]} resumed>) = {'0' if pid < 107 else '-1 EBADF (x)'}\n"
        for pid, call in calls.items()
    )
    agreeing, differing, refused = ruled(tmp_path, f"{made}{held}{begun}{ended}100 {TWO}\n")
    assert (agreeing, differing, refused) == (10, 1, 0)


LTRACE = (
    "100 SYS_brk(0) = 0x555555559000\n100 SYS_mmap(0, 0x2000, 3, 34 <unfinished ...>\n"
    "100 <... SYS_mmap resumed> ) = 0x7ffff7efe000\n"
)


def test_ltrace_tells_four_arguments_also_of_what_is_unfinished(tmp_path: Path) -> None:
    assert ruled(tmp_path, LTRACE) == (2, 0, 0)
    assert ruled(tmp_path, LTRACE.replace("efe000", "ef0000")) == (1, 1, 0)


def test_where_ltrace_says_that_nothing_returned(tmp_path: Path) -> None:
    """A program that executes another one; and a thread that is resumed nevertheless."""
    execs = f'100 SYS_execve("/bin/x", 0x7ffe, 0x7fff <no return ...>\n{BEGIN}{LTRACE}'
    assert ruled(tmp_path, f"{LTRACE}{execs}") == (4, 0, 0)
    assert ruled(tmp_path, LTRACE.replace("unfinished", "no return")) == (2, 0, 0)


def test_lines_of_libraries_are_counted(tmp_path: Path) -> None:
    verdict = replay(tmp_path, f"100 puts(0x1) = 3\n{LTRACE.replace('efe000', 'ef0000')}")
    assert verdict.differing[0].startswith("line 7: mmap(")


def test_where_a_mapping_moves_only_its_result_tells(tmp_path: Path) -> None:
    moved = f"100 SYS_mremap({AT}, 4096, 4096, 3) = 0x10000000\n"
    verdict = replay(tmp_path, f"{LTRACE}{moved}100 SYS_mmap(0, 4096, 3, 34) = {AT}\n")
    assert (verdict.agreeing, verdict.differing) == (3, [])
    assert "where it was to move is not in the recording" in verdict.refused[0]


def test_errors_may_be_numbers_of_64_bits(tmp_path: Path) -> None:
    assert ruled(tmp_path, "100 mmap(0, 0, 3, 34, -1, 0) = 0xffffffffffffffea\n") == (1, 0, 0)


def test_what_is_unmapped_in_a_cloud_is_known_again(tmp_path: Path) -> None:
    """A file of which nothing is known was there; then memory is."""
    file = f"100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, 3, 0) = {AT}\n"
    unmapped = f"{file}100 munmap({AT}, 8192) = 0\n100 {ONE}\n"
    assert ruled(tmp_path, unmapped) == (1, 0, 2)
    assert ruled(tmp_path, unmapped.replace(ONE, TWO)) == (0, 1, 2)
    fixed = f"mmap({AT}, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_FIXED|MAP_ANONYMOUS, -1, 0)"
    text = f"{file}100 {fixed} = {AT}\n100 mprotect({AT}, 4096, 1) = 0\n"
    assert ruled(tmp_path, text) == (1, 0, 2)
    part = f"100 munmap({AT}, 4096) = 0\n100 mprotect(0x7ffff7eff000, 4096, 1) = 0\n"
    assert ruled(tmp_path, f"{file}{part}") == (0, 0, 3)


PERF = "     0.1 ( 0.01 ms): prog/100 "


def test_what_perf_trace_can_not_name_is_not_told(tmp_path: Path) -> None:
    call = f"{PERF}mmap(len: 8192, prot: READ|WRITE, flags: PRIVATE|ANONYMOUS) = {AT}\n"
    advice = f"{PERF}madvise(start: {AT}, len_in: 4096, behavior: ) = 0\n"
    verdict = replay(tmp_path, f"{call}{advice}")
    assert (verdict.agreeing, verdict.differing) == (1, [])
    assert "its value is not in the recording" in verdict.refused[0]
    flags = f"{PERF}mmap(len: 4096, prot: READ, flags:|ANONYMOUS) = -1 EINVAL (x)\n"
    assert ruled(tmp_path, f"{call}{flags}") == (1, 0, 1)
    low = f"{PERF}mmap(len: 8192, prot: READ, flags: PRIVATE|ANONYMOUS|32BIT) = 0x40001000\n"
    assert ruled(tmp_path, f"{call}{low}") == (2, 0, 0)


def test_perf_trace_names_what_fcntl_does(tmp_path: Path) -> None:
    text = (
        f'{PERF}openat(dfd: CWD, filename: "/tmp/f", flags: RDWR) = 3\n'
        f"{PERF}fcntl(fd: 3, cmd: DUPFD, arg: 50) = 50\n"
        f"{PERF}mmap(len: 8192, prot: READ, flags: SHARED, fd: 50) = {AT}\n"
    )
    assert ruled(tmp_path, text) == (1, 0, 0)
