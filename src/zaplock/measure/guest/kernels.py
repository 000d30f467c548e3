"""The kernel to boot: a vmlinuz by path, or one of Debian's (`zaplock.measure.guest.debian`)."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from zaplock.errors import UserError
from zaplock.measure.guest import debian

_SPEC = re.compile(r"debian:(\d++\.\d++[0-9.+a-z~-]*+)")
_LARGEST = 1 << 30
_CHOICES = "give a vmlinuz or debian:RELEASE, such as debian:6.1 (see --list-kernels)"


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


_VERSION_AT = 0x20E
_RELEASE = re.compile(rb"[0-9]{1,3}\.[0-9]{1,3}[!-~]{0,100}")
_BANNER = b"Linux version "


def release_in(image: bytes) -> str:
    """Read the release that an image tells, as uname(2) will; "" where it tells none.

    A bzImage has it where its header says (`kernel_version`, Documentation/arch/x86/boot.rst), a
    vmlinux in its banner.
    """
    found = None
    if image[0x202:0x206] == b"HdrS":
        at = int.from_bytes(image[_VERSION_AT : _VERSION_AT + 2], "little") + 0x200
        found = _RELEASE.match(image, at) if at > 0x200 else None
    elif (at := image.find(_BANNER)) >= 0:
        found = _RELEASE.match(image, at + len(_BANNER))
    return found[0].decode() if found else ""


def find(spec: str) -> Kernel:
    """Return the kernel that `spec` names: a path, `debian:6.1` or `debian:6.12.107+deb12`.

    Raises UserError where there is none, with the way to one.
    """
    match = _SPEC.fullmatch(spec)
    if match:
        image = debian.kept(match[1]) or debian.fetch(match[1])
        return Kernel(spec, image, debian.digest_of(image))
    if spec.startswith("debian:"):
        raise UserError(f"kernel {spec!r} is not debian:RELEASE, such as debian:6.1")
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
