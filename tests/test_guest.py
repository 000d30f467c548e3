"""Other real kernels in QEMU: what they do with the lock, exactly and twice the same.

The exact lane: instruction-counted guests of Debian's 6.1 and 6.12 kernels, 64 MiB each, so that
the structure of locking is a fact and not a matter of timing. Skipped, with the reason, where QEMU,
a C compiler or the packages can't be had.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import children_of, has_ended, name_of

from zaplock.cli import main
from zaplock.compiled import cache
from zaplock.compiled.build import compiler
from zaplock.errors import UserError
from zaplock.measure.guest import (
    build,
    capsule,
    debian,
    host,
    initramfs,
    kernels,
    qemu,
    recording,
    rows,
)
from zaplock.measure.guest import finished_run as guest_verdict
from zaplock.measure.guest.experiment import GuestPlan, GuestRun, checked, run
from zaplock.scratch import sweep
from zaplock.trace import recording_file
from zaplock.trace.teardown_verdict import TeardownVerdict

MIB = 1 << 20
READERS = ("fault", "proc")
CONVOY = ("fault", "proc", "mmap")


def needs(kernel: str) -> None:
    """Skip where a guest of this kernel can't be had."""
    try:
        qemu.program(), build.probe(), kernels.find(kernel)
    except UserError as error:
        pytest.skip(str(error))


@functools.cache
def exact(kernel: str, teardown: str, bystanders: tuple[str, ...]) -> GuestRun:
    return run(
        GuestPlan(
            64 * MIB,
            "anonymous",
            teardown,
            bystanders,
            kernel=kernel,
            exact=True,
            nr_cpus=1,
            timeout_s=240,
        )
    )


def seen(kernel: str, teardown: str, bystanders: tuple[str, ...]) -> TeardownVerdict:
    needs(kernel)
    return guest_verdict.read(exact(kernel, teardown, bystanders))


# ---- what 6.1 does: both sides of the RFC in one unmodified kernel


def test_6_1_downgrades_a_plain_munmap_and_nobody_waits() -> None:
    verdict = seen("debian:6.1", "munmap", READERS)
    assert verdict.modes == ("exclusive", "shared")
    assert verdict.held_ns("exclusive") < 200_000 < 20_000_000 < verdict.held_ns("shared")
    assert verdict.waits == {}


def test_6_1_makes_every_reader_wait_behind_a_queued_writer() -> None:
    verdict = seen("debian:6.1", "munmap", CONVOY)
    assert verdict.modes == ("exclusive", "shared")
    assert verdict.waits == {
        "fault": ("teardown", "mmap"),
        "proc": ("teardown", "mmap"),
        "mmap": ("teardown",),
    }
    assert all(verdict.ratio(name) > 0.9 for name in CONVOY)


@pytest.mark.parametrize("teardown", ["fixed", "growsdown"])
def test_6_1_holds_it_exclusively_to_the_end_of_a(teardown: str) -> None:
    verdict = seen("debian:6.1", teardown, READERS)
    assert verdict.modes == ("exclusive",)
    assert verdict.waits == {"fault": ("teardown",), "proc": ("teardown",)}


# ---- what 6.12 does: faults take the VMA's lock, the reader of /proc still waits


def test_6_12_keeps_faults_out_of_the_convoy() -> None:
    verdict = seen("debian:6.12", "munmap", CONVOY)
    assert verdict.modes == ("exclusive", "shared")
    assert verdict.waits == {"proc": ("teardown", "mmap"), "mmap": ("teardown",)}
    assert verdict.ratio("fault") < 0.01


def test_6_12_downgrades_below_a_growing_neighbour_again() -> None:
    assert seen("debian:6.12", "growsdown", READERS).modes == ("exclusive", "shared")


# ---- the recording


@contextlib.contextmanager
def waking_qemu() -> Iterator[list[int]]:
    """Wake the main loop of each QEMU of ours again and again, as what happens on a host does.

    The loop takes SIGALRM from a descriptor and does nothing with it.
    """
    woken: list[int] = []
    ready: set[str] = set()
    over = threading.Event()

    def wake() -> None:
        while not over.wait(0.000_1):
            with contextlib.suppress(OSError):
                for pid in children():
                    if pid not in ready and not takes_signals(pid):
                        continue
                    ready.add(pid)
                    os.kill(int(pid), signal.SIGALRM)
                    woken.append(int(pid))

    waker = threading.Thread(target=wake)
    waker.start()
    try:
        yield woken
    finally:
        over.set()
        waker.join()


def takes_signals(pid: str) -> bool:
    """Tell whether a process reads its signals from a descriptor."""
    return any("signalfd" in file for file in open_files(pid))


def open_files(pid: str | int) -> list[str]:
    """List what a process has open, but for what it closes meanwhile."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(link))
    return found


def test_two_exact_runs_write_identical_recordings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is made in Python, one on the command line, while its QEMU is woken all the time."""
    needs("debian:6.1")
    recording.write(tmp_path / "first", exact("debian:6.1", "munmap", CONVOY))
    kept = tmp_path / "second"
    command = ["measure", "64M", "--kernel", "debian:6.1", "--exact", "--record", str(kept)]
    with waking_qemu() as woken:
        assert main([*command, "--bystanders", ",".join(CONVOY), "--json"]) == 0
    assert woken
    for path in sorted((tmp_path / "first").iterdir()):
        assert path.read_bytes() == (kept / path.name).read_bytes(), path.name
    read = recording_file.read(tmp_path / "first")
    assert read.manifest.kernel.startswith("6.1.")
    assert {"zap", *CONVOY} <= {task.comm for task in read.events.tasks.values()}

    out, err = capsys.readouterr()
    assert json.loads(out)["rows"][0]["exclusive_hold_ns"] < 200_000
    assert f"next: zaplock report {kept}" in err
    assert main(["report", str(kept)]) == 0
    assert "munmap of 64 MiB" in capsys.readouterr().out


def test_the_row_stands_beside_those_of_measure() -> None:
    needs("debian:6.1")
    row = rows.outcome(exact("debian:6.1", "munmap", CONVOY)).to_json()
    assert row["stalls"]["fault"]["max_ns"] > 0.9 * row["shared_hold_ns"]
    assert set(row["idle"]) == set(CONVOY)
    assert row["size"] == 64 * MIB
    assert 0 < row["cpu_ns"] <= row["munmap_ns"]


def test_the_guest_says_who_hangs_in_the_kernels_own_words() -> None:
    needs("debian:6.1")
    plan = GuestPlan(64 * MIB, bystanders=("madvise", "fault", "mmap"))
    slow = GuestPlan(**{**_fields(plan), "exact": True, "shift": 7, "hung_task_timeout_s": 1})
    messages = rows.outcome(run(slow)).extra["hung_task_messages"]
    # Faults and mmap wait killably on 6.1, and khungtaskd does not report those.
    assert [message.split()[2].split(":")[0] for message in messages] == ["madvise"]
    assert "blocked for more than 1 seconds" in messages[0]
    assert "rwsem_down_read_slowpath" in messages[0]


def test_function_graph_comes_in_the_layout_of_the_rfc(tmp_path: Path) -> None:
    needs("debian:6.12")
    plan = GuestPlan(16 * MIB, bystanders=(), kernel="debian:6.12", exact=True, graph=True)
    target = tmp_path / "graph.txt"
    rows.measure(plan, graph=target)
    lines = target.read_text().splitlines()
    calls = [line.split("| ", 1)[1].strip(" {();") for line in lines]
    order = [calls.index(name) for name in ("downgrade_write", "unmap_vmas", "free_pgtables")]
    assert order == sorted(order)
    assert "funcgraph_entry:" in lines[0]
    assert "zap-" in lines[0]
    assert lines[-1].endswith("us | }")


def _fields(plan: GuestPlan) -> dict[str, object]:
    return {name: getattr(plan, name) for name in GuestPlan.__dataclass_fields__}


# ---- what goes wrong ends in one line, in time, and leaves nothing running


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_guest_that_takes_too_long_is_ended() -> None:
    needs("debian:6.1")
    before = children()
    with pytest.raises(UserError, match=r"was not done after 1 s, in phase boot .*--timeout"):
        run(GuestPlan(64 * MIB, timeout_s=1, exact=True))
    assert children() <= before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_guest_does_not_outlive_zaplock(how: signal.Signals, open_folder: Path) -> None:
    needs("debian:6.1")
    minutes_of_work = ["64G", "--backing", "zero", "--kernel", "debian:6.1", "--exact"]
    zaplock = subprocess.Popen(
        [sys.executable, "-m", "zaplock", "measure", *minutes_of_work],
        stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(open_folder)},
    )  # fmt: skip
    guest = first_child(zaplock)
    assert_confined(guest)
    assert not has_ended(guest)
    zaplock.send_signal(how)
    zaplock.wait()
    deadline = time.monotonic() + 250
    while not has_ended(guest):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sweep("guest", open_folder)
    assert not list(open_folder.glob("zaplock-guest-*"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that QEMU, which is nobody, comes to: any run of pytest may close pytest's own."""
    with tempfile.TemporaryDirectory(prefix="zaplock-guests-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def first_child(zaplock: subprocess.Popen[bytes]) -> int:
    """Wait until it has started QEMU."""
    while zaplock.poll() is None:
        for child in children_of(zaplock.pid):
            if "qemu" in name_of(child):
                return child
        time.sleep(0.05)
    raise AssertionError("no guest was started")


def assert_confined(guest: int) -> None:
    """QEMU has no right of root's, can gain none, is behind its filter and has no network."""
    deadline = time.monotonic() + 250
    while (about := status_of(guest))["Seccomp"] != ["2"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert about["Seccomp"] == ["2"]
    assert about["NoNewPrivs"] == ["1"]
    assert about["CapEff"] == about["CapPrm"] == ["0" * 16]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        assert about["Uid"] == [str(nobody.pw_uid)] * 4
        assert about["Gid"] == [str(nobody.pw_gid)] * 4
    assert not [file for file in open_files(guest) if file.startswith("socket:")]


def status_of(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}


def test_an_image_that_does_not_boot_is_named(tmp_path: Path) -> None:
    needs("debian:6.1")
    image = tmp_path / "vmlinuz"
    whole = kernels.find("debian:6.1").image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])  # a download that broke off
    before = children()
    with pytest.raises(UserError, match=r"vmlinuz .*(did not boot|was not done after)"):
        run(GuestPlan(MIB, kernel=str(image), timeout_s=2, exact=True))
    assert children() <= before


def test_a_guest_without_enough_memory_says_so() -> None:
    needs("debian:6.1")
    plan = GuestPlan(128 * MIB, memory=128 * MIB, timeout_s=240, exact=True)
    with pytest.raises(UserError, match=r"failed in phase populate.*--guest-memory"):
        run(plan)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("debian:six", "not debian:RELEASE"),
        ("/no/such/vmlinuz", "can't be read"),
        (__file__, "is no Linux kernel image"),
    ],
)
def test_a_kernel_that_is_none(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        kernels.find(spec)


def test_the_newest_release_of_a_version() -> None:
    releases = ["6.1.0-9", "6.12.9+deb12", "6.12.90+deb12", "6.12.90+deb13", "7.3.4+deb13"]
    of = {v: [one for one in releases if debian.matches(one, v)] for v in ("6.1", "6.12", "6.12.9")}
    assert of["6.1"] == ["6.1.0-9"]
    assert of["6.12.9"] == ["6.12.9+deb12"]
    assert debian.newest(of["6.12"]) == "6.12.90+deb13"


@pytest.mark.skipif(not shutil.which("apt-get"), reason="not a Debian machine")
def test_a_version_that_apt_does_not_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    monkeypatch.setenv("APT_CONFIG", str(_apt_without_sources(tmp_path)))
    with pytest.raises(UserError, match=r"linux-image-6\.1\*.*--list-kernels.*vmlinuz"):
        kernels.find("debian:6.1")
    assert not list((tmp_path / "kernels").iterdir())


def _apt_without_sources(folder: Path) -> Path:
    for name in ("parts", "lists/partial"):
        (folder / "apt-empty" / name).mkdir(parents=True)
    config = folder / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "{folder}/apt-empty/parts";'
        f'Dir::State::Lists "{folder}/apt-empty/lists"; Dir::State::status "/dev/null";'
        'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
    )
    return config


def test_without_qemu_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="apt-get install qemu-system-x86"):
        qemu.program()


def test_without_a_compiler_the_way_to_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="apt-get install gcc libc6-dev"):
        build.probe()


def test_a_probe_that_is_not_what_was_compiled_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    if compiler() is None:
        pytest.skip("no C compiler")
    program = build.probe()
    whole = program.read_bytes()
    program.write_bytes(whole[:-1] + b"x")
    assert build.probe().read_bytes() == whole


def test_a_kernel_that_is_not_what_was_fetched_is_not_booted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one taken from the cache whose sum is not beside it."""
    monkeypatch.setenv("ZAPLOCK_CACHE", str(tmp_path))
    fetched = bytes(0x202) + b"HdrS" + bytes(1 << 20)
    image = tmp_path / "vmlinuz-6.1.99-1-cloud-amd64"
    image.write_bytes(fetched)
    kept = debian._keep(image, cache.folder("kernels") / "debian-6.1.99-1")
    assert kernels.find("debian:6.1").content() == fetched
    for other in (fetched[: 300 << 10], fetched[:-1] + b"x"):
        kept.write_bytes(other)
        with pytest.raises(UserError, match="not what was fetched"):
            kernels.find("debian:6.1").content()
    kept.write_bytes(fetched)
    debian._digest(kept).unlink()
    assert debian.kept("6.1") is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"teardown": "burn"}, "no teardown 'burn'"),
        ({"backing": "gold"}, "no backing 'gold'"),
        ({"bystanders": ("cat",)}, "no bystander 'cat'"),
        ({"length": 12345}, "multiple of 4096, the page size"),
        ({"length": MIB, "backing": "thp"}, "multiple of 2097152, the page size"),
        ({"nr_cpus": 0}, "--guest-cpus 0"),
        ({"length": 1 << 44}, "give a smaller SIZE, or --backing zero"),
        ({"teardown": "mremap", "nr_vmas": 2}, "leave --vmas away"),
    ],
)
def test_a_plan_that_cannot_be(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        checked(GuestPlan(**{"length": 2 * MIB, **changes}))


def test_guest_options_want_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "1M", "--exact"]) == 2
    assert "--exact is for a guest: name its kernel" in capsys.readouterr().err


# ---- the parts


def test_the_initramfs_is_reproducible_and_cpio_reads_it() -> None:
    made = initramfs.guest_root(b"#!init")
    assert made == initramfs.guest_root(b"#!init")
    if not shutil.which("cpio"):
        pytest.skip("cpio is not installed")
    listed = subprocess.run(["cpio", "-itv"], input=made, capture_output=True, check=True)
    assert [line.split()[-1] for line in listed.stdout.decode().splitlines()] == [
        "dev", "dev/console", "init", "proc", "sys",
    ]  # fmt: skip
    assert b"crw" in listed.stdout


def test_an_unfinished_capsule_is_no_result(tmp_path: Path) -> None:
    capsule.make(tmp_path / "capsule")
    assert capsule.read(tmp_path / "capsule") is None
    assert capsule.phase(tmp_path / "capsule") == "boot"


@pytest.mark.root
def test_the_same_probe_runs_on_the_host_and_leaves_no_instance() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if compiler() is None:
        pytest.skip("needs a C compiler")
    done = host.run(GuestPlan(64 * MIB, bystanders=READERS, period_ns=200_000))
    assert guest_verdict.read(done).modes[0] == "exclusive"
    from zaplock.recorder import tracefs

    with tracefs.opened() as root:
        names = [path.name for path in (root.path / "instances").iterdir()]
    assert not [name for name in names if name.startswith(f"zaplock-{os.getpid()}-")]
