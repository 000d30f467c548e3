"""What each way of taking stacks costs the recorded, and what scheduling events cost.

    python -m pytest bench/test_stacks.py -s

The subjects are C loops: mmap and munmap of 4 KiB, which get the lock three times a round, and two
threads that wake each other through pipes, two switches a round. "Floor" has the tracepoints of a
recording switched on in an instance that nobody reads; each other row adds one thing to it. The
figure is the median ratio to the floor right before it.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zaplock.recorder.capturing import capturing
from zaplock.recorder.filters import RWSEM
from zaplock.recorder.meanings import MMAP_LOCK
from zaplock.recorder.options import DEFAULT_GROUPS, Options
from zaplock.recorder.stack_sampler import TRACEPOINTS, StackSampler, Wanted
from zaplock.recorder.tracefs import Instance, opened

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

PROGRAM = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static int there[2], back[2];
static long count;
static void *answer(void *unused) {
  char c;
  for (long i = 0; i < count; i++)
    if (read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1) exit(1);
  return unused;
}
int main(int argc, char **argv) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  sched_setaffinity(0, sizeof one, &one);
  count = atol(argv[2]);
  char c = 0;
  pthread_t other;
  if (*argv[1] == 's') {
    if (pipe(there) || pipe(back) || pthread_create(&other, 0, answer, 0)) return 1;
  }
  puts("ready");
  fflush(stdout);
  if (getchar() == EOF) return 1;
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  for (long i = 0; i < count; i++) {
    if (*argv[1] == 's') {
      if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1) return 1;
    } else {
      munmap(mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 4096);
    }
  }
  clock_gettime(CLOCK_MONOTONIC, &b);
  printf("%f\n", ((b.tv_sec - a.tv_sec) * 1e9 + b.tv_nsec - a.tv_nsec) / count);
}
"""

Look = Callable[[int], contextlib.AbstractContextManager[object]]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    (folder / "subject.c").write_text(PROGRAM)
    build = ["gcc", "-O2", "-o", "subject", "subject.c", "-lpthread"]
    subprocess.run(build, cwd=folder, check=True)
    return folder / "subject"


def round_ns(subject: Path, work: str, look: Look) -> float:
    """Let the subject run while somebody looks; give the nanoseconds of one round."""
    command = [str(subject), work, "60000"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        with look(process.pid):
            process.stdin.write("\n")
            process.stdin.flush()
            return float(process.stdout.readline())


@contextlib.contextmanager
def bare(pid: int, *more: str) -> Iterator[None]:
    with capturing(Options(pids=(pid,), groups=(*DEFAULT_GROUPS, *more))) as capture:
        capture.start()
        yield


def with_option(option: str) -> Look:
    """Give every lock that is had a stack, by an option of an instance of its own."""

    @contextlib.contextmanager
    def look(pid: int) -> Iterator[None]:
        with bare(pid), opened() as tracefs, Instance(tracefs, buffer_kb=4096) as instance:
            instance.write(f"options/{option}", "1")
            instance.enable(MMAP_LOCK[1], f"common_pid == {pid}")
            instance.start()
            yield

    return look


@contextlib.contextmanager
def with_trigger(pid: int) -> Iterator[None]:
    with bare(pid), opened() as tracefs, Instance(tracefs, buffer_kb=4096) as instance:
        instance.enable(MMAP_LOCK[1])
        trigger = f"events/{MMAP_LOCK[1].replace(':', '/')}/trigger"
        instance.add(trigger, f"stacktrace if common_pid == {pid}")
        instance.start()
        yield
        instance.add(trigger, f"!stacktrace if common_pid == {pid}")


def with_samples(*, user: bool = False, groups: tuple[str, ...] = ()) -> Look:
    """Take the stacks that a recording takes."""

    @contextlib.contextmanager
    def look(pid: int) -> Iterator[None]:
        with bare(pid, *groups), opened() as tracefs:
            ids = {event: one for event in TRACEPOINTS if (one := tracefs.event_id(event))}
            sampler = StackSampler(
                Wanted(ids, RWSEM, "", (pid,) if user else (), user, bool(groups))
            )
            sampler.start()
            yield
            sampler.close()

    return look


def compared(
    subject: Path, work: str, floor: Look, looks: dict[str, Look]
) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {name: [] for name in looks}
    for _ in range(5):
        for name, look in looks.items():
            before = round_ns(subject, work, floor)
            ratios[name].append(round_ns(subject, work, look) / before)
    return ratios


def tell(title: str, ratios: dict[str, list[float]]) -> None:
    print(f"\n{title} (median of 5, lowest, highest)")
    for name, values in ratios.items():
        median = statistics.median(values)
        print(f"  {name:<44} {median:5.2f}  ({min(values):.2f} to {max(values):.2f})")


def test_ways_of_taking_stacks(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks = {
        "clock and queue, kernel (the default)": with_samples(),
        "instance option stacktrace, kernel": with_option("stacktrace"),
        "stacktrace trigger, kernel": with_trigger,
        "instance option userstacktrace, 8 frames": with_option("userstacktrace"),
        "perf event, program, with caller (--stacks)": with_samples(user=True),
    }
    with capsys.disabled():
        tell("mmap + munmap, to the floor", compared(subject, "map", bare, looks))


def test_scheduling_events(subject: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looks: dict[str, Look] = {
        "scheduling events": lambda pid: bare(pid, "sched"),
        "and the stacks of uninterruptible sleeps": with_samples(groups=("sched",)),
    }
    nobody: Look = lambda pid: contextlib.nullcontext()  # noqa: E731
    with capsys.disabled():
        tell("two switches a round, to nobody looking", compared(subject, "switch", nobody, looks))
        tell("the same, to the floor", compared(subject, "switch", bare, looks))
