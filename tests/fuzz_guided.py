"""Fuzz what reads strangers' files, led by what each input reaches in it (atheris, libFuzzer).

    make fuzz-guided KIND=strace SECONDS=600

Arguments are a kind and libFuzzer's own options. An input that breaks something is written to
`crash-*` and told; `python tests/fuzz_guided.py KIND crash-...` runs it again.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["zaplock"]):
    from zaplock.check.scenarios import read_scenario
    from zaplock.check.tokens import read_token
    from zaplock.errors import UserError
    from zaplock.lab import profiles
    from zaplock.measure.guest import capsule, recording
    from zaplock.oracle import corpus
    from zaplock.programs import parser as strace
    from zaplock.programs.replay import StraceReplay
    from zaplock.recorder import symbols
    from zaplock.trace import foreign

from test_fuzz import good_capsule, good_program, good_traces

HERE = Path(__file__).parent
SHIPPED = HERE.parent / "src" / "zaplock"
MOST = 20_000
INPUT = Path(tempfile.mkdtemp(prefix="zaplock-guided-")) / "input"


def read_capsule(path: Path) -> None:
    found = capsule.read(path)
    if found is not None:
        recording.events(found)


def read_elf(path: Path) -> None:
    with path.open("rb") as file:
        found = symbols.read_elf(file.fileno())
    for offset in (0, 0x1000, (1 << 64) - 1):
        symbols.readable(found.find(offset) or "")


def read_perf_map(path: Path) -> None:
    with path.open("rb") as file:
        symbols.readable(symbols.read_perf_map(file.fileno()).find(4096) or "")


def contents(folder: Path, ending: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob(f"*.{ending}"))]


KINDS: dict[str, tuple[Callable[[Path], object], list[bytes]]] = {
    "strace": (
        lambda path: StraceReplay(strace.parse(path)).play(),
        contents(HERE / "fixtures/strace", "strace"),
    ),
    "trace": (lambda path: foreign.read_foreign(str(path)), good_traces()),
    "sequence": (corpus.load, contents(HERE / "corpus", "json")),
    "scenario": (read_scenario, contents(SHIPPED / "check/scenario_files", "toml")),
    "profile": (profiles.load, [profiles.find(profiles.DEFAULT).read_bytes()]),
    "token": (lambda path: read_token(path.read_text(errors="replace")), []),
    "capsule": (read_capsule, [good_capsule()]),
    "elf": (read_elf, [good_program()]),
    "perf-map": (read_perf_map, [b"4096 100 py::f:/x.py\n"]),
}


def main(arguments: list[str]) -> None:
    """Fuzz a kind until libFuzzer's options say that it is enough."""
    kind, *options = arguments
    read, good = KINDS[kind]

    def one(content: bytes) -> None:
        INPUT.write_bytes(content)
        told = ""
        try:
            read(INPUT)
        except UserError as error:
            told = str(error)
        assert "\n" not in told

    atexit.register(shutil.rmtree, INPUT.parent, ignore_errors=True)
    seeds = INPUT.parent / "seeds"
    seeds.mkdir()
    for number, content in enumerate(good):
        (seeds / str(number)).write_bytes(content[:MOST])
    given = any(not option.startswith("-") for option in options)
    own = [] if given else [str(seeds)]
    atheris.Setup(
        ["fuzz_guided", "-timeout=5", "-rss_limit_mb=1024", f"-max_len={MOST}", *options, *own], one
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
