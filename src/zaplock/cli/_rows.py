"""How many rows of a table are asked for: `--top`, of every verb that has tables."""

from __future__ import annotations

import argparse

from zaplock.errors import UserError


def add_top(parser: argparse.ArgumentParser, most: int, what: str = "rows of each table") -> None:
    """Add `--top`, which is `most` where nothing is said."""
    parser.add_argument("--top", type=int, default=most, metavar="N", help=f"{what} ({most})")


def require_rows(top: int) -> None:
    """Refuse to show no row at all."""
    if top < 1:
        raise UserError(f"--top {top} is less than 1: ask for at least one row")
