"""Segments of System V shared memory in recordings: whose they are, and since when they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import BEGIN, END, built, replay, ruled

from zaplock.programs import parser
from zaplock.programs.replay import StraceReplay
from zaplock.programs.tracer import record

MADE = "{0} shmget(IPC_PRIVATE, {1}, IPC_CREAT|0600) = 0\n"
ATTACHED = "{} shmat(0, NULL, 0) = {}\n"
SHORT, LONG = "0x7ffff7eff000", "0x7ffff7efe000"


@pytest.mark.parametrize("entered", ["unshare(CLONE_NEWIPC|CLONE_NEWNS) = 0", "setns"])
def test_an_id_is_another_segment_in_another_namespace(tmp_path: Path, entered: str) -> None:
    call = "setns(3<ipc:[4026532999]>, 0) = 0" if entered == "setns" else entered
    both = MADE.format(100, 8192) + f"100 fork() = 101\n101 {call}\n" + MADE.format(101, 4096)
    text = both + ATTACHED.format(101, SHORT) + ATTACHED.format(100, LONG)
    assert ruled(tmp_path, text) == (2, 0, 0)
    same = text.replace(f"101 {call}\n", "")  # two segments never have one id
    assert ruled(tmp_path, same)[0] < 2


def test_a_child_may_be_made_in_a_namespace_of_its_own(tmp_path: Path) -> None:
    made = (
        MADE.format(100, 8192) + "100 clone(child_stack=NULL, flags=CLONE_NEWIPC|SIGCHLD) = 101\n"
    )
    text = made + MADE.format(101, 4096) + ATTACHED.format(101, SHORT) + ATTACHED.format(100, LONG)
    assert ruled(tmp_path, text) == (2, 0, 0)


def test_which_namespace_was_entered_may_not_be_known(tmp_path: Path) -> None:
    text = f"{MADE.format(100, 8192)}100 setns(3, CLONE_NEWIPC) = 0\n"
    verdict = replay(tmp_path, f"{text}100 shmat(0, NULL, 0) = -1 EINVAL (x)\n")
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (0, [], 1)
    assert "which IPC namespace it is in" in verdict.refused[0]


def test_a_segment_that_was_there_before_has_the_length_that_the_recorder_tells(
    tmp_path: Path,
) -> None:
    told = "# pid: 100\n# ipc: 4026531839\n100 shmget(0x1234, 0, 0600) = 7\n"
    text = f"{told}100 shmat(7, NULL, 0) = {LONG}\n# pid: 100\n# segment: 7 8192 0\n"
    assert ruled(tmp_path, text + f"100 shmdt({LONG}) = 0\n") == (2, 0, 0)
    assert ruled(tmp_path, text.replace("8192", "4096"))[:2] == (0, 1)


def test_a_length_that_only_finds_a_segment_is_none(tmp_path: Path) -> None:
    """An shmget that finds one may name less; where it lies tells how long it is."""
    text = f"100 shmget(0x1234, 1, IPC_CREAT|0600) = 7\n100 shmat(7, NULL, 0) = {LONG}\n"
    again = "100 shmat(7, NULL, 0) = 0x7ffff7efc000\n"
    assert ruled(tmp_path, text + again) == (2, 0, 0)


def test_what_is_attached_when_a_recording_begins_is_a_segment(tmp_path: Path) -> None:
    name = "00:01 7 /SYSV00001234 (deleted)"
    one = f"7ffff7efe000-7ffff7f00000 rw-s 00000000 {name}\n"
    begin = f"{BEGIN}# begin: {one}"
    text = f"100 shmat(7, NULL, 0) = 0x7ffff7efc000\n100 shmdt({LONG}) = 0\n"
    text += f"100 shmdt({LONG}) = -1 EINVAL (x)\n# pid: 100\n"
    end = f"{END}# end: 7ffff7efc000-7ffff7efe000 rw-s 00000000 {name}\n"
    verdict = replay(tmp_path, text + end, begin)
    assert (verdict.agreeing, verdict.differing, verdict.differing_maps) == (3, [], [])


PROGRAM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>
static int segment(int pages) { return shmget(IPC_PRIVATE, pages * 4096, IPC_CREAT | 0600); }
static void attach(int id) {
  char *one = shmat(id, 0, 0), *two = shmat(id, 0, SHM_RDONLY);
  munmap(one + 4096, 4096);
  shmdt(two); shmdt(one); shmdt(one); shmat(id, 0, 0);
}
int main(void) {
  int before = segment(2), home = open("/proc/self/ns/ipc", O_RDONLY);
  attach(before);
  if (!fork()) { unshare(CLONE_NEWIPC); attach(segment(5)); attach(before); _exit(0); }
  wait(0);
  unshare(CLONE_NEWIPC);
  int there = segment(7);
  attach(there); attach(before);
  int found = shmget(0x4321, 3 * 4096, IPC_CREAT | 0600);
  attach(found); attach(shmget(0x4321, 1, 0600)); attach(shmget(0x4321, 0, 0));
  shmctl(there, IPC_RMID, 0);
  setns(home, 0);
  int last = segment(9);
  attach(before); attach(last);
  shmctl(before, IPC_RMID, 0); shmctl(last, IPC_RMID, 0);
  return 0;
}
"""


@needs_kernel
def test_a_program_in_namespaces_agrees(tmp_path: Path) -> None:
    path = tmp_path / "namespaces.trace"
    assert record([str(built(tmp_path, PROGRAM))], path) == 0
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.differing_maps) == ([], [])
    assert verdict.refused == []


def test_the_number_of_a_namespace_that_is_gone_is_given_again(tmp_path: Path) -> None:
    enters = "# pid: 100\n# ipc: 4026532999\n100 unshare(0x8000000) = 0\n"
    text = enters + MADE.format(100, 8192) + ATTACHED.format(100, LONG) + enters
    gone = text + "100 shmat(0, NULL, 0) = -1 EINVAL (x)\n"
    assert ruled(tmp_path, f"# pid: 100\n# ipc: 4026531839\n{gone}") == (2, 0, 0)
