"""Errors that are the user's to mend: one line, the value, the rule, the way out.

Every verb lets these travel to `zaplock.cli.main`, which prints the line and exits with 2.
A traceback means a fault of zaplock, never of its user.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_ROOM: Final = 200
"""Characters of names that a line has room for: with what stands around them it is under 300."""
_NEAREST: Final = 5


class UserError(Exception):
    """Report bad input or a missing permission; `str(error)` is the one line to print.

    exit_code: of a verb that ends with it.
    """

    exit_code = 2


def no_such(
    kind: str, name: str, known: Iterable[str], *, also: str = "", listed: str = ""
) -> UserError:
    """Say that there is nothing of that name, which one was perhaps meant, and what there is.

    `also`: what else there is. `listed`: where all stand, where they may be many.

    >>> print(no_such("backing", "zeor", ("anonymous", "zero")))
    no backing 'zeor' (did you mean zero?); there are anonymous, zero
    """
    names = list(known)
    there_is = what_there_is(name, names, also=also, listed=listed)
    return UserError(f"no {kind} {name!a}{or_meant(name, names)}; {there_is}")


def what_there_is(name: str, known: Iterable[str], *, also: str = "", listed: str = "") -> str:
    """Name all that there is; where that is too much for a line, those most like a name.

    >>> what_there_is("r7", [f"row-{number}" for number in range(99)], listed="'zaplock rows'")
    "there are row-7, row-97, row-87, row-79, row-78 and 94 others: see 'zaplock rows'"
    """
    names = list(known)
    told = ", ".join(names)
    if len(told) <= _ROOM:
        return f"there are {told}{also}"
    from difflib import get_close_matches

    nearest = get_close_matches(name, names, n=_NEAREST, cutoff=0.0)
    all_stand = f": see {listed}" if listed else ""
    return f"there are {', '.join(nearest)} and {len(names) - len(nearest)} others{also}{all_stand}"


def or_meant(name: str, known: Iterable[str]) -> str:
    """Ask in brackets whether the name most like it was meant; nothing where none is like it."""
    from difflib import get_close_matches  # not for those who spell well: it takes 5 ms

    close = get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class ProtocolError(UserError):
    """Report a protocol or step that does what none may, so that no verdict on it means anything.

    It hides state from the checker, asks a clock, forgets an `await`, or the like.
    """

    exit_code = 4
