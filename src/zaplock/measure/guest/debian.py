"""Debian's kernels: found and fetched by apt, from whichever of Debian's releases has them.

A kernel is looked for where this machine's own apt sources point, then in Debian's other suites
at the same mirror, by a source list that is zaplock's own: the machine's lists stay as they are.
apt checks every signature by the keys that this machine trusts. A package is unpacked without
being installed; the image is kept in the cache beside its SHA-256, which is checked each time, so
the same kernel is booted, without a network, until the cache is emptied.

Debian's cloud kernel has all that is needed built in: serial console, PCI, tracefs and its events.
From 7.1 on the image lies in a package of its own, linux-binary-RELEASE.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zaplock.compiled import cache
from zaplock.errors import UserError
from zaplock.scratch import Scratch

SUITES: Final = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
"""Of Debian, oldest first: 5.10 and what came after it."""
BY_PATH: Final = "give the path of a vmlinuz"
_LIMIT_S = 300
_FRESH_S = 24 * 3600
_FLAVOUR = "cloud-amd64"
_NAME = re.compile(
    rf"linux-(?:image|binary|binary-unsigned)-(\d++\.\d++\.\d++[0-9.+a-z~-]{{0,99}})-{_FLAVOUR}"
)
_PACKAGES = ("linux-binary-{}", "linux-image-{}", "linux-binary-unsigned-{}")
"""Where the image may be, the signed ones first; a linux-image may be one that only depends."""


@dataclass(frozen=True, slots=True)
class DebianKernel:
    """A kernel that can be had: `release` as its name has it, "6.12.117+deb12".

    `sha256` is of the image where that is in the cache, "" where it is not.
    """

    release: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class _Source:
    """Package lists, by the apt options that name them; the machine's own need none."""

    options: tuple[str, ...]
    offered: frozenset[str]
    """Names of packages."""


def matches(release: str, version: str) -> bool:
    """Say whether a release is of a version: "6.12.117+deb12" of "6.12", "6.12.117" and itself."""
    return release == version or re.match(rf"{re.escape(version)}(?![\d])", release) is not None


def newest(releases: Iterable[str]) -> str:
    """Return the newest of some releases, by all the numbers in their names."""
    return max(releases, key=_numbers)


def kept(version: str) -> Path | None:
    """Return the newest image of a version in the cache, or None."""
    images = {image.name.removeprefix("vmlinuz-"): image for image in _kept_images()}
    of_version = {one for one in images if matches(one.removesuffix(f"-{_FLAVOUR}"), version)}
    return images[newest(of_version)] if of_version else None


def digest_of(image: Path) -> str:
    """Return the SHA-256 that an image in the cache must have."""
    return _digest(image).read_text(encoding="ascii", errors="replace").strip()


def fetch(version: str) -> Path:
    """Fetch the newest kernel of a version into the cache; return its image.

    Raises UserError where there is none, where apt isn't there or fails.
    """
    _require_apt(version)
    for source in _sources():
        found = {one for one in map(_release, source.offered) if one and matches(one, version)}
        if found:
            return _fetched(newest(found), source)
    raise UserError(
        f"no package linux-image-{version}*-{_FLAVOUR} in this machine's apt sources nor in "
        f"Debian's {', '.join(SUITES)}: see --list-kernels, or {BY_PATH}"
    )


def known() -> list[DebianKernel]:
    """List every kernel that can be had, oldest first, from the cache or by apt."""
    have = {
        image.name.removeprefix("vmlinuz-").removesuffix(f"-{_FLAVOUR}"): digest_of(image)
        for image in _kept_images()
    }
    _require_apt("")
    offered = {one for source in _sources() for name in source.offered if (one := _release(name))}
    return [DebianKernel(one, have.get(one, "")) for one in sorted({*have, *offered}, key=_numbers)]


def _require_apt(version: str) -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(
                f"kernel debian:{version} needs {tool}, which this machine has not: {BY_PATH}"
            )


def _kept_images() -> list[Path]:
    # One without its hash is from an earlier zaplock: it is fetched again.
    images = cache.folder("kernels").glob("debian-*/vmlinuz-*")
    return [image for image in images if _digest(image).exists()]


def _digest(image: Path) -> Path:
    return image.with_name(f"sha256-{image.name}")


def _release(package: str) -> str:
    found = _NAME.fullmatch(package)
    return found[1] if found else ""


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


def _sources() -> Iterable[_Source]:
    """Look at one source of packages after the other, at the network last."""
    yield _source(())
    yield _source(_private("apt", ""))
    if mirror := _mirror():
        suites = "".join(f"deb {mirror} {suite} main\n" for suite in SUITES)
        # A suite that is gone must not hide the others, whose lists have come all the same.
        yield _source(_private("apt-suites", suites))


def _private(name: str, sources: str) -> tuple[str, ...]:
    """Return apt's options for lists in the cache, fetched anew when they are a day old.

    `sources` is their list; the machine's own where it is "".
    """
    folder = cache.folder(name)
    listed, updated = folder / "debian.list", folder / "updated"
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    settings = [
        f"Dir::State::Lists={folder / 'lists'}",
        f"Dir::Cache::pkgcache={folder / 'packages.bin'}",
        "Dir::Cache::srcpkgcache=",
        "Acquire::Languages=none",
    ]
    if sources:
        listed.write_text(sources)
        settings += [f"Dir::Etc::sourcelist={listed}", "Dir::Etc::sourceparts=/dev/null"]
    options = tuple(word for setting in settings for word in ("-o", setting))
    known = updated.read_text() if updated.exists() else None
    if known != sources or time.time() - updated.stat().st_mtime > _FRESH_S:
        try:
            _run(["apt-get", *options, "update", "-qq"], "the package lists")
        except UserError:
            if not sources:
                raise
        updated.write_text(sources)
    return options


def _source(options: tuple[str, ...]) -> _Source:
    command = ["apt-cache", *options, "search", "--names-only", rf"^linux-.*{_FLAVOUR}$"]
    lines = _run(command, "apt's package names").splitlines()
    return _Source(options, frozenset(line.split()[0] for line in lines if line))


def _mirror() -> str:
    """Return the Debian mirror of this machine's own sources; "" where they name none."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    sites = _run(command, "apt's sources").split()
    return next((site for site in sites if site.rstrip("/").endswith("/debian")), "")


def _fetched(release: str, source: _Source) -> Path:
    named = [name.format(f"{release}-{_FLAVOUR}") for name in _PACKAGES]
    folder = cache.folder("kernels")
    for package in (name for name in named if name in source.offered):
        with Scratch("package", folder) as scratch:
            command = ["apt-get", *source.options, "download", "-qq", package]
            _run(command, f"package {package}", str(scratch))
            image = scratch / f"vmlinuz-{release}-{_FLAVOUR}"
            if _unpack(next(scratch.glob("*.deb")), image):
                return _keep(image, folder / f"debian-{release}")
    raise UserError(f"no package of Linux {release} has a vmlinuz: {BY_PATH}")


def _keep(image: Path, folder: Path) -> Path:
    """Keep an image and its digest; an image without one is not taken from the cache."""
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    kept = image.rename(folder / image.name)
    _digest(kept).write_text(f"{digest}\n")
    return kept


def _unpack(package: Path, to: Path) -> bool:
    """Take the vmlinuz out of a package without installing it, if it has one."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                name = Path(member.name).name
                is_image = name == "vmlinuz" or name.startswith("vmlinuz-")
                if is_image and (source := tar.extractfile(member)):
                    to.write_bytes(source.read())
                    process.kill()
                    return True
    return False


def _run(command: Sequence[str], what: str, folder: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_LIMIT_S, check=True
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} did not get {what} in {_LIMIT_S} s: try again, or {BY_PATH}"
        ) from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or f"exit code {error.returncode}").splitlines()[-1]
        raise UserError(
            f"{command[0]} can't get {what} ({reason}): check the network, or {BY_PATH}"
        ) from None
    return done.stdout
