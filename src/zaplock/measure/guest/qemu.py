"""One guest: boot a kernel into the probe under QEMU, with a limit in time, and read its capsule.

The accelerator is TCG (emulation), or KVM where a probe shows that it works: /dev/kvm can be opened
on machines whose guests then hang or abort, so only a guest that came to its end counts as proof.
The answer is kept for as long as the host stays booted.

`exact` gives the guest instruction-counted time (-icount, one CPU): each instruction takes
2 ** shift ns, an idle CPU's clock jumps to the next timer, random numbers come from a seed, no
hardware clock is read. Two runs of the same image are the same to the last byte, on any machine,
however busy. It is no model of a real CPU's caches or of contention between CPUs: it shows the
structure of locking exactly, and times in proportion to instructions.

Nothing is left running: QEMU dies with this process (PR_SET_PDEATHSIG), at its limit, and with any
error that passes.

A guest may be hostile, and QEMU is what stands between it and this machine. So QEMU has no device
but those that the probe needs, may start no program and gain no right (-sandbox, no_new_privs), and
where root starts it, it runs as `nobody` in a folder that holds nothing but the guest's own files:
a copy of the kernel, the root file system, the capsule, the console and its disk, if it has one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from zaplock.compiled import cache
from zaplock.errors import UserError
from zaplock.measure.guest import build, capsule, initramfs
from zaplock.measure.guest.kernels import Kernel
from zaplock.scratch import Scratch
from zaplock.untrusted_names import visible

PROGRAM = "qemu-system-x86_64"
EXACT_SHIFT = 2
"""4 ns an instruction in an exact guest: a quarter of a thousand MIPS."""
_ACCELERATORS = ("kvm", "tcg")
_KVM_LIMIT_S = 8.0
_POLL_S = 0.05
_QUIET_BOOT = (
    "console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable mitigations=off "
    "no_timer_check"  # which old kernels fail on a busy host, and panic
)
# Half of an emulated boot is self-tests and certificates, which have nothing to do with mm.
_SHORT_BOOT = (
    "cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list,"
    "bpf_tcp_ca_kfunc_init,bpf_dummy_struct_ops_init,init_blk_tracer"
)
# Idle, an exact guest polls: at a HLT QEMU's main loop may wake between the halt and the accounting
# of what ran before it, and then moves the clock on by instructions that are counted again.
_SAME_BOOT = "nokaslr norandmaps randomize_kstack_offset=off idle=poll"
# Its one CPU takes the PIT for a timer: a local APIC's is calibrated for 0.2 s in a loop of RDTSC
# and PAUSE, at each of which QEMU leaves its translated code; QEMU's HPET, until another timer
# takes over, interrupts so often that half of the boot goes into it.
_SHORT_SAME_BOOT = "nolapic_timer hpet=disable"
_SUCCEEDED = 1  # isa-debug-exit: (0 << 1) | 1
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_MOST_SAID = 1 << 20

Progress = Callable[[str], None]
"""Told the phase of the guest: one of `capsule.PHASES`."""


def _silent(_phase: str) -> None:
    pass


class Disk(NamedTuple):
    """A disk of so many bytes that is gone with its guest: `head`, then zeroes."""

    size: int
    head: bytes


@dataclass(frozen=True, slots=True)
class GuestMachine:
    """The guest's hardware. `memory` in bytes; `shift` matters in an exact guest only.

    cpu_has: features of an emulated CPU besides those that every x86-64 has, by QEMU's names.
    disk: what an NVMe disk holds at first, none without; Debian's kernels have its driver built in.
    """

    memory: int
    nr_cpus: int = 2
    exact: bool = False
    shift: int = EXACT_SHIFT
    boot_options: tuple[str, ...] = ()
    cpu_has: tuple[str, ...] = ()
    disk: Disk | None = None


def program() -> str:
    """Return QEMU's program. Raises UserError where it isn't installed."""
    if platform.machine() != "x86_64":
        raise UserError(f"guests are x86-64 kernels; on {platform.machine()} use 'zaplock compare'")
    found = shutil.which(PROGRAM)
    if found is None:
        raise UserError(
            f"{PROGRAM} is not installed: install it with 'apt-get install qemu-system-x86', "
            "or your distribution's QEMU for x86"
        )
    return found


def run(
    kernel: Kernel,
    machine: GuestMachine,
    arguments: Sequence[str],
    *,
    limit_s: float,
    progress: Progress = _silent,
) -> capsule.Capsule:
    """Boot the kernel, run the probe with these arguments, return what it handed over.

    Raises UserError when the guest did not boot, failed, or was not done after `limit_s`.
    """
    accelerator = "tcg" if machine.exact else _accelerator(kernel)
    return _run(kernel, machine, arguments, accelerator, limit_s, progress)


def _run(
    kernel: Kernel,
    machine: GuestMachine,
    arguments: Sequence[str],
    accelerator: str,
    limit_s: float,
    progress: Progress,
) -> capsule.Capsule:
    with Scratch("guest") as folder:
        user = _lay_out(folder, kernel, build.probe(), accelerator, machine.disk)
        command = _command(machine, arguments, accelerator, folder)
        status, said = _supervised(command, folder, limit_s, progress, user)
        result = capsule.read(folder / "capsule")
        if status != _SUCCEEDED or result is None:
            raise UserError(_what_failed(kernel, status, said, folder, limit_s))
        return result


@dataclass(frozen=True, slots=True)
class LiveGuest:
    """A guest that runs: its process, the folder of its console, and the memory shared with it."""

    kernel: Kernel
    process: subprocess.Popen[bytes]
    folder: Path
    memory: Path

    def why_it_ended(self, limit_s: float) -> str:
        """Say in a line why it did not do what it should within a limit."""
        said = (self.folder / "said").read_bytes()[:_MOST_SAID].decode(errors="replace")
        return _what_failed(self.kernel, self.process.poll(), said, self.folder, limit_s)


@contextmanager
def running(
    kernel: Kernel, machine: GuestMachine, init: Path, arguments: Sequence[str]
) -> Iterator[LiveGuest]:
    """Boot a kernel into `init` and let it run until the end of the block.

    The memory of its device is a file that both sides map while it runs.
    """
    accelerator = _accelerator(kernel)
    with Scratch("guest") as folder:
        user = _lay_out(folder, kernel, init, accelerator, machine.disk)
        with (folder / "said").open("w+b") as said:
            command = _command(machine, arguments, accelerator, folder)
            process = _started(command, folder, said, user)
            try:
                yield LiveGuest(kernel, process, folder, folder / "capsule")
            finally:
                process.kill()
                process.wait()


def _lay_out(
    folder: Path, kernel: Kernel, init: Path, accelerator: str, disk: Disk | None
) -> _User | None:
    """Put what a guest needs into its folder; return whom QEMU is to run as (None: as we do)."""
    if disk:
        with (folder / "disk").open("wb") as file:
            file.write(disk.head)
            file.truncate(disk.size)
    capsule.make(folder / "capsule")
    (folder / "initramfs").write_bytes(initramfs.guest_root(init.read_bytes()))
    (folder / "kernel").write_bytes(kernel.content())
    (folder / "console").touch()
    user = _unprivileged(accelerator)
    if user is not None:
        _let_in(folder, user)
    return user


def _started(
    command: list[str], folder: Path, said: BinaryIO, user: _User | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=said,
        cwd=folder,
        preexec_fn=_alone,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=user.groups if user else None,
    )


def _command(
    machine: GuestMachine, arguments: Sequence[str], accelerator: str, folder: Path
) -> list[str]:
    boot = [_QUIET_BOOT, _SHORT_BOOT, *machine.boot_options]
    clock = ["-smp", str(machine.nr_cpus)]
    if machine.exact:
        boot += [_SAME_BOOT, _SHORT_SAME_BOOT]
        clock = ["-smp", "1", "-icount", f"shift={machine.shift},sleep=off", "-seed", "1"]
    memory_file = (
        f"memory-backend-file,id=capsule,share=on,mem-path={folder / 'capsule'},size={capsule.SIZE}"
    )
    return [
        program(),
        *(
            "-machine",
            f"pc,accel={accelerator},usb=off,vmport=off,smbus=off,mem-merge=off",
            "-cpu",
            "host" if accelerator == "kvm" else ",+".join(("qemu64", *machine.cpu_has)),
        ),
        *("-m", f"{machine.memory >> 20}M", *clock, "-rtc", "base=2020-01-01,clock=vm"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-sandbox", _SANDBOX),
        *("-kernel", str(folder / "kernel"), "-initrd", str(folder / "initramfs")),
        *("-append", " ".join([*boot, "--", *arguments])),
        *("-object", memory_file, "-device", "ivshmem-plain,memdev=capsule"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
        *("-serial", f"file:{folder / 'console'}"),
        *(_nvme(folder / "disk") if machine.disk else ()),
    ]


def _nvme(disk: Path) -> tuple[str, ...]:
    """Return the options for a disk that is a file; nobody needs it after the guest."""
    file = f"driver=file,filename={disk},node-name=disk,cache.no-flush=on"
    return "-blockdev", file, "-device", "nvme,drive=disk,serial=1"


def _supervised(
    command: list[str],
    folder: Path,
    limit_s: float,
    progress: Progress,
    user: _User | None = None,
) -> tuple[int | None, str]:
    """Run to the end or to the limit (then the status is None); return also what QEMU said."""
    deadline, seen = time.monotonic() + limit_s, ""
    with (folder / "said").open("w+b") as said:
        process = _started(command, folder, said, user)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if (phase := capsule.phase(folder / "capsule")) != seen:
                    progress(seen := phase)
                time.sleep(_POLL_S)
            status = process.poll()
        finally:
            process.kill()
            process.wait()
        said.seek(0)
        return status, said.read(_MOST_SAID).decode(errors="replace")


_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Have the kernel kill this process with its parent, however that one ends (Linux)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _alone() -> None:
    """Before QEMU begins (in the child): no program that it starts has more rights than it."""
    die_with_parent()
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class _User:
    uid: int
    gid: int
    groups: tuple[int, ...]


def _unprivileged(accelerator: str) -> _User | None:
    """Choose whom QEMU runs as: `nobody` where we are root (with /dev/kvm's group), else us."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody")
    kvm = [os.stat("/dev/kvm").st_gid] if accelerator == "kvm" else []
    return _User(nobody.pw_uid, nobody.pw_gid, tuple(group for group in kvm if group))


def _let_in(folder: Path, user: _User) -> None:
    """Let QEMU read its files and write two of them; it can put nothing in their place."""
    os.chown(folder, 0, user.gid)
    folder.chmod(0o710)
    for name in ("initramfs", "kernel"):
        os.chown(folder / name, 0, user.gid)
        (folder / name).chmod(0o640)
    for name in ("capsule", "console", "disk"):
        if (folder / name).exists():
            os.chown(folder / name, user.uid, user.gid)
            (folder / name).chmod(0o600)


def _what_failed(
    kernel: Kernel, status: int | None, said: str, folder: Path, limit_s: float
) -> str:
    console_file = folder / "console"
    console = _tail(console_file)
    last = _telling_line(console) or _last(said) or "it said nothing"
    at = capsule.phase(folder / "capsule")
    what, way_out = f"failed in phase {at}", "give it more --guest-memory, or a smaller SIZE"
    if status is None:
        what = f"was not done after {limit_s:.0f} s, in phase {at}"
        way_out = "try a bigger --timeout, a smaller SIZE, or another kernel"
    elif at == "boot":
        what, way_out = "did not boot into the probe", "try debian:6.1 or debian:6.12"
    return f"the guest {kernel.name} {what} ({last}): {way_out}"


def _tail(path: Path) -> str:
    """Read the end of what a guest wrote, which may be anything and without end."""
    try:
        with path.open("rb") as file:
            file.seek(-min(_MOST_SAID, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return visible(file.read(_MOST_SAID).decode(errors="replace"), "\n")
    except OSError:
        return ""


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _telling_line(console: str) -> str:
    """Return the line that says most: the probe's own, the panic, else the last."""
    lines = [line.strip() for line in console.splitlines() if line.strip()]
    for sign in ("zaplock-probe:", "Out of memory", "Kernel panic"):
        if telling := [line for line in lines if sign in line]:
            return telling[-1]
    return lines[-1] if lines else ""


def _accelerator(kernel: Kernel) -> str:
    """Return "kvm" where a guest on it comes to its end, else "tcg"."""
    if not Path("/dev/kvm").exists():
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = cache.folder("qemu") / f"accelerator-{boot_id}"
    if not answer.exists() or answer.read_text() not in _ACCELERATORS:
        chosen = "kvm" if _kvm_works(kernel) else "tcg"
        for old in answer.parent.glob("accelerator-*"):
            old.unlink(missing_ok=True)
        answer.write_text(chosen)
    return answer.read_text()


@functools.lru_cache
def _kvm_works(kernel: Kernel) -> bool:
    machine = GuestMachine(memory=512 << 20, nr_cpus=1)
    arguments = ["length=1048576", "trace=0"]
    try:
        _run(kernel, machine, arguments, "kvm", _KVM_LIMIT_S, _silent)
    except UserError:
        return False
    return True
