"""One word, one meaning: no two public classes of zaplock share a name (docs/glossary.md)."""

import ast
import re
import subprocess
import sys
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


def test_times_are_whole_nanoseconds() -> None:
    """A name that ends with _ns holds an int, or ints: fractions of costs have other names."""
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {name}"
        for path in sorted(SOURCE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        for name, hint in [named_with_type(node)]
        if name.endswith("_ns") and re.search(r"\bfloat\b", hint)
    ]
    assert not found


def named_with_type(node: ast.AST) -> tuple[str, str]:
    """Give what is annotated, and as what; "" for what is not."""
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target), ast.unparse(node.annotation)
    if isinstance(node, ast.arg) and node.annotation:
        return node.arg, ast.unparse(node.annotation)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
        return node.name, ast.unparse(node.returns)
    return "", ""


def test_a_thread_is_it_and_a_user_they() -> None:
    root = SOURCE.parent.parent
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *SOURCE.rglob("*.py")]
    word = re.compile(r"\b(?:he|him|his|himself)\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in pages
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word.search(line)
    ]
    assert not found


def test_what_draws_its_inputs_says_so_by_times() -> None:
    """Hypothesis itself draws others each time, and fails on a busy machine (drawn.py)."""
    loose = [
        f"{path.name}: {node.name}"
        for path in sorted(Path(__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        for called in [{ast.unparse(one).partition("(")[0] for one in node.decorator_list}]
        if "given" in called and "times" not in called
    ]
    assert not loose


def test_the_public_face_tells_what_there_is(tmp_path: Path) -> None:
    """For tab completion and for types: no `Any` hides a part, and what isn't there is an error."""
    import zaplock

    assert {"AddressSpace", "Lab", "buffers", "compare", "release"} <= set(dir(zaplock))
    program = tmp_path / "outside.py"
    program.write_text(
        "import zaplock\n"
        "reveal_type(zaplock.compare)\n"
        "reveal_type(zaplock.Lab)\n"
        "reveal_type(zaplock.release)\n"
        "zaplock.nonsense\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", str(program)]
    # There the cache is that `make lint` has filled.
    root = SOURCE.parent.parent
    said = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False).stdout
    assert 'Module has no attribute "nonsense"' in said
    assert "Found 1 error" in said
    shown = [line for line in said.splitlines() if "Revealed type" in line]
    assert not [line for line in shown if line.endswith('is "Any"')]
    assert "ComparisonResult" in shown[0]
