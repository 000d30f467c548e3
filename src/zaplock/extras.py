"""What zaplock does only with a package more, and the extra that brings it.

The core records, explains, simulates and checks; what draws, gives out data frames or works on many
hosts is left to who wants it: `pip install 'zaplock[plots]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from zaplock.errors import UserError

EXTRAS: Final = {
    "IPython": "notebook",
    "altair": "plots",
    "distributed": "cluster",
    "duckdb": "fleet",
    "fsspec": "fleet",
    "google": "perfetto",
    "perfetto": "perfetto",
    "polars": "frames",
    "prometheus_client": "fleet",
    "textual": "live",
    "vl_convert": "plots",
}
"""The extra that brings each package, by the name that is imported."""


def lack(error: ImportError, what: str = "this", extra: str = "") -> str | None:
    """Say in one line which extra brings what could not be imported; None where none does.

    `extra` is the one that `what` needs as a whole, if there is one.
    """
    name = (error.name or "").partition(".")[0]
    if name not in EXTRAS:
        return None
    return f"{what} needs {name}, which isn't here: pip install 'zaplock[{extra or EXTRAS[name]}]'"


@contextmanager
def needed(what: str, extra: str = "") -> Iterator[None]:
    """Raise UserError where an import within fails for want of an extra; `what` needs it.

    `extra` is named where more than one brings the package.
    """
    try:
        yield
    except ImportError as error:
        said = lack(error, what, extra)
        if said is None:
            raise
        raise UserError(said) from None
