"""A CPU quota (cpu.max) in virtual time: who is stopped where, and the kernel as judge."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stage import FIFO, LOCK, MS, Story, work
from test_guest import needs

from zaplock.cli import main
from zaplock.cli._designs import parse_cpu_max
from zaplock.designs.linux import linux
from zaplock.engines.timed.cpus import Sched
from zaplock.engines.timed.engine import TimedEngine
from zaplock.errors import UserError
from zaplock.lab import profiles
from zaplock.lab.experiment import SimulatedExperiment
from zaplock.lab.teardown import run
from zaplock.measure.cpu_limit import limited
from zaplock.measure.guest import recording
from zaplock.measure.guest.experiment import GuestPlan, GuestRun
from zaplock.measure.guest.experiment import run as boot
from zaplock.model.rwsem import RWSEM_4_9, RwsemPolicy, down_read, down_write, up_read, up_write
from zaplock.model.step import MarkStep, SleepStep, Task
from zaplock.trace.analysis import Analysis, analyse
from zaplock.trace.quotas import CpuMax, quotas

TENTH = CpuMax(10 * MS, 100 * MS)


class Box(Story):
    """A stage whose threads share a quota, unless they are outside."""

    def __init__(
        self,
        throttled_in: str = "kernel",
        limit: CpuMax = TENTH,
        policy: RwsemPolicy = FIFO,
        **sched: int,
    ) -> None:
        super().__init__(policy)
        sched.setdefault("cpus", 8)
        self.engine = TimedEngine(
            self.machine, policy=policy, sched=Sched(**sched), cpu_max=limit,
            throttled_in=throttled_in,  # type: ignore[arg-type]
        )  # fmt: skip

    def start(self, name: str, program, at_ns: int = 0, background: bool = False):
        self.threads += 1
        return self.engine.spawn(
            Task(self.threads, 1, name), program, at_ns=at_ns, background=background,
            limited=name != "outside",
        )  # fmt: skip


async def call(box: Box, work_ns: int) -> None:
    """A system call that holds the lock while it works."""
    await MarkStep("op_begin", ("munmap", 0, 0, 0))
    await down_write(LOCK)
    await work(work_ns)
    await up_write(LOCK)
    await box.say("unlocked")
    await MarkStep("op_end", ("munmap", 0))
    await box.say("returned")


def ends(box: Box) -> list[tuple[float, str, str]]:
    return [(at / MS, who, what) for at, who, what in box.run()]


def test_to_6_17_a_holder_is_stopped_with_the_lock_in_hand() -> None:
    box = Box("kernel")
    box.start("a", call(box, 25 * MS))
    assert ends(box) == [(205, "a", "unlocked"), (205, "a", "returned")]


def test_who_spins_on_a_holder_that_is_stopped_sleeps_and_goes_on_after_it() -> None:
    """Both use up the 10 ms together, the spinner by spinning; a period's 10 ms end the hold."""
    box = Box("kernel", policy=RWSEM_4_9)
    box.start("a", call(box, 14 * MS))
    box.start("b", call(box, 2 * MS), at_ns=1 * MS)
    unlocked = [(at, who) for at, who, what in ends(box) if what == "unlocked"]
    assert unlocked == [(108.5, "a"), (200.5, "b")]


def test_from_6_18_on_it_is_stopped_on_its_way_back() -> None:
    """It overdraws 15 ms, which two periods pay back: 5 ms are left of the second."""
    box = Box("user")
    box.start("a", call(box, 25 * MS))
    assert ends(box) == [(25, "a", "unlocked"), (200, "a", "returned")]


def test_time_outside_of_the_kernel_is_stopped_at_once_under_both() -> None:
    for rule in ("kernel", "user"):
        box = Box(rule)

        async def program(box: Box) -> None:
            await work(35 * MS)
            await box.say("done")

        box.start("a", program(box))
        assert ends(box) == [(305, "a", "done")]


def test_a_waiter_outside_of_the_group_waits_for_the_period() -> None:
    waits = {}
    for rule in ("kernel", "user"):
        box = Box(rule)

        async def read(box: Box) -> None:
            await down_read(LOCK)
            await box.say("reads")
            await up_read(LOCK)

        box.start("a", call(box, 15 * MS))
        box.start("outside", read(box), at_ns=1 * MS)
        waits[rule] = next(at for at, _, what in ends(box) if what == "reads")
    assert waits == {"kernel": 105, "user": 15}


def test_all_cpus_together_use_the_quota() -> None:
    box = Box(limit=CpuMax(20 * MS, 100 * MS))

    async def program(box: Box) -> None:
        await work(15 * MS)
        await box.say("done")

    for name in "ab":
        box.start(name, program(box))
    assert ends(box) == [(105, "a", "done"), (105, "b", "done")]


def test_what_is_left_over_is_not_saved() -> None:
    box = Box()

    async def program(box: Box) -> None:
        await SleepStep(1000 * MS)
        await work(15 * MS)
        await box.say("done")

    box.start("a", program(box))
    assert ends(box) == [(1105, "a", "done")]


def test_who_wakes_up_while_the_group_is_throttled_waits_and_is_not_forgotten() -> None:
    box = Box()

    async def sleeper(box: Box) -> None:
        await SleepStep(50 * MS)
        await work(1 * MS)
        await box.say("woke")

    async def busy(box: Box) -> None:
        await work(10 * MS + 1)
        await SleepStep(500 * MS)

    box.start("a", sleeper(box))
    box.start("b", busy(box))
    assert ends(box) == [(101, "a", "woke")]


def test_a_quota_of_all_cpus_changes_nothing() -> None:
    profile = profiles.load("e5-2680-rfc")
    plain = SimulatedExperiment(64 << 20, bystanders=("fault", "mmap"), cpus=2)
    free = run(linux("6.1"), plain, profile).outcome
    wide = CpuMax(400 * MS, 100 * MS)
    assert run(linux("6.1"), replace(plain, cpu_max=wide), profile).outcome == free


def test_throttled_in_is_a_rule_of_6_18() -> None:
    assert [linux(name).throttled_in for name in ("6.1", "6.12", "6.17", "6.18", "7.0")] == [
        "kernel", "kernel", "kernel", "user", "user",
    ]  # fmt: skip


def test_compare_says_where_the_quota_stops_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "512M", "--no-measure", "--bystanders", "proc"]
    designs = ["--design", "linux-6.12,linux-6.18", "--cpu-max", "10000/100000"]
    assert main([*command, *designs]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cpu.max 10000/100000" in said
    assert "in the middle of its work, with the lock in hand, under linux-6.12" in said
    assert "when it has given the lock back, under linux-6.18" in said


@pytest.mark.parametrize("text", ["", "10000", "10000/0", "a/b", "1/2/3", "-5/100000", "1.5/3"])
def test_a_quota_that_is_none_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="10000/100000"):
        parse_cpu_max(text)


def test_a_quota_beyond_what_the_kernel_takes_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "1M", "--no-measure", "--cpu-max", "1/100000"]) == 2
    assert "quota of cpu.max" in capsys.readouterr().err


PROGRAM = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
static long long now(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(void) {
  size_t n = 1200UL << 20;
  char *p = mmap(0, n, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(p, n, MADV_NOHUGEPAGE);
  memset(p, 1, n);
  puts("ready");
  fflush(stdout);
  if (getchar() == EOF) return 1;
  long long begin = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
  munmap(p, n);
  long long end = now(CLOCK_MONOTONIC), cpu_end = now(CLOCK_THREAD_CPUTIME_ID);
  printf("%lld %lld\n", end - begin, cpu_end - cpu);
}
"""


@pytest.mark.root
def test_this_kernels_munmap_under_a_tenth_of_a_cpu_takes_as_long_as_predicted(
    tmp_path: Path,
) -> None:
    """Of the CPU time that it really used the model makes the time that its caller waits."""
    (tmp_path / "unmap.c").write_text(PROGRAM)
    subprocess.run(["gcc", "-O1", "-o", "unmap", "unmap.c"], cwd=tmp_path, check=True)
    rule = linux_here()
    errors = []
    for _ in range(6):
        took_ns, cpu_ns = unmapped(tmp_path / "unmap")
        box = Box(rule)
        box.start("a", call(box, cpu_ns), at_ns=50 * MS)
        predicted_ns = box.run()[-1][0] - 50 * MS
        errors.append(predicted_ns / took_ns - 1)
        if abs(errors[-1]) <= 0.15:
            return
    pytest.fail(f"predicted to measured: {', '.join(f'{one:+.0%}' for one in errors)}")


def linux_here() -> str:
    from zaplock.designs.linux import design_of

    return design_of(os.uname().release).design.throttled_in


def unmapped(program: Path) -> tuple[int, int]:
    """Let it unmap under the quota; return how long that took, and its CPU time."""
    with subprocess.Popen(
        [str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        try:
            with limited(process.pid, TENTH):
                time.sleep(0.3)
                process.stdin.write("\n")
                process.stdin.flush()
                took_ns, cpu_ns = process.stdout.readline().split()
        except UserError as error:
            process.kill()
            pytest.skip(str(error))
    return int(took_ns), int(cpu_ns)


@pytest.mark.timeout(0)  # the guest has a limit of its own
@pytest.mark.parametrize("kernel", ["debian:6.1", "debian:6.12"])
def test_older_kernels_throttle_a_munmap_with_the_lock_in_hand_as_predicted(kernel: str) -> None:
    """In a guest whose time is its count of instructions: every run is the same."""
    needs(kernel)
    done = boot(GuestPlan(64 << 20, kernel=kernel, bystanders=(), exact=True, nr_cpus=1,
                          cpu_max=TENTH, timeout_s=1200))  # fmt: skip
    took_ns = done.capsule.fact("end_ns") - done.capsule.fact("begin_ns")
    cpu_ns = done.capsule.fact("cpu_ns")
    assert took_ns > 5 * cpu_ns

    analysis = understood(done)
    longest = int(analysis.holds["hold_ns"].argmax())
    hold = analysis.hold_time(longest)
    assert hold.whole_ns == int(analysis.holds["hold_ns"][longest])
    assert hold.group == "/zap"
    assert abs(hold.throttled_ns - (took_ns - cpu_ns)) < 0.05 * took_ns
    assert hold.on_cpu_ns >= 0.95 * cpu_ns  # which leaves interrupts out
    assert hold.throttled_ns + hold.on_cpu_ns > 0.95 * hold.whole_ns

    box = Box(linux(kernel.removeprefix("debian:")).throttled_in)
    box.start("a", call(box, cpu_ns), at_ns=50 * MS)
    predicted_ns = box.run()[-1][0] - 50 * MS
    assert abs(predicted_ns / took_ns - 1) <= 0.15


def understood(done: GuestRun) -> Analysis:
    """Analyse what a guest recorded."""
    accounts = quotas(*recording.quota_rows(done))
    return analyse(recording.events(done.capsule), done.capsule.facts["release"], quotas=accounts)
