"""Other Pythons of this machine, each with what the core and the rows need, hashes checked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.figures import ROOT

MINORS = (11, 12, 13)
NEEDED = ("numpy", "arro3-core", "arro3-io", "msgspec", "rich", "markdown-it-py", "mdurl",
          "pygments", "jinja2", "markupsafe", "demangle", "typing_extensions", "simpy", "salabim",
          "pytest", "pluggy", "iniconfig", "packaging", "setuptools")  # fmt: skip
FOLDER = ROOT / ".venv-bench"


def found(minor: int) -> str | None:
    """Return a Python 3.`minor` that runs: on PATH, of pyenv, or of uv."""
    name = f"python3.{minor}"
    pyenv = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
    uv = sorted((Path.home() / ".local/share/uv/python").glob(f"cpython-3.{minor}.*/bin/python"))
    for python in (shutil.which(name), *map(str, pyenv), *map(str, uv)):
        if python and _is(python, minor):
            return python
    return None


def _is(python: str, minor: int) -> bool:
    says = "import sys; print(sys.version_info[:2])"
    done = subprocess.run([python, "-c", says], capture_output=True, text=True, check=False)
    return done.stdout.strip() == f"(3, {minor})"


def environment(minor: int) -> str | None:
    """Return a Python 3.`minor` that has what is needed, making that first; None: there is none."""
    if sys.version_info[:2] == (3, minor):
        return sys.executable
    python = found(minor)
    if python is None:
        return None
    constraints = (ROOT / "constraints.txt").read_text()
    wanted = needed(constraints)
    folder = FOLDER / f"3.{minor}"
    ready = folder / "installed.txt"
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        listed = folder / "wanted.txt"
        listed.write_text(wanted)
        pip = [str(folder / "bin/pip"), "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--requirement", str(listed)], check=True)
        editable = ["--no-build-isolation", "--editable", str(ROOT)]
        subprocess.run([*pip, *editable], check=True)
        listed.rename(ready)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "compileall", "-q", str(ROOT / "src")], check=True)
    return python


def needed(constraints: str) -> str:
    """Return the part of constraints.txt that the rows need."""
    blocks = re.findall(r"^(?=\S).+(?:\n[ ].+)*\n", constraints, re.MULTILINE)
    names = {_plain(block.split("==")[0]): block for block in blocks}
    return "".join(names[_plain(name)] for name in NEEDED if _plain(name) in names)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
