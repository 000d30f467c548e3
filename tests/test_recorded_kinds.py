"""Recorded programs: what shows on mappings of policies, monitors, segments, stacks and limits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_programs import BEGIN, MAPPED, ONE, TWO, replay, ruled

from zaplock.programs import dialects

RANGE = "0x7ffff7efe000, 8192"
NEXT = "0x7ffff7efc000, 8192"


@pytest.mark.parametrize(
    ("arguments", "result"),
    [
        ("MPOL_BIND, [0x1], 64, 0", "0"),
        ("MPOL_BIND|MPOL_F_STATIC_NODES, [0x0000000000000003], 64, 0", "0"),
        ("MPOL_DEFAULT, NULL, 0, 0", "0"),
        ("MPOL_LOCAL, NULL, 0, 0", "0"),
        ("MPOL_LOCAL, NULL, 0, 0x7fad00000000", "0"),
        ("MPOL_DEFAULT, [0x1], 64, 0", "-1 EINVAL (Invalid argument)"),
        ("MPOL_BIND, NULL, 0, 0", "-1 EINVAL (Invalid argument)"),
        ("MPOL_BIND, [0x2], 64, 0", "-1 EINVAL (Invalid argument)"),
        ("MPOL_LOCAL, [0x1], 64, 0", "-1 EINVAL (Invalid argument)"),
        ("MPOL_BIND, [0x1], 64, 0x8", "-1 EINVAL (Invalid argument)"),
        ("0xffffffff, NULL, 0, 0", "-1 EINVAL (Invalid argument)"),
        ("0x2, 0x5555, 64, 0", "-1 EFAULT (Bad address)"),
    ],
)
def test_which_policies_a_mapping_may_have(tmp_path: Path, arguments: str, result: str) -> None:
    call = f"100 {ONE}\n100 mbind({RANGE}, {arguments}) = "
    assert ruled(tmp_path, f"{call}{result}\n") == (2, 0, 0)
    other = "-1 EIO (x)" if result == "0" else "-1 EAGAIN (x)"
    unread = "0x5555" in arguments  # then the mask is not in the recording
    assert ruled(tmp_path, f"{call}{other}\n") == (1, not unread, unread)


def test_mappings_of_one_policy_merge_and_of_two_do_not(tmp_path: Path) -> None:
    def lines(first: str, second: str) -> str:
        calls = f"100 mbind({RANGE}, {first}) = 0\n100 mbind({NEXT}, {second}) = 0\n"
        return f"100 {ONE}\n100 {TWO}\n{calls}"

    bind, prefer, none = (
        "MPOL_BIND, [0x1], 64, 0",
        "MPOL_PREFERRED, [0x1], 64, 0",
        "0x0, NULL, 0, 0",
    )
    end = "# end: 7ffff7efc000-7ffff7f00000 rw-p 00000000 00:00 0\n"
    halves = "".join(
        f"# end: {at} rw-p 00000000 00:00 0\n"
        for at in ("7ffff7efc000-7ffff7efe000", "7ffff7efe000-7ffff7f00000")
    )
    rest = BEGIN.replace("begin", "end")
    for first, second, told in ((bind, bind, end), (bind, prefer, halves), (bind, none, halves)):
        verdict = replay(
            tmp_path, f"{lines(first, second)}{rest}{told}# anon: 7ffffffde000-7ffffffdf000\n"
        )
        assert verdict.agrees, verdict
    again = f"100 mbind({RANGE}, {none}) = 0\n"
    verdict = replay(tmp_path, lines(bind, none) + again + rest + end)
    assert verdict.agrees, verdict


def test_a_home_node_tells_policies_apart_and_needs_one(tmp_path: Path) -> None:
    bind = "MPOL_BIND, [0x1], 64, 0) = 0\n"
    both = f"100 {ONE}\n100 {TWO}\n100 mbind({RANGE}, {bind}100 mbind({NEXT}, {bind}"
    home = f"100 set_mempolicy_home_node({RANGE}, 0, 0) = 0\n"
    halves = "".join(
        f"# end: {at} rw-p 00000000 00:00 0\n"
        for at in ("7ffff7efc000-7ffff7efe000", "7ffff7efe000-7ffff7f00000")
    )
    ends = BEGIN.replace("begin", "end") + halves + "# anon: 7ffffffde000-7ffffffdf000\n"
    assert replay(tmp_path, both + home + ends).agrees
    assert not replay(tmp_path, both + ends).agrees
    for arguments, result in (
        (f"{RANGE}, 0, 0", "-1 ENOENT (x)"),
        (f"{RANGE}, 1, 0", "-1 EINVAL (x)"),
        (f"{RANGE}, 0, 1", "-1 EINVAL (x)"),
    ):
        call = f"100 {ONE}\n100 set_mempolicy_home_node({arguments}) = {result}\n"
        assert ruled(tmp_path, call) == (2, 0, 0)
    local = f"100 {ONE}\n100 mbind({RANGE}, MPOL_LOCAL, NULL, 0, 0) = 0\n"
    unlike = f"100 set_mempolicy_home_node({RANGE}, 0, 0) = -1 EOPNOTSUPP (x)\n"
    assert ruled(tmp_path, local + unlike) == (3, 0, 0)


def test_a_memfd_of_huge_pages_lies_where_huge_pages_fit(tmp_path: Path) -> None:
    opened = '100 memfd_create("huge", MFD_HUGETLB) = 3</memfd:huge>\n'
    call = "100 mmap(NULL, 2097152, PROT_READ, MAP_SHARED, 3</memfd:huge>, 0) = 0x7ffff7"
    assert ruled(tmp_path, f"{opened}{call}c00000\n") == (1, 0, 0)
    assert ruled(tmp_path, f"{opened}{call}d00000\n")[1] == 1
    part = "100 munmap(0x7ffff7c00000, 4096) = -1 EINVAL (Invalid argument)\n"
    assert ruled(tmp_path, f"{opened}{call}c00000\n{part}") == (2, 0, 0)
    odd = "100 mmap(NULL, 4096, PROT_READ, MAP_SHARED, 3</memfd:huge>, 0) = 0x7ffff7c00000\n"
    assert ruled(tmp_path, f"{opened}{odd}") == (1, 0, 0)


def test_a_segment_of_another_process_has_its_size_and_its_key(tmp_path: Path) -> None:
    text = (
        "100 fork() = 101\n101 shmget(0x6200c129, 4096, IPC_CREAT|0600) = 7\n"
        "100 shmat(7, NULL, 0) = 0x7ffff7eff000\n"
    )
    end = "# end: 7ffff7eff000-7ffff7f00000 rw-s 00000000 00:01 7 /SYSV6200c129 (deleted)\n"
    verdict = replay(tmp_path, text + BEGIN.replace("begin", "end") + end)
    assert verdict.agrees
    assert not verdict.refused
    assert verdict.maps == 4


def test_a_place_below_2_gib_is_looked_for_from_a_random_page_on(tmp_path: Path) -> None:
    call = "100 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_32BIT, -1, 0) = "
    assert ruled(tmp_path, f"{call}0x41437000\n{call}0x40ddf000\n") == (2, 0, 0)
    assert ruled(tmp_path, f"{call}0x41437000\n{call}0x41437000\n")[1] == 1
    assert ruled(tmp_path, f"{call}0x52000000\n")[1] == 1
    full = "100 mmap(0x41fff000, 2097152, 0x1, 0x32, -1, 0) = 0x41fff000\n"
    assert ruled(tmp_path, f"{full}{call}0x421ff000\n") == (2, 0, 0)  # behind what is in the way
    assert ruled(tmp_path, f"{full}{call}0x42200000\n")[1] == 1


def test_a_stack_has_grown_to_where_it_was_written(tmp_path: Path) -> None:
    stack = "100 mmap(0x7ffff7000000, 8192, PROT_READ|PROT_WRITE, 0x132, -1, 0) = 0x7ffff7000000\n"
    written = "# pid: 100\n# anon: 7ffff6ff0000-7ffff7002000\n"
    end = "# end: 7ffff6ff0000-7ffff7002000 rw-p 00000000 00:00 0\n"
    assert replay(tmp_path, stack + written + BEGIN.replace("begin", "end") + end).agrees
    end = BEGIN.replace("begin", "end") + end
    knows_writes = "# pid: 100\n# anon: 7ffffffde000-7ffffffdf000\n"
    assert not replay(tmp_path, stack + knows_writes + end).agrees
    verdict = replay(tmp_path, stack + end)  # strace tells nothing of what was written
    assert (verdict.maps, verdict.differing_maps) == (0, [])
    assert "how far a mapping that grows down has grown" in verdict.maps_not_compared[0]


def test_what_a_monitor_watches_keeps_apart_until_it_is_closed(tmp_path: Path) -> None:
    monitor = "3<anon_inode:[userfaultfd]>"
    watches = (
        f"100 userfaultfd(O_CLOEXEC) = {monitor}\n100 {ONE}\n100 {TWO}\n"
        f"100 ioctl({monitor}, UFFDIO_REGISTER, {{range={{start=0x7ffff7efe000, len=0x2000}}, "
        "mode=UFFDIO_REGISTER_MODE_MISSING, ioctls=1<<_UFFDIO_WAKE}) = 0\n"
    )
    anon = "# pid: 100\n# anon: 7ffffffde000-7ffffffdf000\n"
    rest = BEGIN.replace("begin", "end")
    halves = "".join(
        f"# end: {at} rw-p 00000000 00:00 0\n"
        for at in ("7ffff7efc000-7ffff7efe000", "7ffff7efe000-7ffff7f00000")
    )
    one = "# end: 7ffff7efc000-7ffff7f00000 rw-p 00000000 00:00 0\n"
    assert replay(tmp_path, watches + anon + rest + halves).agrees
    assert replay(tmp_path, f"{watches}100 close(3) = 0\n{anon}{rest}{one}").agrees
    assert not replay(tmp_path, f"{watches}100 close(4) = 0\n{anon}{rest}{one}").agrees


@pytest.mark.parametrize("rest", ["0x7, 0, 0", "0, 0x7, 0", "0, 0, 0x7"])
def test_what_mdwe_has_no_use_for_must_be_zero(tmp_path: Path, rest: str) -> None:
    assert ruled(tmp_path, f"100 prctl(PR_SET_MDWE, 0x1, {rest}) = -1 EINVAL (x)\n") == (1, 0, 0)


@pytest.mark.parametrize("option", ["PR_SET_MEMORY_MERGE", "0x43 /* PR_??? */"])
def test_what_is_mapped_after_memory_merge_is_mergeable(tmp_path: Path, option: str) -> None:
    """So MADV_UNMERGEABLE of a part of it splits it."""
    calls = f"100 {ONE}\n100 madvise(0x7ffff7efe000, 4096, MADV_UNMERGEABLE) = 0\n"
    rest = BEGIN.replace("begin", "end")
    told, halves = (
        "".join(f"# end: {at} rw-p 00000000 00:00 0\n" for at in places)
        for places in (
            ("7ffff7efe000-7ffff7f00000",),
            ("7ffff7efe000-7ffff7eff000", "7ffff7eff000-7ffff7f00000"),
        )
    )
    merge = f"100 prctl({option}, 0x1, 0, 0, 0) = 0\n"
    anon = "# anon: 7ffffffde000-7ffffffdf000\n"
    assert replay(tmp_path, f"{calls}{rest}{told}{anon}").agrees
    assert replay(tmp_path, f"{merge}{calls}{rest}{halves}{anon}").agrees
    assert not replay(tmp_path, f"{merge}{calls}{rest}{told}{anon}").agrees
    assert ruled(tmp_path, merge.replace("0, 0, 0", "0, 0, 1").replace("= 0", "= -1 EINVAL (x)"))[
        :2
    ] == (1, 0)


def test_limits_of_the_machine_leave_no_excuse(tmp_path: Path) -> None:
    limits = "".join(
        f"# limit: {name} {value}\n"
        for name, value in (("as", "unlimited"), ("data", "unlimited"), ("mappings", 65530),
                            ("memory", 1 << 30), ("huge_pages", 0))
    )  # fmt: skip
    begin = BEGIN + limits
    mmap = "100 mmap(NULL, {}, 0x3, MAP_PRIVATE|MAP_ANONYMOUS{}, -1, 0) = -1 ENOMEM (x)\n"
    assert ruled(tmp_path, mmap.format(1 << 31, ""), begin) == (1, 0, 0)
    assert ruled(tmp_path, mmap.format(1 << 29, ""), begin) == (0, 1, 0)
    assert ruled(tmp_path, mmap.format(1 << 21, "|MAP_HUGETLB"), begin) == (1, 0, 0)
    assert ruled(tmp_path, mmap.format(1 << 29, "")) == (0, 0, 1)


def test_what_a_thread_was_killed_in_may_have_been_done(tmp_path: Path) -> None:
    text = f"100 {ONE}\n100 {MAPPED[:-1]} <unfinished ...>\n100 +++ killed by SIGKILL +++\n"
    verdict = replay(tmp_path, text)
    assert (verdict.agreeing, len(verdict.refused)) == (1, 1)
    assert "ended in it" in verdict.refused[0]


OF_PERF = """\
 ? (         ): prog/100  ... [continued]: execve()) = 0
  0.062 ( 0.013 ms): prog/100 brk() = 0x555555556000
  0.322 ( 0.014 ms): prog/100 openat(dfd: CWD, filename: 0xb6ef50b1, flags: RDONLY) = 4
  0.369 ( 0.014 ms): prog/100 mmap(len: 4096, prot: READ, flags: PRIVATE, fd: 4) = 0x7ffff7eff000
  0.450 (         ): prog/101 futex(uaddr: 0x7f0000000000)                             ...
  0.496 ( 0.014 ms): prog/100 mmap(len: 8192, prot: 3, flags: PRIVATE|ANONYMOUS) = 0x7ffff7efd000
  0.501 (         ): prog/100 munmap(addr: 0x7ffff7efd000, len: 4096)                  ...
  0.777 ( 0.010 ms): prog/100  ... [continued]: munmap()) = 0
  0.892 ( 0.013 ms): prog/100 mprotect(start: 0x7ffff7efe000, len: 4096, prot: READ) = 0
  0.920 ( 0.015 ms): prog/100 madvise(start: 0x7ffff7efe000, len_in: 1, behavior: DONTNEED) = 0
  0.993 ( 0.017 ms): prog/100 mremap(addr: 0x7ffff7efe000, new_len: 1, flags: FIXED) = -1 EINVAL (x)
"""
OF_LTRACE = """\
100 SYS_brk(0)                                  = 0x555555556000
100 malloc(16 <unfinished ...>
100 SYS_openat(0xffffff9c, 0x7f7c1529c0b1, 0x80000, 0) = 4
100 SYS_mmap(0, 4096, 1, 2)                     = 0x7ffff7eff000
100 SYS_mmap(0, 8192, 3, 34)                    = 0x7ffff7efd000
100 <... malloc resumed> )                      = 0x5555
100 SYS_munmap(0x7ffff7efd000, 4096)            = 0
100 SYS_mprotect(0x7ffff7efe000, 4096, 1)       = 0
100 SYS_madvise(0x7ffff7efe000, 1, 4, 0)        = 0
100 SYS_462(0x7ffff7eff000, 4096, 0, 0)         = 0
100 SYS_mprotect(0x7ffff7eff000, 4096, 3)       = -1
"""


def test_what_perf_trace_writes_is_read(tmp_path: Path) -> None:
    end = "# end: 7ffff7efe000-7ffff7eff000 r--p 00000000 00:00 0\n"
    end += "# end: 7ffff7eff000-7ffff7f00000 r--p 00000000 00:01 5 /lib/some.so\n"
    verdict = replay(tmp_path, OF_PERF + BEGIN.replace("begin", "end") + end)
    assert verdict.agrees, verdict
    assert (verdict.agreeing, len(verdict.refused), verdict.maps) == (7, 0, 5)
    wrong = OF_PERF.replace("0x7ffff7efd000\n", "0x7ffff7afd000\n")
    assert replay(tmp_path, wrong).differing


OF_PERF_BY_THREADS = """\
  0.451 ( 0.013 ms): prog/100 prlimit64(resource: STACK, old_rlim: 0x7fffffffe400) = 0
  0.585 ( 0.099 ms): prog/100 clone3(uargs: 0x7fffffffe4e0, size: 88) = 101
      ? (         ): prog/101  ... [continued]: clone3()) = 0
  2.602 ( 0.019 ms): prog/101 mmap(len: 8192, prot: 3, flags: PRIVATE|ANONYMOUS) = 0x7ffff7efe000
  2.963 ( 0.176 ms): prog/100 clone(clone_flags: CHILD_CLEARTID|CHILD_SETTID|0x11) = 102 (prog)
      ? (         ): prog/102  ... [continued]: clone())                       =
  2.990 ( 0.010 ms): prog/102 mmap(len: 8192, prot: 3, flags: PRIVATE|ANONYMOUS) = 0x7ffff7efc000
  3.100 ( 0.010 ms): prog/100 clone(clone_flags: VM|FS|THREAD, newsp: 0x7f00) = 103
  3.102 ( 0.010 ms): prog/103 mmap(len: 8192, prot: 3, flags: PRIVATE|ANONYMOUS) = 0x7ffff7efc000
  3.200 ( 0.013 ms): prog/100 memfd_create(uname: 0xf47e5004) = 3
  3.300 ( 0.013 ms): prog/100 mmap(len: 8192, prot: 3, flags: SHARED, fd: 3) = 0x7ffff7efa000
  3.400 ( 0.016 ms): prog/100 shmget(size: 12288, shmflg: 896) = 9
  3.500 ( 0.013 ms): prog/100 shmat(shmid: 9) = 0x7ffff7ef7000
  3.600 ( 0.013 ms): prog/100 mmap(len: 8192, prot: 3, flags: PRIVATE|ANONYMOUS) = 0x7ffff7ef5000
"""


def test_threads_and_children_are_told_apart_in_perf_trace(tmp_path: Path) -> None:
    verdict = replay(tmp_path, OF_PERF_BY_THREADS)
    assert (verdict.agreeing, verdict.differing, verdict.refused) == (6, [], [])


def test_threads_and_children_are_told_apart_in_ltrace(tmp_path: Path) -> None:
    mapped = "SYS_mmap(0, 8192, 3, 34) = "
    text = (
        f"100 SYS_clone(0x1200011, 0, 0, 0x7ffff7dcfa10) = 101\n101 {mapped}0x7ffff7efe000\n"
        f"100 SYS_435(0x7fffffffe520, 88, 0, 8) = 102\n102 {mapped}0x7ffff7efe000\n"
        f"100 SYS_clone(0x10f00, 0, 0, 0) = 103\n103 {mapped}0x7ffff7efc000\n"
        f"100 {mapped}0x7ffff7efa000\n"
    )
    assert ruled(tmp_path, text) == (4, 0, 0)


def test_the_kernel_names_arguments_as_perf_trace_does() -> None:
    """Which it leaves out are zero: so all have to be known, in their order."""
    events = Path("/sys/kernel/tracing/events/syscalls")
    if not os.access(events / "sys_enter_mmap" / "format", os.R_OK):
        pytest.skip("no tracefs here")
    for name, order in dialects._ORDER.items():
        lines = events.joinpath(f"sys_enter_{name}", "format").read_text().splitlines()
        fields = [line.split(";")[0].split()[-1].lstrip("*") for line in lines if "field:" in line]
        assert tuple(fields[-len(order) :]) == order, name
        assert fields[-len(order) - 1] == "__syscall_nr", name


def test_what_ltrace_writes_is_read_and_files_are_refused(tmp_path: Path) -> None:
    """It tells four arguments of an mmap: not which file. Calls of libraries are none of ours."""
    verdict = replay(tmp_path, OF_LTRACE)
    assert not verdict.differing
    assert verdict.agreeing == 5
    assert len(verdict.refused) == 3  # the mapping of a file, and what touches it
    wrong = OF_LTRACE.replace("= 0x7ffff7efd000", "= 0x7ffff7afd000")
    assert replay(tmp_path, wrong).differing


def test_seals_of_a_memfd_are_followed(tmp_path: Path) -> None:
    """Also through a second descriptor; a seal against writing leaves private mappings alone."""

    def mapping(prot: str, kind: str, result: str) -> str:
        return f"100 mmap(NULL, 8192, {prot}, {kind}, 3</memfd:s>, 0) = {result}\n"

    text = (
        '100 memfd_create("s", MFD_CLOEXEC|MFD_ALLOW_SEALING) = 3</memfd:s>\n'
        "100 fcntl(3</memfd:s>, F_DUPFD_CLOEXEC, 50) = 50</memfd:s>\n"
        "100 fcntl(50</memfd:s>, F_ADD_SEALS, F_SEAL_SHRINK|F_SEAL_WRITE) = 0\n"
        + mapping("PROT_READ|PROT_WRITE", "MAP_SHARED", "-1 EPERM (Operation not permitted)")
        + mapping("PROT_READ|PROT_WRITE", "MAP_PRIVATE", "0x7ffff7efe000")
        + mapping("PROT_READ", "MAP_SHARED", "0x7ffff7efc000")
        + "100 mprotect(0x7ffff7efc000, 8192, PROT_READ|PROT_WRITE) = -1 EACCES (x)\n"
    )
    assert ruled(tmp_path, text) == (4, 0, 0)
    assert ruled(tmp_path, text.replace("F_SEAL_WRITE", "F_SEAL_GROW"))[0] < 4


@pytest.mark.parametrize(
    ("hard", "result"), [("0", "-1 ENOMEM (x)"), ("RLIM64_INFINITY", "0x7ffff7efe000")]
)
def test_where_the_limit_of_data_is_0_the_hard_one_counts(
    tmp_path: Path, hard: str, result: str
) -> None:
    """Valgrind sets it to 0 (may_expand_vm)."""
    limited = f"100 prlimit64(0, RLIMIT_DATA, {{rlim_cur=0, rlim_max={hard}}}, NULL) = 0\n"
    call = f"100 {MAPPED} = "
    assert ruled(tmp_path, f"{limited}{call}{result}\n")[:2] == (2, 0)
    noted = BEGIN + "# limit: as unlimited\n# limit: data 0\n# limit: data_hard 0\n"
    noted += "# limit: mappings 65530\n# limit: memory unlimited\n"
    others = "100 prlimit64(0, RLIMIT_STACK, NULL, 0x7fff) = 0\n"
    assert ruled(tmp_path, f"{others}{call}-1 ENOMEM (x)\n", noted) == (1, 0, 0)
    assert ruled(tmp_path, f"{others}{call}0x7ffff7efe000\n", noted) == (0, 1, 0)


SHARED = "MAP_SHARED|MAP_ANONYMOUS, -1, 0"
MEMORY = '100 memfd_create("x", 0) = 3\n'


@pytest.mark.parametrize(
    ("call", "aligned", "another"),
    [
        (f"mmap(NULL, 4194304, PROT_READ, {SHARED})", 0x7FFFF7A00000, 0x7FFFF7800000),
        ("mmap(NULL, 4194304, 1, MAP_SHARED, 3</memfd:x>, 0x5000)", 0x7FFFF7A05000, 0x7FFFF7A00000),
        ("mmap(NULL, 4194304, 1, MAP_PRIVATE, 3</memfd:x>, 0)", 0x7FFFF7A00000, 0x7FFFF7A01000),
        ("shmat(7, NULL, 0)", 0x7FFFF7A00000, 0x7FFFF7800000),
    ],
)
def test_shared_memory_may_be_placed_for_huge_pages(
    tmp_path: Path, call: str, aligned: int, another: int
) -> None:
    """Whether it is (shmem_enabled) nothing tells; it is there, or just below what lies above."""
    made = f"{MEMORY}100 shmget(IPC_PRIVATE, 4194304, 0600) = 7\n"
    just_below = 0x7FFFF7F00000 - 4194304
    for place, rulings in ((aligned, (1, 0)), (just_below, (1, 0)), (another, (0, 1))):
        assert ruled(tmp_path, f"{made}100 {call} = {place:#x}\n")[:2] == rulings


def test_shared_memory_that_grows_may_be_placed_for_huge_pages(tmp_path: Path) -> None:
    small = f"100 mmap(0x10000000, 4096, 3, MAP_FIXED|{SHARED}) = 0x10000000\n"
    grows = "100 mremap(0x10000000, 4096, 4194304, MREMAP_MAYMOVE) = "
    for place, rulings in (("0x7ffff7a00000", (2, 0)), ("0x7ffff7800000", (1, 1))):
        assert ruled(tmp_path, f"{small}{grows}{place}\n")[:2] == rulings


def test_what_is_no_userfaultfd_watches_nothing(tmp_path: Path) -> None:
    asked = "UFFDIO_REGISTER, {range={start=0x7ffff7efe000, len=0x1000}, mode=0x1}"
    text = f"100 {ONE}\n100 ioctl(3<anon_inode:[eventfd]>, {asked}) = -1 ENOTTY (x)\n"
    assert ruled(tmp_path, text) == (1, 0, 0)


def test_a_userfaultfd_that_there_is_not_watches_nothing(tmp_path: Path) -> None:
    """Who may not make one may ask all the same. Only zaplock's recorder shows every path."""
    asked = "UFFDIO_REGISTER, {range={start=0x7ffff7efe000, len=0x1000}, mode=0x1}"
    seen = f"100 {ONE}\n# pid: 100\n# anon: 7ffff7efe000-7ffff7f00000\n"
    text = f"{seen}100 ioctl(-1, {asked}) = -1 "
    assert ruled(tmp_path, f"{text}EBADF (x)\n") == (2, 0, 0)
    assert ruled(tmp_path, f"{text}EINVAL (x)\n") == (1, 1, 0)


def test_a_segment_may_be_attached_though_its_address_could_not_be_told(tmp_path: Path) -> None:
    """A 32-bit shmat puts its result into memory, which comes too late to undo it (EFAULT)."""
    made = "100 shmget(IPC_PRIVATE, 8192, 0600) = 7\n100 shmat(7, NULL, 0) = "
    assert ruled(tmp_path, f"{made}-1 EFAULT (x)\n100 {TWO}\n100 {ONE}\n") == (1, 0, 2)
    assert ruled(tmp_path, f"{made}-1 EACCES (x)\n100 {ONE}\n") == (1, 1, 0)
