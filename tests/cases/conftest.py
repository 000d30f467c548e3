"""What the cases share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lend a folder for the programs of a module; without root there is nothing to record."""
    if os.geteuid() != 0:
        pytest.skip("recording needs root")
    return tmp_path_factory.mktemp("cases")
