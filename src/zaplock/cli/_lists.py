"""Lists by comma, as many options take them: each item is there, and there once."""

from __future__ import annotations

from collections.abc import Sequence

from zaplock.errors import UserError


def items(option: str, text: str) -> list[str]:
    """Split the list that an option was given, spaces beside its commas dropped.

    Raises UserError for an empty item and for one that comes twice: it may stand for another.

    >>> items("--cpus", "1,2, 4")
    ['1', '2', '4']
    """
    found = [item.strip() for item in text.split(",")]
    if "" in found:
        raise UserError(
            f"{option} {text!a} has an empty item: leave out the comma, or name what is missing"
        )
    once(option, found)
    return found


def items_of_all(option: str, texts: Sequence[str]) -> list[str]:
    """Split the lists of an option that was given again and again. Raises as `items` does."""
    found = [item for text in texts for item in items(option, text)]
    once(option, found)
    return found


def once(option: str, found: Sequence[str]) -> None:
    """Refuse what is asked for twice. Raises UserError."""
    for item in found:
        if found.count(item) > 1:
            raise UserError(f"{option} has {item!a} {found.count(item)} times: give it once")
