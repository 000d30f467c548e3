"""The kernel to boot: a vmlinuz by path, or Debian's cloud kernel of a version, by apt.

`debian:6.1` is the newest linux-image-6.1*-cloud-amd64 that the machine's own apt sources offer. It
is fetched by apt's own client (which checks its signature), unpacked without being installed, and
kept in the cache with the name of its release and its SHA-256, which is checked each time; from
then on no network is needed, and the same kernel is booted until the cache is emptied. Where apt
has no package lists yet, or they can't be written (no root), they are fetched by the same client
from the same sources into the cache.

Debian's cloud kernel has all that is needed built in: serial console, PCI, tracefs and its events.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest import cache

_SPEC = re.compile(r"debian:(\d+\.\d+)")
_LIMIT_S = 300
_LARGEST = 1 << 30
_CHOICES = "give a vmlinuz, debian:6.1 or debian:6.12"
_BY_PATH = "give the path of a vmlinuz"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel: `name` as the user gave it, `image` the vmlinuz.

    `sha256` is what it must be, "" for the user's own, which may change.
    """

    name: str
    image: Path
    sha256: str = ""

    def content(self) -> bytes:
        """Read the image. Raises UserError where it isn't what was fetched."""
        try:
            content = _read(self.image)
        except OSError as error:
            raise UserError(
                f"kernel {self.image} can't be read ({error.strerror}): {_CHOICES}"
            ) from None
        if self.sha256 and hashlib.sha256(content).hexdigest() != self.sha256:
            raise UserError(
                f"{self.image} is not what was fetched (its SHA-256 differs): "
                "remove it, and it is fetched again"
            )
        return content


def find(spec: str) -> Kernel:
    """Return the kernel that `spec` names: a path or `debian:6.1`.

    Raises UserError where there is none, with the way to one.
    """
    match = _SPEC.fullmatch(spec)
    if match:
        image = _cached(match[1]) or _fetched(match[1])
        return Kernel(spec, image, _digest_kept(image))
    if spec.startswith("debian:"):
        raise UserError(f"kernel {spec!r} is not debian:MAJOR.MINOR, such as debian:6.1")
    return Kernel(spec, _checked(Path(spec)))


def _checked(path: Path) -> Path:
    """Return the path if it looks like something that QEMU boots: a bzImage or an ELF vmlinux."""
    try:
        head = _read(path)[:0x206]
    except OSError as error:
        raise UserError(f"kernel {path} can't be read ({error.strerror}): {_CHOICES}") from None
    if head[0x202:0x206] != b"HdrS" and head[:4] != b"\x7fELF":
        raise UserError(f"{path} is no Linux kernel image: {_CHOICES}")
    return path


def _read(path: Path) -> bytes:
    """Read a regular file of a kernel's size; a FIFO would keep us waiting for ever."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as image:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST:
            raise UserError(f"{path} is no Linux kernel image: {_CHOICES}")
        return image.read(_LARGEST)


def _digest(image: Path) -> Path:
    return image.with_name(f"sha256-{image.name}")


def _digest_kept(image: Path) -> str:
    return _digest(image).read_text(encoding="ascii", errors="replace").strip()


def _folder(version: str) -> Path:
    return cache.folder("kernels") / f"debian-{version}"


def _cached(version: str) -> Path | None:
    # One without its hash is from an earlier zaplock: it is fetched again.
    images = sorted(one for one in _folder(version).glob("vmlinuz-*") if _digest(one).exists())
    return images[-1] if images else None


def _fetched(version: str) -> Path:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(
                f"kernel debian:{version} needs {tool}, which this machine has not: {_BY_PATH}"
            )
    package, options = _package(version)
    with tempfile.TemporaryDirectory(dir=cache.folder("kernels")) as scratch:
        _run(["apt-get", *options, "download", "-qq", package], f"package {package}", scratch)
        archive = next(Path(scratch).glob("*.deb"))
        image = _unpacked(archive, Path(scratch))
        folder = _folder(version)
        folder.mkdir(exist_ok=True)
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        kept = image.rename(folder / image.name)
        _digest(kept).write_text(f"{digest}\n")
        return kept


def _package(version: str) -> tuple[str, Sequence[str]]:
    """Find the newest package of a version, with the apt options under which it was found."""
    private = _private_lists()
    for options, update in (((), False), (private, False), (private, True)):
        if update:
            _run(["apt-get", *options, "update", "-qq"], "the package lists")
        if names := _offered(version, options):
            newest = max(names, key=_numbers)
            holder = newest.replace("linux-image-", "linux-binary-")
            return (holder if holder in names else newest), options
    raise UserError(
        f"no package linux-image-{version}*-cloud-amd64 in this machine's apt sources: "
        f"add a Debian release that has Linux {version} to them, or {_BY_PATH}"
    )


def _private_lists() -> tuple[str, ...]:
    lists = cache.folder("apt") / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    return (
        "-o",
        f"Dir::State::Lists={lists}",
        "-o",
        "Dir::Cache::pkgcache=",
        "-o",
        "Dir::Cache::srcpkgcache=",
    )


def _offered(version: str, options: Sequence[str]) -> list[str]:
    # From 7 on the image is a package that only depends on the one that has it.
    pattern = rf"^linux-(image|binary)-{re.escape(version)}\.[0-9.+a-z~-]*cloud-amd64$"
    command = ["apt-cache", *options, "search", "--names-only", pattern]
    names = [line.split()[0] for line in _run(command, "apt's package names").splitlines()]
    return [name for name in names if re.fullmatch(pattern[1:-1], name)]


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def _unpacked(package: Path, to: Path) -> Path:
    """Take the vmlinuz out of a package without installing it."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                if name.startswith("vmlinuz-") and (source := tar.extractfile(member)):
                    (to / name).write_bytes(source.read())
                    process.kill()
                    return to / name
    raise UserError(f"package {package.name} has no vmlinuz: give the path of one")


def _run(command: Sequence[str], what: str, folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} did not get {what} in {_LIMIT_S} s: try again, or {_BY_PATH}"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        raise UserError(
            f"{command[0]} can't get {what} ({reason}): check the network, or {_BY_PATH}"
        ) from None
    return done.stdout
