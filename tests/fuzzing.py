"""Take something good and mutate it: what the fuzzers have in common.

`make test` runs a few hundred mutations of each kind, always the same; `make fuzz` runs as many as
ZAPLOCK_FUZZ says, others each time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import scenes
from drawn import drawn
from hypothesis import settings
from hypothesis import strategies as st

from zaplock.errors import UserError
from zaplock.trace import recording_file

RUNS = int(os.environ.get("ZAPLOCK_FUZZ", "0"))
LONGEST_S = 5.0
HERE = Path(__file__).parent
WORDS = (
    *(b"0", b"-1", b"1e999", b"99999999999999999999", b"18446744073709551616", b"nan", b"\x00"),
    *(b"\xff\xfe", b"[" * 300, b"{" * 300, b'"', b"'", b"\n", b"=", b"0x", b"<<", b"\x1b[2J"),
)

fuzz = functools.partial(drawn, derandomize=not RUNS)


def times(count: int) -> settings:
    return fuzz(max_examples=RUNS or count)


def mutations() -> st.SearchStrategy[list[tuple[int, float, float, int]]]:
    """A few changes: what is done, where, over what length, and with what."""
    at = st.floats(0, 1, exclude_max=True)
    one = st.tuples(st.integers(0, 5), at, at, st.integers(0, 255))
    return st.lists(one, min_size=1, max_size=4)


def mutated(content: bytes, changes: list[tuple[int, float, float, int]]) -> bytes:
    raw = bytearray(content)
    for kind, where, length, value in changes:
        at = int(where * len(raw))
        span = int(length * min(64, len(raw) - at)) + 1
        if kind == 0 and raw:
            raw[at] ^= 1 << (value % 8)
        elif kind == 1:
            del raw[at : at + span]
        elif kind == 2:
            raw[at:at] = raw[at : at + span] * (1 + value % 3)
        elif kind == 3:
            raw[at : at + span % 4] = WORDS[value % len(WORDS)]
        elif kind == 4:
            raw[at : at + span] = bytes([value]) * span
        else:
            del raw[at:]
    return bytes(raw)


@contextlib.contextmanager
def well_behaved() -> Iterator[None]:
    """Only UserError, of one line, and soon."""
    began, told = time.thread_time(), ""
    try:
        yield
    except UserError as error:
        told = str(error)
    assert "\n" not in told
    assert time.thread_time() - began < LONGEST_S, "that took too long"


@functools.cache
def folder() -> Path:
    made = Path(tempfile.mkdtemp(prefix="zaplock-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def written(name: str, content: bytes) -> Path:
    path = folder() / name
    path.write_bytes(content)
    return path


@functools.cache
def good_recording() -> dict[str, bytes]:
    path = folder() / "good.zaplock"
    recording_file.write(
        path, scenes.database(), recording_file.Manifest(source="simulation", kernel="6.18.44")
    )
    return {one.name: one.read_bytes() for one in sorted(path.iterdir())}


def recording_with(files: dict[str, bytes]) -> Path:
    path = folder() / "bad.zaplock"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@functools.cache
def good_scenarios() -> list[bytes]:
    source = HERE.parent / "src/zaplock/check/scenario_files"
    return [one.read_bytes() for one in sorted(source.glob("*.toml"))]
