"""How many rows of a table are asked for: `--top`, of every verb that has tables."""

from __future__ import annotations

import argparse

from zaplock.errors import UserError


def add_top(parser: argparse.ArgumentParser, most: int, what: str = "rows of each table") -> None:
    """Add `--top`, which is `most` where nothing is said; no row at all is refused."""
    parser.add_argument(
        "--top", type=int, action=_Rows, default=most, metavar="N", help=f"{what} ({most})"
    )


class _Rows(argparse.Action):
    """Take a number of rows, one or more."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        if not isinstance(values, int) or values < 1:
            raise UserError(f"{option_string} {values} is less than 1: ask for at least one row")
        setattr(namespace, self.dest, values)
