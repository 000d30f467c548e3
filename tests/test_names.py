"""One word, one meaning: no two public classes of zaplock share a name (docs/glossary.md)."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert not twice
