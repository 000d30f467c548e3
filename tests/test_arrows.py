"""The house has floors: an import may only point down (docs/design.md)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"

# Each package and what it may import. `errors` and `zaplock` itself may be used by everyone.
BELOW = {
    "cli": {"views", "lab", "engines", "designs", "protocols", "model", "kernel", "trace",
            "release", "buffers", "cli", "advise", "api"},
    "views": {"views", "lab", "engines", "trace"},
    "lab": {"lab", "engines", "designs", "protocols", "model", "trace"},
    "engines": {"engines", "designs", "protocols", "model", "trace"},
    "designs": {"designs", "protocols", "model"},
    "protocols": {"protocols", "model"},
    "model": {"model"},
    "kernel": {"kernel", "trace"},
    "trace": {"trace"},
    "release": {"release"},
    "buffers": {"buffers", "release"},
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Name the packages of zaplock that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("zaplock."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "zaplock":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("zaplock.")]
            found |= {name.split(".")[1] for name in names}
    return {name for name in found if name in BELOW}


def files(package: str) -> list[Path]:
    single = SOURCE / f"{package}.py"
    return [single] if single.exists() else sorted((SOURCE / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(BELOW))
def test_arrows_point_down(package: str) -> None:
    for path in files(package):
        above = imports(path) - BELOW[package]
        if package == "kernel" and "oracle" in path.as_posix():
            above -= {"engines", "designs", "protocols", "model"}  # the oracle drives the model
        assert not above, f"{path.relative_to(SOURCE)} imports {sorted(above)} from above"
