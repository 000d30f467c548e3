"""Errors that are the user's to mend: one line, the value, the rule, the way out.

Every verb lets these travel to `zaplock.cli.main`, which prints the line and exits with 2.
A traceback means a fault of zaplock, never of its user.
"""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """Report bad input or a missing permission; `str(error)` is the one line to print.

    exit_code: of a verb that ends with it.
    """

    exit_code = 2


def no_such(kind: str, name: str, known: Iterable[str], also: str = "") -> UserError:
    """Say that there is nothing of that name, which one was perhaps meant, and what there is.

    >>> print(no_such("backing", "zeor", ("anonymous", "zero")))
    no backing 'zeor' (did you mean zero?); there are anonymous, zero
    """
    names = list(known)
    there_are = ", ".join(names) + also
    return UserError(f"no {kind} {name!a}{or_meant(name, names)}; there are {there_are}")


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
