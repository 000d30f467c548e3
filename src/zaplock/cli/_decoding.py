"""The child of `zaplock record` that decodes, with the views' words for what was found."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zaplock.cli._shortage import shortage
from zaplock.recorder.decoder_process import serve

if TYPE_CHECKING:
    from zaplock.trace.events import Events


def _already(events: Events, span: tuple[int, int]) -> dict[str, Any]:
    """Say who was found to wait and who to hold, as lines and as plain values."""
    from zaplock.trace.analysis import analyse
    from zaplock.views.initial_state import found_json, found_lines

    analysis = analyse(events, os.uname().release, span=span)
    return {"lines": list(found_lines(analysis)), "rows": found_json(analysis)}


def _said(error: BaseException) -> str:
    return shortage(error, "record") or f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    serve(_already, _said)
