"""Programs that trace others, or decide about others' calls, while they are recorded themselves."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from test_programs import built

from zaplock.cli import main
from zaplock.programs import parser, tracer
from zaplock.programs.replay import StraceReplay

TRACERS = """
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#define MAP(pages) mmap(0, pages * 4096L, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
int main(int c, char **v) {
  int st, attaches = !strcmp(v[1], "attach"), p[2];
  char x;
  pipe(p);
  MAP(3);
  int child = fork();
  if (!child) {
    if (!attaches) { ptrace(PTRACE_TRACEME, 0, 0, 0); raise(SIGSTOP); }
    else read(p[0], &x, 1);
    MAP(5);
    _exit(7);
  }
  if (attaches) ptrace(PTRACE_ATTACH, child, 0, 0);
  waitpid(child, &st, 0);
  if (!WIFSTOPPED(st)) return 1;
  ptrace(PTRACE_DETACH, child, 0, 0);
  write(p[1], "x", 1);
  waitpid(child, &st, 0);
  MAP(9);
  return WEXITSTATUS(st);
}
"""


@pytest.mark.parametrize("how", ["traceme", "attach"])
def test_a_recorded_program_traces_its_child(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    path, program = tmp_path / "x.trace", built(tmp_path, TRACERS)
    told = ["oracle", "--trace", str(path), "--every-call", "--", str(program), how]
    assert main(told) == 0
    shown = capfd.readouterr()
    assert "program ended with 7" in shown.err
    assert shown.err.count(tracer.UNTOLD) == 1
    assert f"maps not compared: line {_line_of(path, '# untold')}: {tracer.UNTOLD}" in shown.out
    lines = path.read_text()
    assert (", 0x3000," in lines, ", 0x5000," in lines, ", 0x9000," in lines) == (True, False, True)


def _line_of(path: Path, text: str) -> int:
    lines = path.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(text))


@pytest.mark.parametrize("how", ["traceme", "attach"])
def test_who_waits_for_a_tracee_that_it_can_not_have_is_ended(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(tracer, "STANDSTILL_S", 1.0)
    path, program = tmp_path / "x.trace", built(tmp_path, TRACERS)
    assert main(["oracle", "--trace", str(path), "--", str(program), how]) == 0
    first, second, third = capfd.readouterr().err.splitlines()
    assert "a process has one tracer; --every-call lets it trace" in first
    assert second.endswith("ended; record with --every-call, which lets it trace")
    assert third.endswith("program ended with -9")
    assert StraceReplay(parser.parse(path)).play().agrees


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_strace_is_recorded_and_what_it_follows_is_left_to_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "x.trace", tmp_path / "out"
    command = ["strace", "-f", "-o", str(out), "/bin/sh", "-c", "/bin/true; exit 3"]
    assert main(["oracle", "--trace", str(path), "--every-call", "--", *command]) == 0
    assert "strace ended with 3" in capfd.readouterr().err
    assert "exited with 3" in out.read_text()
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.calls > 20, verdict.differing, verdict.refused) == (True, [], [])


LISTENER = """
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
static int fd;
static void *answer(void *a) {
  for (int i = 0; i < 2; i++) {
    struct seccomp_notif n;
    struct seccomp_notif_resp r;
    memset(&n, 0, sizeof n);
    memset(&r, 0, sizeof r);
    ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &n);
    r.id = n.id;
    r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &r);
  }
  return 0;
}
int main(void) {
  struct sock_filter f[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 3),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 32),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PROT_EXEC, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  struct sock_fprog p = {6, f};
  pthread_t t;
  char *m = mmap(0, 8 * 4096L, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p);
  pthread_create(&t, 0, answer, 0);
  mprotect(m, 4096, PROT_EXEC);
  mprotect(m + 8192, 4096, PROT_EXEC);
  pthread_join(t, 0);
  return 0;
}
"""


@pytest.mark.parametrize("every_call", [False, True])
def test_what_a_listener_lets_go_on_is_seen_at_every_call(tmp_path: Path, every_call: bool) -> None:
    path, program = tmp_path / "x.trace", built(tmp_path, LISTENER)
    assert tracer.record([str(program)], path, every_call=every_call) == 0
    seen = sum(", 0x1000, 0x4) = 0" in line for line in path.read_text().splitlines())
    assert seen == (2 if every_call else 0)
    verdict = StraceReplay(parser.parse(path)).play()
    assert (verdict.differing, verdict.differing_maps) == ([], [])
    assert bool(verdict.maps_not_compared) is not every_call


def test_both_ways_of_recording_see_the_same_calls(tmp_path: Path) -> None:
    def told(every_call: bool) -> Counter[str]:
        path = tmp_path / f"{every_call}.trace"
        command = ["/bin/sh", "-c", "/bin/true | /bin/cat; exit 0"]
        assert tracer.record(command, path, every_call=every_call) == 0
        return Counter(call.name for call in parser.parse(path).calls)

    seen = told(every_call=True)
    assert seen == told(every_call=False)
    assert {"mmap", "execve", "openat", "close"} <= set(seen)


def test_every_call_is_for_recording(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["oracle", "--every-call", "--seconds", "1"]) == 2
    assert "--every-call is for --trace" in capsys.readouterr().err
