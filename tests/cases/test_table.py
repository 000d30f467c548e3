"""The table of the cases (docs/cases.md) names tests that are there, and enough of them."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "cases.md"


def rows() -> list[list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_case_has_its_tests() -> None:
    sources = {path.name: path.read_text() for path in HERE.glob("test_*.py")}
    written = set(re.findall(r"^def (test_\w+)", "\n".join(sources.values()), re.MULTILINE))
    followed = sources["test_services.py"]
    table = rows()
    assert [int(row[0]) for row in table] == list(range(1, 17))
    for row in table:
        named, stack, advice = row[2:]
        assert named.strip("`") in written, row
        assert not stack or stack.strip("`") in written, row
        assert not advice or f'"{advice}", (' in followed or f'("{advice}",' in followed, row
    assert sum(bool(row[3]) for row in table) >= 14
    assert sum(bool(row[4]) for row in table) >= 12
