"""Be the process that decodes what a recorder spools: a child of its, or what goes on after it.

    -m zaplock.recorder.decoder_process follow|rest|glance FOLDER LOCK PATH

FOLDER and LOCK are descriptors: the recording's directory, and the file that says that somebody is
at work on its spool. A byte on stdin says that there is more; its end that nobody writes any more.
Answers are lines of JSON on stdout (`DecoderWord`).

`follow` decodes to the end of the spool while that is written, `rest` what is there. `glance` only
says, as soon as that is settled, who was found to wait or to hold when the recording began, and
changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from zaplock.errors import UserError
from zaplock.outputs import Folder
from zaplock.recorder.flight_limits import Fired

_WAKE_S = 1.0
_LITTLE = 4 << 20
"""What is decoded in a moment, for which we go before others."""


class DecoderWord(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far the decoding is, what was found, or why it ended."""

    events: int = 0
    lost_events: int = 0
    left_bytes: int = 0
    fired: Fired | None = None
    notes: tuple[str, ...] = ()
    found: dict[str, Any] | None = None
    done: bool = False
    error: str = ""
    number: int = 0
    """The errno of an error that has one."""


TellFound = Callable[[Any, tuple[int, int]], dict[str, Any]]
"""Makes of what was found (`Events.found`, the names), and from when until when was recorded,
something to be told."""


def serve(found: TellFound | None = None, said: Callable[[BaseException], str] = str) -> None:
    """Do what the arguments say. `found` tells what a glance sees, `said` an error in one line."""
    for one in (signal.SIGINT, signal.SIGHUP):  # a terminal's, for the recorder: it ends us
        signal.signal(one, signal.SIG_IGN)
    what, descriptor, _, path = sys.argv[1:]
    try:
        folder = Folder(int(descriptor), Path(path))
        if what != "glance":
            _decode(folder, over=what == "rest")
        elif found is not None:
            _glance(folder, found)
    except UserError as error:
        _tell(DecoderWord(error=str(error)))
    except OSError as error:
        _tell(DecoderWord(error=said(error), number=error.errno or 0))
    except Exception as error:
        _tell(DecoderWord(error=said(error)))


def _tell(word: DecoderWord) -> None:
    with contextlib.suppress(BrokenPipeError):  # the recorder was killed; we go on
        sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
        sys.stdout.buffer.flush()


class _More:
    """Waits for what the recorder writes next; at its end there is no more."""

    def __init__(self) -> None:
        self._ended = False

    def __call__(self) -> bool:
        if self._ended:
            return False
        if select.select([0], [], [], _WAKE_S)[0]:
            self._ended = not os.read(0, 1 << 16)
        return True


def _decode(folder: Folder, *, over: bool) -> None:
    from zaplock.recorder import spool
    from zaplock.recorder.scheduling import going_first, import_numpy

    soon = over and spool.size_of(folder) < _LITTLE
    with going_first() if soon else contextlib.nullcontext():
        import_numpy()
        from zaplock.recorder.decode_spool import DecodingState, decode

        def tell(decoded: DecodingState, *, done: bool = False) -> None:
            _tell(
                DecoderWord(
                    decoded.events,
                    decoded.lost_events,
                    0 if done else spool.size_of(folder),
                    decoded.fired,
                    tuple(decoded.notes),
                    done=done,
                )
            )

        tell(decode(folder, more=_More(), tell=tell), done=True)


def _glance(folder: Folder, found: TellFound) -> None:
    from zaplock.recorder.scheduling import going_first, import_numpy

    with going_first():
        import_numpy()
        from zaplock.recorder.beginning import is_trouble
        from zaplock.recorder.decode import nothing
        from zaplock.recorder.decode_spool import begun_decoder
        from zaplock.recorder.spool import SpoolReader
        from zaplock.trace.events import Events

        reader = SpoolReader(folder)
        decoder = begun_decoder(reader)
        watched = decoder.begun.look is None
        for entry in reader.entries(_More()):
            decoder.take(entry)
            if decoder.fired if watched else decoder.stream.begun:
                break
        seen, names = decoder.stream.found, decoder.names
        if any(is_trouble(task, decoder.on_ns) for task in seen):
            operations = tuple(decoder.stream.operations)
            events = Events(nothing(), operations, dict(names.tasks), dict(names.mms), seen)
            told = found(events, (decoder.on_ns, time.monotonic_ns()))
            _tell(DecoderWord(found=told))


if __name__ == "__main__":
    serve()
