"""The house has floors: an import may only point down (docs/design.md)."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "zaplock"

# Each room and the rooms that it imports: all of them, and no others. A room is a package or a
# module right below `zaplock`; its row may only name rooms that stand further down in this table.
ROOMS = {
    "__main__": {"cli"},
    "cli": {"advise", "agent", "check", "designs", "engines", "errors", "executors", "experiment",
            "extras", "fleet", "lab", "linux_version", "measure", "oracle", "outputs", "preload",
            "programs", "protocols", "recorder", "replay", "trace", "units", "untrusted_names",
            "version", "views", "workers"},
    "pytest_plugin": {"errors", "recorder", "trace", "units", "views"},
    "__init__": {"api", "author", "buffers", "errors", "notebook", "release", "version"},
    "cell_magic": {"errors", "notebook", "recorder", "trace"},
    "notebook": {"check", "designs", "engines", "experiment", "lab", "measure", "outputs",
                 "scratch", "trace", "units", "views"},
    "views": {"check", "errors", "extras", "fleet", "lab", "linux_version", "outputs", "replay",
              "untrusted_names", "trace", "units"},
    "author": {"check", "designs", "lab", "model", "protocols"},
    "fleet": {"advise", "designs", "errors", "executors", "extras", "fleet_store", "lab",
              "model", "protocols", "replay", "scratch", "trace"},
    "agent": {"errors", "extras", "fleet_store", "outputs", "recorder", "untrusted_names", "trace",
              "version"},
    "advise": {"advice", "errors", "measure", "release", "untrusted_names", "trace", "units"},
    "check": {"designs", "engines", "errors", "executors", "inputs", "lab", "linux_version",
              "model", "protocols", "untrusted_names", "system_calls", "version"},
    "replay": {"designs", "engines", "errors", "lab", "linux_version", "model", "protocols",
               "trace"},
    "programs": {"designs", "engines", "errors", "inputs", "model", "oracle", "outputs",
                 "protocols", "untrusted_names", "system_calls"},
    "oracle": {"advice", "designs", "engines", "errors", "executors", "inputs", "linux_version",
               "measure", "model", "protocols", "recorder", "scratch", "untrusted_names",
               "system_calls", "trace", "workers"},
    "fleet_store": {"errors", "extras", "outputs", "untrusted_names", "trace"},
    "lab": {"designs", "engines", "errors", "executors", "experiment", "extras", "inputs",
            "linux_version", "model", "outputs", "protocols", "untrusted_names", "trace"},
    "measure": {"advice", "compiled", "errors", "experiment", "linux_version", "outputs",
                "recorder", "scratch", "untrusted_names", "system_calls", "trace", "units"},
    "experiment": {"errors", "trace"},
    "recorder": {"errors", "linux_version", "outputs", "untrusted_names", "system_calls", "trace",
                 "version"},
    "api": {"designs", "engines", "errors", "model", "protocols", "system_calls"},
    "engines": {"compiled", "errors", "model", "scratch", "trace"},
    "designs": {"errors", "inputs", "linux_version", "model", "protocols", "vendor_builds"},
    "protocols": {"advice", "errors", "linux_version", "model", "system_calls"},
    "model": {"advice", "errors"},
    "trace": {"advice", "errors", "extras", "inputs", "linux_version", "outputs", "untrusted_names",
              "system_calls", "units", "vendor_builds"},
    "preload": {"compiled", "errors", "release"},
    "buffers": {"errors", "release"},
    "release": {"advice", "errors", "system_calls"},
    "compiled": {"errors", "scratch"},
    "executors": {"errors", "extras", "workers"},
    "inputs": {"errors"},
    "outputs": {"errors"},
    "untrusted_names": set(),
    "workers": {"errors"},
    "scratch": set(),
    "units": {"errors"},
    "extras": {"errors"},
    "errors": set(),
    "linux_version": set(),
    "vendor_builds": set(),
    "advice": set(),
    "system_calls": set(),
    "version": set(),
}  # fmt: skip

LARGEST_SHARE = 0.15
"""Of the lines of `src`, what the biggest room may hold."""


def room_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


def files() -> dict[str, list[Path]]:
    rooms: dict[str, list[Path]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        rooms.setdefault(room_of(path), []).append(path)
    return rooms


def imports(path: Path) -> set[str]:
    """Name the rooms that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "zaplock":
            found |= {alias.name if alias.name in ROOMS else "__init__" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zaplock."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            names = [f"{alias.name}.__init__" for alias in node.names]
            found |= {name.split(".")[1] for name in names if name.startswith("zaplock.")}
    return found - {room_of(path)}


def test_every_room_has_its_row() -> None:
    assert set(files()) == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_its_row_names_and_all_of_it(room: str) -> None:
    used = set()
    for path in files()[room]:
        above = imports(path) - ROOMS[room]
        assert not above, f"{path.relative_to(SOURCE)} imports {sorted(above)}: not in its row"
        used |= imports(path)
    assert ROOMS[room] == used, f"nobody in {room} imports {sorted(ROOMS[room] - used)} any more"


def test_arrows_point_down() -> None:
    order = list(ROOMS)
    up = [(a, b) for a in ROOMS for b in ROOMS[a] if order.index(b) <= order.index(a)]
    assert not up


def test_no_room_has_grown_into_the_whole_house() -> None:
    lines = {
        room: sum(len(p.read_text().splitlines()) for p in paths) for room, paths in files().items()
    }
    biggest = max(lines, key=lambda room: lines[room])
    assert lines[biggest] <= LARGEST_SHARE * sum(lines.values()), f"{biggest} is too big: cut it"
