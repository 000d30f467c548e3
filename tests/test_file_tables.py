"""What descriptors of recorded programs stand for: by table, and as the recorder sees them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import END, built, replay, ruled
from test_rare_programs import SEES_WRITES

from zaplock.cli import main
from zaplock.programs import parser
from zaplock.programs.file_tables import NO_FILES, Facts, facts_of, facts_text
from zaplock.programs.replay import StraceReplay

AT, ABOVE = "0x7ffff7efe000", "0x7ffff7eff000"
OPENED = 'openat(AT_FDCWD, "/tmp/f", O_RDWR) = 3</tmp/f>'
SHARED = "mmap({}, 4096, 0x1, MAP_SHARED|MAP_FIXED, {}, {}) = {}"
MERGED = "# end: 7ffff7efe000-7ffff7f00000 r--s 00000000 00:05 4 {}\n"
APART = (
    "# end: 7ffff7efe000-7ffff7eff000 r--s 00000000 00:05 4 {0}\n"
    "# end: 7ffff7eff000-7ffff7f00000 r--s 00001000 00:05 4 {0}\n"
)


def both(first: str, second: str) -> tuple[str, str]:
    """Map the two pages of a file side by side, by these descriptors."""
    return SHARED.format(AT, first, "0", AT), SHARED.format(ABOVE, second, "0x1000", ABOVE)


def is_merged(tmp_path: Path, calls: str, name: str = "/tmp/f") -> bool:
    """Return whether two pages of a file are one mapping in the end; it is one or the other."""
    end = calls + f"# pid: 100\n{END}"
    merged = replay(tmp_path, end + MERGED.format(name) + SEES_WRITES)
    apart = replay(tmp_path, end + APART.format(name) + SEES_WRITES)
    assert (merged.differing, merged.refused) == ([], [])
    assert bool(merged.differing_maps) != bool(apart.differing_maps)
    return not merged.differing_maps


@pytest.mark.parametrize(
    ("makes", "stays"),
    [
        ("vfork()", True),
        ("clone(flags=CLONE_VM|CLONE_VFORK|SIGCHLD)", True),
        ("clone(flags=CLONE_VM|SIGCHLD)", True),
        ("clone(flags=CLONE_VM|CLONE_FILES|SIGCHLD)", False),
        ("clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD}, 88)", False),
        ("fork()", True),
    ],
)
def test_a_child_closes_its_own_descriptors_unless_it_shares_them(
    tmp_path: Path, makes: str, stays: bool
) -> None:
    """What the child has closed is opened again by its maker in the other case."""
    first, second = both("3</tmp/f>", "3</tmp/f>")
    closes = f"100 {makes} = 101\n101 close(3) = 0\n"
    reopened = "" if stays else f"100 {OPENED}\n"
    calls = f"100 {OPENED}\n100 {first}\n{closes}{reopened}100 {second}\n"
    assert is_merged(tmp_path, calls) == stays


@pytest.mark.parametrize(
    "ends",
    [
        "close(3) = 0",
        "close_range(3, 4294967295, 0) = 0",
        "close_range(2, 3, 0) = 0",
        "dup2(77, 3) = 3<socket:[1]>",
    ],
)
def test_what_was_closed_and_opened_again_is_another_file(tmp_path: Path, ends: str) -> None:
    first, second = both("3</tmp/f>", "3</tmp/f>")
    again = f"100 {ends}\n100 {OPENED}\n"
    assert not is_merged(tmp_path, f"100 {OPENED}\n100 {first}\n{again}100 {second}\n")


@pytest.mark.parametrize(
    "stays",
    [
        "close_range(3, 4294967295, 4) = 0",
        "close_range(4, 9, 0) = 0",
        "close_range(9, 3, 0) = -1 EINVAL (x)",
        "unshare(0x400) = 0",
    ],
)
def test_a_descriptor_that_stays_open_is_the_same_file(tmp_path: Path, stays: str) -> None:
    first, second = both("3</tmp/f>", "3</tmp/f>")
    assert is_merged(tmp_path, f"100 {OPENED}\n100 {first}\n100 {stays}\n100 {second}\n")


def test_a_thread_that_leaves_its_table_closes_nobody_elses(tmp_path: Path) -> None:
    first, second = both("3</tmp/f>", "3</tmp/f>")
    thread = "100 clone(flags=CLONE_VM|CLONE_FILES|CLONE_THREAD) = 101\n"
    for leaves in ("unshare(0x400) = 0", "close_range(3, 3, 2) = 0"):
        closes = (
            f"{thread}101 {leaves}\n101 close(3) = {'-1 EBADF (x)' if 'range' in leaves else 0}\n"
        )
        assert is_merged(tmp_path, f"100 {OPENED}\n100 {first}\n{closes}100 {second}\n")


def test_what_came_by_a_socket_is_told_apart_by_its_inode(tmp_path: Path) -> None:
    """Two files in memory of one name that nobody was seen to open."""
    told = "# pid: 100\n# file: {} rw 12:{} seals={}\n"
    name = "/memfd:shm (deleted)"
    first, second = both(f"3<{name}>", f"4<{name}>")
    one, other = told.format(3, 77, 0), told.format(4, 78, 0)
    assert not is_merged(tmp_path, f"{one}100 {first}\n{other}100 {second}\n", name)
    first, second = both(f"3<{name}>", f"3<{name}>")
    again = told.format(3, 77, 0)
    assert is_merged(tmp_path, f"{one}100 {first}\n{again}100 {second}\n", name)
    other = told.format(3, 78, 0)
    assert not is_merged(tmp_path, f"{one}100 {first}\n{other}100 {second}\n", name)


@pytest.mark.parametrize(
    ("file", "prot", "error"),
    [
        ("3 r 12:77", 3, "EACCES"),
        ("3 w 12:77", 1, "EACCES"),
        ("3 none 12:77", 1, "EBADF"),
        ("3 rw 12:77 seals=8", 3, "EPERM"),
        ("3 rw 12:77 seals=10", 3, "EPERM"),
        ("3 rw 12:77 noexec", 5, "EPERM"),
    ],
)
def test_how_a_file_was_opened_is_known_whoever_did_it(
    tmp_path: Path, file: str, prot: int, error: str
) -> None:
    told = f"# pid: 100\n# file: {file}\n"
    mapped = f"100 mmap(NULL, 4096, {prot}, MAP_SHARED, 3</memfd:m (deleted)>, 0) = "
    failed = ruled(tmp_path, f"{told}{mapped}-1 {error} (x)\n{SEES_WRITES}")
    assert failed == (1, 0, 0)
    assert ruled(tmp_path, f"{told}{mapped}{ABOVE}\n{SEES_WRITES}")[1] == 1
    plain = told.replace(file, "3 rw 12:77")
    assert ruled(tmp_path, f"{plain}{mapped}{ABOVE}\n{SEES_WRITES}") == (1, 0, 0)


def test_a_file_of_huge_pages_lies_where_they_fit(tmp_path: Path) -> None:
    told = "# pid: 100\n# limit: huge_pages 8388608\n# file: 3 rw 12:77 huge=2097152\n"
    mapped = "100 mmap(NULL, 2097152, 3, MAP_SHARED, 3</mnt/huge>, 0) = 0x7ffff7c00000\n"
    part = "100 munmap(0x7ffff7c00000, 4096) = -1 EINVAL (x)\n"
    assert ruled(tmp_path, told + mapped + part + SEES_WRITES) == (2, 0, 0)
    plain = told.replace(" huge=2097152", "")
    assert ruled(tmp_path, plain + mapped + part + SEES_WRITES) == (1, 1, 0)


def test_facts_are_read_as_they_are_written() -> None:
    for facts in (
        Facts(3, 0, "12:77"), Facts(9, 3, "0:1", 0, 0, True), Facts(4, 2, "5:6", 63, 1 << 30),
    ):  # fmt: skip
        assert facts_of(facts_text(facts)) == facts
    with pytest.raises(ValueError, match="no descriptor, mode and inode"):
        facts_of("3 rx 1:2")
    assert NO_FILES.put(1, 3, 7).closed(1, 4, 9).file(1, 3) == 7


def test_a_line_about_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    verdict = replay(tmp_path, "# pid: 100\n# file: three\n100 brk(NULL) = 0x555555556000\n")
    assert "no descriptor, mode and inode" in verdict.maps_not_compared[0]


def test_what_an_io_uring_was_asked_to_do_is_not_known(tmp_path: Path) -> None:
    """IORING_OP_MADVISE cuts mappings without a call."""
    mapped = f"mmap(NULL, 8192, 0x3, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {AT}"
    grown = f"mremap({AT}, 8192, 16384, MREMAP_MAYMOVE) = -1 EFAULT (x)"
    text = f"100 {mapped}\n100 {grown}\n{SEES_WRITES}"
    assert ruled(tmp_path, text) == (1, 1, 0)
    ring = "100 io_uring_setup(8, 0x7ffffffde000) = 3<anon_inode:[io_uring]>\n"
    assert ruled(tmp_path, ring + text) == (1, 0, 1)
    assert ruled(tmp_path, ring.replace("3<anon_inode:[io_uring]>", "-1 EPERM (x)") + text)[1] == 1


@pytest.mark.parametrize("told", ["PR_SET_MM, PR_SET_MM_BRK", "0x23, 0x7"])
def test_a_heap_that_somebody_has_put_elsewhere_is_not_known(tmp_path: Path, told: str) -> None:
    """CRIU does, and so does who has CAP_SYS_RESOURCE."""
    grown = "100 brk(NULL) = 0x555555556000\n100 brk(0x555555558000) = 0x555555557000\n"
    set_ = f"100 prctl({told}, 0x555555557000, 0, 0) = "
    assert ruled(tmp_path, grown + SEES_WRITES)[2] == 1  # limits are not known here
    limits = "# pid: 100\n# limit: as unlimited\n# limit: data unlimited\n"
    limits += "# limit: memory unlimited\n# limit: mappings 65530\n"
    assert ruled(tmp_path, limits + grown + SEES_WRITES) == (1, 1, 0)
    assert ruled(tmp_path, f"{limits}{set_}0\n{grown}{SEES_WRITES}") == (1, 0, 1)
    assert ruled(tmp_path, f"{limits}{set_}-1 EPERM (x)\n{grown}{SEES_WRITES}") == (1, 1, 0)


DESCRIPTORS = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/openat2.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
enum { PAGE = 4096 };
static char *room(void) { return mmap(0, 8 * PAGE, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }
static void map(char *at, int fd, int page) {
    mmap(at, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, page * PAGE);
}
static void fails(int prot, int fd) { mmap(0, PAGE, prot, MAP_SHARED, fd, 0); }
static int passed(int fd) {  /* the same file by another process's hands */
    int pair[2], got; char byte = 0, room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = room,
                             .msg_controllen = sizeof room};
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS};
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    sendmsg(pair[0], &message, 0);
    close(fd);
    recvmsg(pair[1], &message, 0);
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    close(pair[0]), close(pair[1]);
    return got;
}
static int closes(void *fd) { close(*(int *)fd); return 0; }
int main(int count, char **words) {
    char *at = room(), link[64], *stack = malloc(65536) + 65536;
    if (count > 1) {  /* executed again, with descriptors that nobody has seen opened */
        map(at, 3, 0), map(at + PAGE, 4, 1), map(at + 4 * PAGE, 3, 0), map(at + 5 * PAGE, 3, 1);
        fails(PROT_WRITE, 3), fails(PROT_WRITE, 5);
        return 0;
    }
    int fd = open("flags=odd", O_RDWR | O_CREAT, 0600);
    ftruncate(fd, 8 * PAGE);
    map(at, fd, 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclose(&actions, fd);
    pid_t child;
    posix_spawnp(&child, "true", &actions, 0, (char *[]){"true", 0}, 0);
    waitpid(child, 0, 0);
    map(at + PAGE, fd, 1);
    waitpid(clone(closes, stack, CLONE_VM | SIGCHLD, &fd), 0, 0);
    map(at + 2 * PAGE, fd, 2);
    waitpid(clone(closes, stack, CLONE_VM | CLONE_FILES | SIGCHLD, &fd), 0, 0);
    fails(PROT_READ, fd);
    fd = open("flags=odd", O_RDWR);
    map(at + 3 * PAGE, fd, 3);
    syscall(SYS_close_range, fd, ~0u, 0);
    fails(PROT_READ, eventfd(0, 0));
    struct open_how how = {.flags = O_RDONLY};
    fails(PROT_WRITE, syscall(SYS_openat2, AT_FDCWD, "flags=odd", &how, sizeof how));
    fails(PROT_READ, open("flags=odd", O_PATH));
    fd = open("flags=odd", O_RDWR);
    dup2(eventfd(0, 0), fd);
    fails(PROT_READ, fd);
    at = room();
    int one = memfd_create("one", MFD_ALLOW_SEALING);
    int other = memfd_create("one", MFD_ALLOW_SEALING);
    ftruncate(one, 4 * PAGE), ftruncate(other, 4 * PAGE);
    fcntl(other, F_ADD_SEALS, F_SEAL_WRITE);
    one = passed(one), other = passed(other);
    map(at, one, 0), map(at + PAGE, other, 1), map(at + 4 * PAGE, other, 0);
    map(at + 5 * PAGE, other, 1);
    fails(PROT_READ | PROT_WRITE, other);
    sprintf(link, "/proc/self/fd/%d", other);
    fails(PROT_READ | PROT_WRITE, open(link, O_RDWR));
    if (!unshare(CLONE_NEWNS) && !mount(0, "/", 0, MS_REC | MS_PRIVATE, 0) &&
        !mount("tmpfs", "/mnt", "tmpfs", MS_NOEXEC, 0)) {
        fd = open("/mnt/code", O_RDWR | O_CREAT, 0700);
        fails(PROT_READ | PROT_EXEC, fd);
        umount("/mnt");
    }
    dup2(open("flags=odd", O_RDONLY), 53), dup2(open("flags=odd", O_RDONLY), 54), dup2(other, 55);
    dup2(53, 3), dup2(54, 4), dup2(55, 5);
    execl("/proc/self/exe", words[0], "again", (char *)0);
    return 1;
}
"""


@needs_kernel
def test_descriptors_of_a_real_program_are_followed_to_the_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = built(tmp_path, DESCRIPTORS), tmp_path / "descriptors.trace"
    monkeypatch.chdir(tmp_path)
    assert main(["oracle", "--trace", str(path), "--", str(program)]) == 0
    assert "ended with 0" in capfd.readouterr().err
    told = path.read_text()
    assert sum(line.endswith(("EACCES (Permission denied)", "EPERM (Operation not permitted)"))
               for line in told.splitlines() if " mmap(" in line) >= 4  # fmt: skip
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])


@needs_kernel
def test_a_recorded_program_ignores_no_signal_that_python_ignores(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ignored = "grep SigIgn /proc/self/status"
    alone = subprocess.run(["sh", "-c", ignored], check=True, capture_output=True, text=True)
    path = str(tmp_path / "signals.trace")
    assert main(["oracle", "--trace", path, "--", "sh", "-c", ignored]) == 0
    assert alone.stdout in capfd.readouterr().out


# Where the mappings of static programs begin, which have no linker that tells it

STATIC = """\
# pid: 100
# begin: 400000-401000 r-xp 00000000 fe:00 1 prog
# begin: 7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
# limit: stack 8388608
"""
PAGES = "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {}"
UP = "# capable: bottom_up yes\n"


@pytest.mark.parametrize(
    ("notes", "first", "second", "is_possible"),
    [
        ("", "0x7ffff7ffd000", "0x7ffff7ffb000", True),  # not random at all
        ("", "0x7ffff7ffe000", "0x7ffff7ffc000", False),  # within the stack's gap
        ("", "0x7f0012345000", "0x7f0012343000", True),
        ("", "0x7efb00000000", "0x7efafffe0000", False),
        ("", "0x6f0012345000", "0x6f0012343000", False),
        (UP, "0x2aaaaaaab000", "0x2aaaaaaad000", True),
        (UP, "0x2b926186d000", "0x2b926186f000", True),
        (UP, "0x2aaaaaaa9000", "0x2aaaaaaab000", False),
        (UP, "0x7f0012345000", "0x7f0012347000", False),
    ],
)
def test_where_a_static_program_begins_to_map_is_drawn_from_a_range(
    tmp_path: Path, notes: str, first: str, second: str, is_possible: bool
) -> None:
    one, two = f"100 {PAGES.format(first)}\n", f"100 {PAGES.format(second)}\n"
    begin = STATIC + notes
    assert ruled(tmp_path, one, begin) == ((1, 0, 0) if is_possible else (0, 0, 1))
    if is_possible:
        assert ruled(tmp_path, one + two, begin) == (2, 0, 0)
        elsewhere = f"100 {PAGES.format('0x600000')}\n"
        assert ruled(tmp_path, one + elsewhere, begin)[1] == 1
    unknown = begin.replace("# limit: stack 8388608\n", "")
    assert notes or ruled(tmp_path, one, unknown) == (0, 0, 1)  # strace tells no limits


@needs_kernel
@pytest.mark.parametrize("kind", ["-static", "-static-pie"])
@pytest.mark.parametrize("layout", [[], ["-R"], ["-L"], ["-L", "-R"]])
def test_static_programs_agree_from_their_first_mapping_on(
    tmp_path: Path, kind: str, layout: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    source, program = tmp_path / "static.c", tmp_path / "static"
    source.write_text(
        "#include <stdlib.h>\n#include <sys/mman.h>\nint main(void) { for (int k = 1; k < 4; k++)\n"
        "munmap(mmap(0, k << 14, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);\n"
        "return !malloc(1 << 20); }\n"
    )
    subprocess.run(["cc", "-w", kind, "-o", program, source], check=True)
    path = tmp_path / "static.trace"
    command = ["setarch", *layout, str(program)] if layout else [str(program)]
    assert main(["oracle", "--trace", str(path), "--", *command]) == 0
    assert "ended with 0" in capfd.readouterr().err
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])


@needs_kernel
def test_a_signal_that_zaplock_was_started_to_ignore_ends_no_recording(tmp_path: Path) -> None:
    """As nohup does."""
    tracing = f"{sys.executable} -m zaplock oracle --trace {tmp_path / 'nohup.trace'}"
    script = f"trap '' HUP; exec {tracing} -- sh -c 'echo ready; read line; exit 7'"
    with subprocess.Popen(
        ["sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as zaplock:  # fmt: skip
        assert zaplock.stdout is not None
        assert zaplock.stdout.readline() == "ready\n"
        zaplock.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        _, errors = zaplock.communicate("go on\n")
    assert "sh ended with 7" in errors


BIG = """\
# pid: 100
# begin: 7f5a41600000-7f5a4206f000 r-xp 00000000 fe:00 1 /usr/bin/big-static-pie
# begin: {0:x}-{1:x} r-xp 00000000 00:00 0 [vdso]
# begin: 7ffe45d63000-7ffe45d84000 rw-p 00000000 00:00 0 [stack]
"""


@pytest.mark.parametrize(
    ("vdso", "placed", "ruling"),
    [
        (0x7F5A4210D000, "0x7f5a4210b000", (1, 0, 0)),
        (0x7F5A4210D000, "0x7f5a41500000", (0, 1, 0)),
        (0x7F5A415FE000, "0x7f5a415fc000", (1, 0, 0)),  # no room for it above the program
        (0x7FFE45DF9000, "0x7f5a415fe000", (0, 0, 1)),
    ],
)
def test_the_vdso_tells_where_a_static_program_begins_to_map(
    tmp_path: Path, vdso: int, placed: str, ruling: tuple[int, int, int]
) -> None:
    """A program of 2 MiB begins at a multiple of that; the vdso, mapped next, may go above it."""
    begin = BIG.format(vdso, vdso + 0x2000)
    assert ruled(tmp_path, f"100 {PAGES.format(placed)}\n", begin) == ruling
