"""Make the manual pages and the completions of the shells while the package is built.

Everything else is in pyproject.toml. They are made from the parsers of the verbs, so that they say
what `--help` says, and are installed where `man` and the shells look, below the environment's own
prefix.
"""

import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "src"))

from zaplock.cli import _manual  # noqa: E402

PAGES = HERE / "build" / "pages"

setup(
    data_files=[
        (str(folder), [str(file.relative_to(HERE)) for file in files])
        for folder, files in _manual.write(PAGES).items()
    ]
)
