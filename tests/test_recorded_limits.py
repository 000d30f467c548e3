"""Recorded programs that set limits and take protection keys: what comes of it is compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_oracle import needs_kernel
from test_programs import built, ruled

from zaplock.programs import parser
from zaplock.programs.replay import StraceReplay
from zaplock.programs.tracer import record

SEES_WRITES = "# anon: 7ffffffde000-7ffffffdf000\n"
"""What zaplock's own recorder alone writes."""
OWN = "# pid: 100\n# limit: memlock 4096\n# limit: memlock_hard 8192\n# capable: sys_resource {}\n"
SETS = "100 prlimit64(0, RLIMIT_MEMLOCK, {{rlim_cur={}, rlim_max={}}}, NULL) = {}\n"
EPERM, EINVAL, EFAULT = (f"-1 {name} (x)" for name in ("EPERM", "EINVAL", "EFAULT"))


@pytest.mark.parametrize(
    ("soft", "hard", "raises", "result"),
    [
        (4096, 8192, "no", "0"),
        (8192, 4096, "yes", EINVAL),
        (4096, 16384, "no", EPERM),
        (4096, 16384, "yes", "0"),
    ],
)
def test_who_may_set_which_limit_is_compared(
    tmp_path: Path, soft: int, hard: int, raises: str, result: str
) -> None:
    told = OWN.format(raises)
    assert ruled(tmp_path, told + SETS.format(soft, hard, result)) == (1, 0, 0)
    wrong = "0" if result != "0" else EPERM
    assert ruled(tmp_path, told + SETS.format(soft, hard, wrong)) == (0, 1, 0)


def test_a_hard_limit_that_nobody_told_may_forbid(tmp_path: Path) -> None:
    assert ruled(tmp_path, SETS.format(4096, 8192, EPERM)) == (0, 0, 1)
    assert ruled(tmp_path, SETS.format(8192, 4096, "0")) == (0, 1, 0)  # never above the hard one


def test_what_only_asks_for_a_limit_agrees_with_nothing_and_is_believed(tmp_path: Path) -> None:
    asks = "100 prlimit64(0, RLIMIT_MEMLOCK, NULL, {rlim_cur=4096, rlim_max=8192}) = 0\n"
    assert ruled(tmp_path, asks + "100 mlock(0x7ffffffde000, 4096) = 0\n") == (1, 0, 0)
    unprivileged = asks + "100 mlock(0x7ffffffde000, 8192) = -1 ENOMEM (x)\n"
    assert ruled(tmp_path, unprivileged) == (1, 0, 0)
    assert ruled(tmp_path, unprivileged.replace("8192)", "4096)")) == (0, 1, 0)


def test_a_limit_that_can_not_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    unread = f"100 setrlimit(RLIMIT_AS, 0x10) = {EFAULT}\n"
    assert ruled(tmp_path, unread + SEES_WRITES) == (1, 0, 0)
    assert ruled(tmp_path, unread) == (0, 0, 1)  # strace shows no structure of what has failed


def test_a_vforked_child_limits_itself_alone(tmp_path: Path) -> None:
    child = "101 setrlimit(RLIMIT_AS, {rlim_cur=4096, rlim_max=4096}) = 0\n101 exit_group(0) = ?\n"
    maps = "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7efe000\n"
    assert ruled(tmp_path, f"100 vfork() = 101\n{child}{maps}") == (1, 0, 1)
    told = "".join(f"# limit: {name} unlimited\n" for name in ("as", "data", "memory"))
    told = f"# pid: 100\n{told}# limit: mappings 65530\n100 vfork() = 101\n{child}"
    short = maps.replace("0x7ffff7efe000", "-1 ENOMEM (x)")
    assert ruled(tmp_path, told + short) == (0, 1, 1)
    assert ruled(tmp_path, told.replace("101 exit", "101" + short[3:] + "101 exit")) == (0, 0, 2)


KEYS = "# pid: 100\n# limit: keys {}\n"
PROTECTS = "100 pkey_mprotect(0x555555554000, {}, PROT_READ, {}) = {}\n"


@pytest.mark.parametrize(("keys", "key", "result"), [(16, 0, "0"), (16, 1, EINVAL), (0, 0, EINVAL)])
def test_only_a_key_that_is_allocated_may_be_given(
    tmp_path: Path, keys: int, key: int, result: str
) -> None:
    told = KEYS.format(keys)
    assert ruled(tmp_path, told + PROTECTS.format(4096, key, result)) == (1, 0, 0)
    wrong = "0" if result == EINVAL else EINVAL
    agreeing, differing, refused = ruled(tmp_path, told + PROTECTS.format(4096, key, wrong))
    assert (agreeing, differing + refused) == (0, 1)
    assert ruled(tmp_path, told + PROTECTS.format(0, 99, "0")) == (1, 0, 0)  # of no byte none is


def test_keys_are_allocated_lowest_first_and_freed(tmp_path: Path) -> None:
    calls = (
        "pkey_alloc(0, 0) = 1", "pkey_alloc(0, PKEY_DISABLE_WRITE) = 2", "pkey_free(1) = 0",
        "pkey_alloc(0, 0x3) = 1", f"pkey_alloc(1, 0) = {EINVAL}", f"pkey_free(9) = {EINVAL}",
        "pkey_mprotect(0x555555554000, 4096, PROT_READ, 2) = 0",
    )  # fmt: skip
    told = "".join(f"100 {call}\n" for call in calls)
    assert ruled(tmp_path, KEYS.format(16) + told) == (7, 0, 0)
    assert ruled(tmp_path, f"{KEYS.format(0)}100 pkey_alloc(0, 0) = {EINVAL}\n") == (1, 0, 0)
    assert ruled(tmp_path, f"{KEYS.format(0)}100 pkey_alloc(0, 0) = 1\n") == (0, 1, 0)


def test_a_key_of_which_nothing_is_recorded_is_no_agreement(tmp_path: Path) -> None:
    assert ruled(tmp_path, PROTECTS.format(4096, 3, EINVAL)) == (0, 0, 1)
    assert ruled(tmp_path, PROTECTS.format(4096, 3, "0")) == (1, 0, 0)
    assert ruled(tmp_path, PROTECTS.format(4096, 99, EINVAL)) == (1, 0, 0)


def test_the_heap_begins_where_the_kernel_may_have_drawn(tmp_path: Path) -> None:
    assert ruled(tmp_path, "100 brk(NULL) = 0x555555559000\n") == (1, 0, 0)
    assert ruled(tmp_path, "100 brk(NULL) = 0x600000000000\n") == (0, 0, 1)


PROGRAM = r"""
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static void set(int which, long soft, long hard) {
  struct rlimit limit = {soft, hard};
  setrlimit(which, &limit);
}
static void try(void) {
  set(RLIMIT_MEMLOCK, 65536, 131072); set(RLIMIT_MEMLOCK, 131072, 65536);
  set(RLIMIT_MEMLOCK, 65536, 262144); set(RLIMIT_MEMLOCK, 4096, 65536);
  set(RLIMIT_STACK, 1 << 20, 2 << 20); set(RLIMIT_STACK, 1 << 20, 8 << 20);
  syscall(SYS_setrlimit, RLIMIT_AS, 8L);
  char *at = mmap(0, 8192, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mlock(at, 8192);
  long key = syscall(SYS_pkey_alloc, 0, 0);
  for (long other = -2; other < 18; other++) {
    syscall(SYS_pkey_mprotect, at, 4096L, 1L, other);
    syscall(SYS_pkey_mprotect, at, 0L, 1L, other);
    syscall(SYS_pkey_mprotect, 0L, 4096L, 1L, other);
  }
  syscall(SYS_pkey_mprotect, at, 4096L, 3L, key);
  syscall(SYS_pkey_free, key); syscall(SYS_pkey_free, key);
}
int main(void) {
  try();
  if (!fork()) { if (setuid(65534)) _exit(1); try(); _exit(0); }
  wait(0);
  if (!vfork()) { set(RLIMIT_AS, 1 << 20, 1 << 20); _exit(0); }
  mmap(0, 8 << 20, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return 0;
}
"""


@needs_kernel
def test_a_program_that_sets_limits_and_keys_agrees(tmp_path: Path) -> None:
    path = tmp_path / "limits.trace"
    assert record([str(built(tmp_path, PROGRAM))], path) == 0
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.differing_maps) == ([], [])
    assert set(verdict.reasons) <= {
        "which limits a process has that runs in another's memory is not known"
    }
