"""Recorded programs that change how far their addresses go, or ask for pages and the vdso."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_programs import BEGIN, replay, ruled

NARROW = """\
# pid: 100
# widths: 32 64
# begin: 565a4000-565a6000 r-xp 00000000 fe:00 1 prog
# begin: f7f00000-f7f04000 rw-p 00031000 fe:00 2 ld.so
# begin: fffde000-fffff000 rw-p 00000000 00:00 0 [stack]
"""
FAR = "100 mmap(0xd0000000, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED, -1, 0) = {}\n"
NEXT = "100 mmap(NULL, 4096, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {}\n"
ENOMEM = "-1 ENOMEM (x)"


@pytest.mark.parametrize("flags", ["ADDR_LIMIT_3GB", "PER_LINUX|ADDR_LIMIT_3GB", "0x8000000"])
def test_a_32_bit_program_may_give_up_its_fourth_gib_while_it_runs(
    tmp_path: Path, flags: str
) -> None:
    limits = f"100 personality({flags}) = 0\n"
    beyond = limits + FAR.format(ENOMEM) + NEXT.format(ENOMEM)  # its mappings go on up there
    freed = "100 munmap(0xe0000000, 4096) = -1 EINVAL (x)\n"
    again = "100 personality(PER_LINUX) = 0x8000000\n" + FAR.format("0xd0000000")
    assert ruled(tmp_path, beyond + freed + again, NARROW) == (4, 0, 0)
    assert ruled(tmp_path, FAR.format(ENOMEM), NARROW)[0] == 0


def test_a_64_bit_program_has_all_its_addresses_whatever_its_personality(tmp_path: Path) -> None:
    far = FAR.format("0xd0000000")
    assert ruled(tmp_path, f"100 personality(ADDR_LIMIT_3GB) = 0\n{far}") == (1, 0, 0)


STRICT, MOVES = "MPOL_MF_STRICT", "MPOL_MF_STRICT|MPOL_MF_MOVE"


@pytest.mark.parametrize("flags", [STRICT, MOVES])
def test_which_pages_lie_where_is_not_recorded(tmp_path: Path, flags: str) -> None:
    mapped = "100 mmap(NULL, 8192, PROT_READ, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = 0x7ffff7efe000\n"
    bind = f"100 mbind(0x7ffff7efe000, 4096, MPOL_LOCAL, NULL, 0, {flags}) = -1 EIO (x)\n"
    one = "# end: 7ffff7efe000-7ffff7f00000 r--p 00000000 00:00 0\n"
    two = "# end: 7ffff7efe000-7ffff7eff000 r--p 00000000 00:00 0\n"
    two += "# end: 7ffff7eff000-7ffff7f00000 r--p 00000000 00:00 0\n"
    end = (
        "# pid: 100\n# anon: 7ffffffde000-7ffffffdf000\n"
        + BEGIN.replace("begin", "end")
        + (one if flags == STRICT else two)
    )
    verdict = replay(tmp_path, mapped + bind + end)
    assert (verdict.agreeing, verdict.differing, len(verdict.refused)) == (1, [], 1)
    assert verdict.differing_maps == [], verdict.unknown_borders
    assert verdict.maps == (4 if flags == STRICT else 5)


VDSO = BEGIN + "# begin: 7ffff7f14000-7ffff7f16000 r-xp 00000000 00:00 0 [vdso]\n"


def test_the_vdso_is_mapped_once(tmp_path: Path) -> None:
    maps = "100 arch_prctl(ARCH_MAP_VDSO_64, 0x10000) = {}\n"
    there, gone = maps.format("-1 EEXIST (x)"), "100 munmap(0x7ffff7f14000, 8192) = 0\n"
    assert ruled(tmp_path, there, VDSO) == (1, 0, 0)
    assert ruled(tmp_path, maps.format("8192"), VDSO)[0] == 0
    assert ruled(tmp_path, gone + maps.format("8192"), VDSO) == (1, 0, 1)  # the model has none
    assert ruled(tmp_path, "100 arch_prctl(ARCH_SET_FS, 0x10000) = 0\n", VDSO) == (0, 0, 0)
