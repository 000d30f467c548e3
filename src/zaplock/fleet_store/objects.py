"""Objects behind an fsspec URL: put whole, listed without trust, tried again.

What is counted on, and nothing else: an object that was put can be read by its name afterwards. Not
counted on: that a listing shows at once what was put; that a put which failed left nothing, or
which didn't left all. So a put is followed by a look at the object's size, and is done again, with
the same name and the same bytes, until that is right.

In a directory (`file`) a put is written beside and renamed, so that it is whole or not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from zaplock import outputs
from zaplock.errors import UserError
from zaplock.extras import needed

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")
TRIES = 5
_FIRST_PAUSE_S = 0.05


class Torn(OSError):
    """An object is not what was put: the put is done again."""


class Objects:
    """The objects below a URL. `pause` waits between tries, and is told for how many seconds."""

    def __init__(
        self,
        url: str,
        files: AbstractFileSystem | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self._pause = pause
        self.files, self.root = (files, url) if files is not None else _opened(url)
        self.root = self.root.rstrip("/")
        self.retries = 0
        """How often something had to be tried again."""

    @property
    def local(self) -> bool:
        """Whether it is a directory of this machine."""
        return "file" in _protocols(self.files)

    def full(self, path: str) -> str:
        """Return an object's path as the file system knows it."""
        return f"{self.root}/{path}"

    def put(self, path: str, content: bytes) -> None:
        """Put an object whole. Raises UserError where that fails again and again."""
        self._patiently(lambda: self._put_once(path, content), f"{self.url}: {path}")

    def _put_once(self, path: str, content: bytes) -> None:
        full = self.full(path)
        if self.local:
            outputs.write(full, content, parents=True, mode=0o640)
        else:
            self.files.pipe_file(full, content)
        if self._size(full) != len(content):
            raise Torn(f"{path} is not whole")

    def _size(self, full: str) -> int:
        self.files.invalidate_cache()
        return int(self.files.info(full)["size"])

    def get(self, path: str) -> bytes:
        """Read an object. Raises FileNotFoundError where there is none."""
        content: bytes = self._patiently(
            lambda: self.files.cat_file(self.full(path)), f"{self.url}: {path}"
        )
        return content

    def get_all(self, paths: list[str]) -> dict[str, bytes]:
        """Read several objects at once; those that can't be read are left out."""
        if self.local:
            found = ((path, self._read(path)) for path in paths)
            return {path: content for path, content in found if content is not None}
        full = {self.full(path): path for path in paths}
        got: dict[str, Any] = self.files.cat(list(full), on_error="omit") if full else {}
        return {
            full.get(name, full.get(f"/{name}", name)): content for name, content in got.items()
        }

    def _read(self, path: str) -> bytes | None:
        try:
            with open(self.full(path), "rb") as file:
                return file.read()
        except OSError:
            return None

    def remove(self, path: str) -> None:
        """Remove an object; one that isn't there is removed."""

        def once() -> None:
            try:
                self.files.rm_file(self.full(path))
            except FileNotFoundError:
                return

        self._patiently(once, f"{self.url}: {path}")

    def sizes(self, below: str) -> dict[str, int]:
        """List the objects below a path with their sizes, by path; {} where there is nothing."""

        def once() -> dict[str, Any]:
            self.files.invalidate_cache()
            try:
                found: dict[str, Any] = self.files.find(self.full(below), detail=True)
            except FileNotFoundError:
                return {}
            return found

        found = self._patiently(once, f"{self.url}: {below}")
        start = f"{self.root}/".lstrip("/")
        return {
            name.lstrip("/").removeprefix(start): int(info.get("size") or 0)
            for name, info in sorted(found.items())
        }

    def folders(self, path: str) -> list[str]:
        """List the names of the folders in one; [] where there is none."""

        def once() -> list[Any]:
            self.files.invalidate_cache()
            try:
                found: list[Any] = self.files.ls(self.full(path), detail=True)
            except FileNotFoundError:
                return []
            return found

        found = self._patiently(once, f"{self.url}: {path}")
        kept = [one["name"] for one in found if one["type"] == "directory"]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in kept)

    def _patiently(self, action: Callable[[], T], what: str) -> T:
        """Do something again while the storage fails, with longer and longer pauses."""
        pause_s = _FIRST_PAUSE_S
        for tries_left in reversed(range(TRIES)):
            try:
                return action()
            except (PermissionError, UserError):
                raise
            except Exception as error:  # each storage has errors of its own
                missing = isinstance(error, FileNotFoundError)
                if missing and (self.local or not tries_left):
                    raise
                if not tries_left:
                    said = (str(error).splitlines() or [type(error).__name__])[0][:200]
                    raise UserError(
                        f"{what} can't be had after {TRIES} tries ({said}): is the storage there?"
                    ) from None
            self.retries += 1
            self._pause(pause_s)
            pause_s *= 2
        raise AssertionError("the last try returns or raises")


def _opened(url: str) -> tuple[AbstractFileSystem, str]:
    with needed(f"the store {url!a}"):
        from fsspec.core import url_to_fs
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"the store {url!a} can't be opened ({error}): give a folder or a URL "
                        "that fsspec knows") from None  # fmt: skip
    return files, str(root)


def _protocols(files: AbstractFileSystem) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
