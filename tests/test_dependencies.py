"""What is installed is what was looked at: pinned, hashed, imported; and CI stops without it."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = (
    "constraints.txt",
    "docs/requirements.txt",
    "packaging/requirements.txt",
    "tests/guided-requirements.txt",
)
PINNED = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[\w.!+]+)(?: --hash=sha256:[0-9a-f]{64})+")
INSTALLERS = {"pip", "setuptools"}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lock: str) -> dict[str, str]:
    """Return each package with its version; fail at a line that is no pin with hashes."""
    lines = re.sub(r"\s*\\\n\s*", " ", (ROOT / lock).read_text()).splitlines()
    found = [PINNED.fullmatch(line) for line in lines]
    assert None not in found, [line for line, pin in zip(lines, found) if pin is None]
    return {plain(pin["name"]): pin["version"] for pin in found if pin is not None}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def name_of(requirement: str) -> str:
    return plain(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])


def wanted(*groups: list[str]) -> set[str]:
    return {name_of(one) for group in groups for one in group} - {"zaplock"}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_is_pinned_with_its_hashes_and_no_address(lock: str) -> None:
    assert pins(lock)
    assert "://" not in (ROOT / lock).read_text()


@pytest.mark.parametrize("lock", LOCKS[:2])
def test_the_installer_itself_is_pinned(lock: str) -> None:
    assert pins(lock).keys() >= INSTALLERS


def test_the_build_backend_is_the_pinned_one() -> None:
    pinned = pins("constraints.txt")
    for requirement in project()["build-system"]["requires"]:
        name, _, version = requirement.partition("==")
        assert pinned[plain(name)] == version


def required_by(requirement: Requirement) -> list[Requirement]:
    """Return what a package needs on this machine, with the extras that are asked for."""
    asked = map(Requirement, metadata.requires(requirement.name) or ())
    extras = ("", *requirement.extras)
    return [one for one in asked if one.marker is None
            or any(one.marker.evaluate({"extra": extra}) for extra in extras)]  # fmt: skip


def test_pinned_is_what_somebody_requires_and_nothing_else() -> None:
    todo, seen = [Requirement("zaplock[dev]")], set[str]()
    while todo:
        one = todo.pop()
        if str(one) not in seen:
            seen.add(str(one))
            todo += required_by(one)
    required = {plain(Requirement(one).name) for one in seen} - {"zaplock"}
    assert required | INSTALLERS == pins("constraints.txt").keys()


@functools.cache
def modules() -> dict[str, set[str]]:
    """Return the packages that each importable name belongs to."""
    return {name: set(map(plain, by)) for name, by in metadata.packages_distributions().items()}


@functools.cache
def imports(folder: str) -> set[str]:
    """Return the names that a folder's code, and code in its texts, imports."""
    use = re.compile(r"""\b(?:import|from) (\w+)|importorskip\("(\w+)""")
    texts = [file.read_text() for file in (ROOT / folder).rglob("*.py")]
    return {name for text in texts for found in use.findall(text) for name in found if name}


def is_imported(package: str, *folders: str) -> bool:
    names = {name for name, by in modules().items() if package in by}
    return any(names & imports(folder) for folder in folders)


def is_a_plugin_or_a_command(package: str) -> bool:
    points = metadata.distribution(package).entry_points
    in_make = re.findall(r"\$\(BIN\)/([\w.-]+)", (ROOT / "Makefile").read_text())
    return bool(points.select(group="pytest11")) or package in in_make


def test_what_nothing_uses_is_no_dependency() -> None:
    about = project()["project"]
    extras = about["optional-dependencies"]
    shipped = wanted(about["dependencies"], *(extras[name] for name in extras if name != "dev"))
    assert [one for one in shipped if not is_imported(one, "src")] == []
    unused = [one for one in wanted(extras["dev"]) if not is_imported(one, "src", "tests", "bench")]
    assert [one for one in unused if not is_a_plugin_or_a_command(one)] == []


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("apt-get"), reason="needs apt-get, and root to run it"
)
def test_ci_stops_where_the_package_lists_do_not_come(tmp_path: Path) -> None:
    """On a machine (made up for apt and dpkg) that has no package, and whose mirror is away."""
    for folder in ("lists/partial", "dpkg", "cache/archives/partial", ".ci"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dpkg" / "status").touch()
    (tmp_path / "sources").write_text("deb [trusted=yes] http://127.0.0.1:9/ nowhere main\n")
    settings = {
        "Dir::State::lists": tmp_path / "lists",
        "Dir::State::status": tmp_path / "dpkg" / "status",
        "Dir::Cache": tmp_path / "cache",
        "Dir::Etc::sourcelist": tmp_path / "sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::http::Proxy": "DIRECT",
        "Acquire::Retries": 0,
    }
    lines = [f'{name} "{value}";\n' for name, value in settings.items()]
    (tmp_path / "apt.conf").write_text("".join(lines))
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    made_up = {"APT_CONFIG": str(tmp_path / "apt.conf"), "DPKG_ADMINDIR": str(tmp_path / "dpkg")}
    ended = subprocess.run(
        [tmp_path / ".ci" / "run"], env=os.environ | made_up, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "E: Failed to fetch http://127.0.0.1:9/" in ended.stderr
    assert "Unable to locate package" not in ended.stderr


BESIDE_THE_PACKAGE = """
import sys
before = set(sys.modules)  # an editable installation's finder is here already
import zaplock
at_import = set(sys.modules) - before
from zaplock.cli import _overview, main, parser_of
main(["--help"])
at_help = set(sys.modules) - before
for verb in _overview.SUMMARIES:
    parser_of(verb)
at_parsing = set(sys.modules) - before
for found in (at_import, at_help, at_parsing):
    print("|", *sorted({name.partition(".")[0] for name in found} - sys.stdlib_module_names))
print("|", *sorted(at_import), "|", *sorted(at_help))
"""


def test_a_start_imports_nothing_heavy() -> None:
    """So it answers at once: `import zaplock`, the overview, the arguments of each verb."""
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_THE_PACKAGE], capture_output=True, text=True, check=True
    )
    *_, imported, helped = (set(part.split()) for part in done.stdout.split("|"))
    others = [part.split() for part in done.stdout.split("|")[-5:-2]]
    assert others == [["zaplock"]] * 3
    assert {one for one in imported if "zaplock" in one} == {"zaplock", "zaplock.version"}
    slow = {"asyncio", "importlib.resources", "inspect", "json", "multiprocessing", "subprocess",
            "tempfile", "zaplock.views"}  # fmt: skip
    assert not slow & helped
