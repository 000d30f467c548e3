"""Each recipe of CONTRIBUTING.md, followed once in a copy of the sources: four files at most."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"
MOST_FILES = 4


class Copy:
    """A copy of the sources in which a recipe is followed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.touched: set[str] = set()
        shutil.copytree(SOURCE, root / "zaplock", ignore=shutil.ignore_patterns("__pycache__"))

    def add(self, name: str, text: str) -> None:
        """Add a file."""
        self.touched.add(name)
        (self.root / "zaplock" / name).write_text(text)

    def before(self, name: str, line: str, text: str) -> None:
        """Put text in front of the first place in a file that begins so."""
        self.touched.add(name)
        path = self.root / "zaplock" / name
        old = path.read_text()
        assert line in old, f"{name} has no {line!r} any more"
        path.write_text(old.replace(line, text + line, 1))

    def run(self, *arguments: str) -> str:
        """Run Python with the copy; return what it prints, whatever its exit code."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(self.root)},
            capture_output=True,
            text=True,
        )
        assert len(self.touched) <= MOST_FILES
        return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    yield Copy(tmp_path)
    shutil.rmtree(tmp_path / "zaplock")


def test_a_change_of_linux(copy: Copy) -> None:
    copy.before(
        "designs/changes.py",
        '    Change(\n        "6.6", "49b0638502da"',
        '    Change("6.6", None, "mm: brk again", "as it was", {"brk_downgrades": False}),\n',
    )
    shown = copy.run("-m", "zaplock", "designs", "6.5", "6.6")
    assert "mm: brk again" in shown
    assert "brk_downgrades" in shown


def test_a_rule(copy: Copy) -> None:
    copy.before(
        "protocols/design.py", '    mseal: Literal["no"', "    msync_refuses: bool = False\n"
    )
    copy.before(
        "designs/changes.py",
        '    Change(\n        "6.6", "49b0638502da"',
        '    Change("6.6", None, "mm: no msync", "msync fails", {"msync_refuses": True}),\n',
    )
    copy.before(
        "protocols/msync.py",
        "    if flags & MS_ASYNC and flags & MS_SYNC:\n",
        "    if cx.design.msync_refuses:\n        return -EINVAL\n",
    )
    program = (
        "from zaplock import AddressSpace\n"
        "for design in 'linux-6.5', 'linux-6.6':\n"
        "    space = AddressSpace(design)\n"
        "    at = space.mmap(4096)\n"
        "    try: print(design, space.call('msync', at, 4096, 4))\n"
        "    except OSError as error: print(design, error.errno)\n"
    )
    assert copy.run("-c", program).split() == ["linux-6.5", "0", "linux-6.6", "22"]


def test_a_system_call(copy: Copy) -> None:
    copy.before(
        "system_calls.py",
        '    _call("shmat", 30,',
        '    _call("touch_vma", 999, "addr length flags", judged=True, errors="ENOMEM"),\n',
    )
    copy.add(
        "protocols/touch_vma.py",
        "from zaplock.model.vma import find_vma\n"
        "from zaplock.protocols.locking import mmap_read_lock, mmap_read_unlock\n"
        "async def touch_vma(cx, start, length, flags):\n"
        "    await mmap_read_lock(cx)\n"
        "    handle = await find_vma(cx.mm, start)\n"
        "    await mmap_read_unlock(cx)\n"
        "    return 0 if handle else -12\n",
    )
    copy.before(
        "protocols/served_calls.py", '    "mmap": mmap.mmap,', '    "touch_vma": touch_vma,\n'
    )
    copy.before(
        "protocols/served_calls.py",
        "from zaplock.protocols.design",
        "from zaplock.protocols.touch_vma import touch_vma\n",
    )
    drawn = "oracle/draw_arguments.py"
    copy.before(drawn, '    "mlock": any_range,', '    "touch_vma": any_range,\n')
    copy.before(drawn, '"mremap": 40, "madvise": 4, "mlock": 2},', '"touch_vma": 9, ')
    program = (
        "from zaplock import AddressSpace\n"
        "from zaplock.check.operations import KINDS\n"
        "from zaplock.oracle import manual, modelops, ops\n"
        "from zaplock.recorder.meanings import SYSCALLS\n"
        "space = AddressSpace()\n"
        "print(space.call('touch_vma', space.mmap(4096), 4096, 0), space.locks)\n"
        "print(KINDS['touch_vma'].arguments, ops.CALLS['touch_vma'][0], "
        "'touch_vma' in modelops.OPERATIONS, manual.WANTED['touch_vma'], "
        "'syscalls:sys_enter_touch_vma' in SYSCALLS)\n"
        "from zaplock.oracle.generate import Generator, Scope\n"
        "drawn = Generator(1, Scope(themes=('move',))).sequence()\n"
        "print('touch_vma' in {op.name for op in drawn})\n"
    )
    assert copy.run("-c", program).splitlines() == [
        "0 ['down_read', 'up_read']",
        "('page', 'pages', 'flags') 999 True ('ENOMEM',) True",
        "True",
    ]


def test_an_invariant(copy: Copy) -> None:
    copy.before(
        "model/violations.py",
        "    USE_AFTER_FREE =",
        '    NO_MSYNC_OF_TWO = "nobody syncs two pages at once"\n',
    )
    copy.before(
        "protocols/msync.py",
        "    await mmap_read_lock(cx)\n    result, held",
        "    if length == 8192:\n"
        "        raise Violation(Invariant.NO_MSYNC_OF_TWO, f'{start:#x}')\n",
    )
    copy.before(
        "protocols/msync.py",
        "from zaplock.protocols.locking",
        "from zaplock.model.violations import Invariant, Violation\n",
    )
    for pages in (1, 2):
        copy.add(
            "check/scenario_files/sync.toml",
            'summary = "a sync"\n[[map]]\npages = [0, 4]\n'
            f'[[task]]\ndo = ["msync 0 {pages} 4 -> 0"]\n',
        )
        said = copy.run("-m", "zaplock", "check", "sync", "--design", "linux-6.6")
        assert ("NO_MSYNC_OF_TWO" in said) == (pages == 2), said


def test_a_backing(copy: Copy) -> None:
    copy.before(
        "experiment.py",
        '    "thp": Backing(',
        '    "shared": Backing(PAGE, "zap_file", "free_file", on_heap=False),\n',
    )
    copy.before(
        "measure/mappings.py",
        '    if backing == "hugetlb":',
        '    if backing == "shared":\n'
        "        flags = sys.MAP_SHARED | sys.MAP_ANONYMOUS | sys.MAP_FIXED\n",
    )
    copy.before(
        "lab/subject.py",
        '    huge = MAP_HUGETLB if backing == "hugetlb"',
        '    if backing == "shared":\n        backing = "file"\n'
        '        new_file(machine, FILE, "shmem", length, "shared")\n'
        "        return await _map(cx, MAPPING, length, MAP_SHARED | MAP_FIXED, FILE)\n",
    )
    copy.before(
        "lab/subject.py",
        '    elif backing == "file":\n        frame',
        "    elif backing == \"shared\":\n        return populate(machine, task, length, 'file')\n",
    )
    copy.before(
        "measure/guest/teardown.c",
        '\telse if (is(backing, "hugetlb"))\n\t\tmap(',
        '\telse if (is(backing, "shared"))\n\t\tmap_file(range);\n',
    )
    simulated = copy.run(
        *[
            "-m",
            "zaplock",
            "compare",
            "2M",
            "--no-measure",
            "--backing",
            "shared",
            "--design",
            "linux-6.6",
        ]
    )
    assert "munmap of 2 MiB of shared memory" in simulated
    real = copy.run(
        *[
            "-m",
            "zaplock",
            "measure",
            "2M",
            "--backing",
            "shared",
            "--bystanders",
            "none",
            "--no-holds",
            "--json",
        ]
    )
    assert '"backing": "shared"' in real


def test_a_tracepoint(copy: Copy) -> None:
    copy.before(
        "trace/event_kinds.py", "    # Events of cpu", "    SHRUNK = 13  # mm_shrunk: length\n"
    )
    copy.before(
        "recorder/meanings.py",
        "    FAULTS[0]: (EventKind.F",
        '    "mm:mm_shrunk": (EventKind.SHRUNK, {"length": "pages"}),\n',
    )
    copy.before(
        "trace/text_events.py",
        '    "contention_begin": _c',
        '    "mm_shrunk": lambda text: '
        '[{"kind": int(EventKind.SHRUNK), "length": int(dict(_VALUE.findall(text))["pages"])}],\n',
    )
    program = (
        "from zaplock.trace import text\n"
        "from zaplock.recorder.meanings import _PLAIN\n"
        "events = text.parse(['a-1 [000] 1.000001: mm_shrunk: pages=7']).events\n"
        "print(events['kind'][0], events['length'][0], 'mm:mm_shrunk' in _PLAIN)\n"
    )
    assert copy.run("-c", program).split() == ["13", "7", "True"]
