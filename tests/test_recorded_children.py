"""A recorded program that makes children in odd ways goes on as it does by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import built

from zaplock.cli import main
from zaplock.programs import parser
from zaplock.programs.replay import StraceReplay

UNTRACED = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static int maps(void *unused) {
    _exit(mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? errno : 0);
}
static long plain_clone(long flags) {  /* no register but its result may change */
    long result;
    register long kept asm("rdi") = flags;
    asm volatile("syscall" : "=a"(result), "+r"(kept) : "0"(SYS_clone), "S"(0), "d"(0)
                 : "rcx", "r11", "r10", "r8", "memory");
    if (kept != flags) _exit(99);
    return result;
}
static void waits(const char *who, long child) {
    int status = 0;
    if (child > 0) waitpid(child, &status, __WALL);
    printf("%s %d %d\n", who, child > 0, WEXITSTATUS(status));
    fflush(stdout);
}
int main(void) {
    char *stack = mmap(0, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    waits("in our memory", clone(maps, stack + 65536, CLONE_VM | CLONE_UNTRACED | SIGCHLD, 0));
    long child = plain_clone(CLONE_UNTRACED | SIGCHLD);
    if (!child) maps(0);
    waits("a fork", child);
    waits("no child", plain_clone(CLONE_UNTRACED | CLONE_SIGHAND));
    struct clone_args how = {.flags = CLONE_UNTRACED, .exit_signal = SIGCHLD};
    child = syscall(SYS_clone3, &how, sizeof how);
    if (!child) how.flags == CLONE_UNTRACED ? maps(0) : _exit(98);
    waits("by clone3", child);
    printf("flags %d\n", how.flags == CLONE_UNTRACED);
    waits("no flags", syscall(SYS_clone3, 8, sizeof how));
    return 0;
}
"""


@needs_kernel
def test_children_that_ask_for_no_tracer_are_recorded_and_find_what_they_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, path = built(tmp_path, UNTRACED), tmp_path / "untraced.trace"
    alone = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert alone.count(" 1 0\n") == 3
    assert main(["oracle", "--trace", str(path), "--", str(program)]) == 0
    assert capfd.readouterr().out.startswith(alone)
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.refused, verdict.differing_maps) == ([], [], [])
    assert len([line for line in path.read_text().splitlines() if "clone" in line]) == 5


LIMITED = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
static int has_room(int megabytes) {
    return mmap(0, megabytes << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
}
int main(void) {
    int status, ready[2];
    if (unshare(CLONE_NEWPID) && unshare(CLONE_NEWUSER | CLONE_NEWPID)) return 1;
    if (fork()) return wait(&status), WEXITSTATUS(status);
    struct rlimit limit = {80 << 20, 80 << 20};
    if (prlimit(getpid(), RLIMIT_AS, &limit, 0) || getpid() != 1 || has_room(200)) return 2;
    pipe(ready);
    int child = fork();
    if (!child) return read(ready[0], &status, 1), has_room(40) ? 3 : 0;
    limit.rlim_cur = 20 << 20;
    prlimit(child, RLIMIT_AS, &limit, 0);
    write(ready[1], "x", 1);
    return wait(&status), WEXITSTATUS(status);
}
"""


@needs_kernel
def test_limits_are_known_of_processes_whose_numbers_are_a_namespaces_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program, path = built(tmp_path, LIMITED), tmp_path / "limited.trace"
    assert main(["oracle", "--trace", str(path), "--", str(program)]) == 0
    assert "ended with 0" in capfd.readouterr().err
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.differing_maps) == ([], [])
    assert dict(verdict.reasons) == {"it sets a limit of another process": 1}
    assert path.read_text().count("-1 ENOMEM") == 2
