"""The child of a recorder that decodes what it spools (`decoder_process`), seen from the recorder.

It imports from where the recorder does, and from no directory that somebody happened to start it
in. A terminal's Ctrl-C is not for it: the recorder ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys

import msgspec

from zaplock.outputs import Folder
from zaplock.recorder.decoder_process import DecoderWord
from zaplock.recorder.uninterrupted import uninterrupted

DECODER = "zaplock.recorder.decoder_process"
_START = (
    "import json, runpy, sys\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "module = sys.argv[2]\n"
    "sys.argv[1:3] = []\n"
    "runpy.run_module(module, run_name='__main__')\n"
)


class DecoderChild:
    """A process that decodes. Raises OSError where it can't be started."""

    def __init__(self, what: str, folder: Folder, lock: int, module: str = DECODER) -> None:
        path = json.dumps([one for one in sys.path if one])
        told = [what, str(folder.descriptor), str(lock), str(folder.path)]
        self._seen = b""
        with uninterrupted():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, path, module, *told],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(folder.descriptor, lock),
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)

    def set_nice(self, nice: int) -> None:
        """Let it step aside for the recorded, or no longer."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, nice)

    def wake(self) -> None:
        """Say that there is more."""
        with contextlib.suppress(OSError):  # it has enough to do, or has ended
            os.write(self._in.fileno(), b".")

    def no_more(self) -> None:
        """Say that nobody writes any more."""
        with contextlib.suppress(OSError):
            self._in.close()

    def hear(self, timeout_s: float = 0.0) -> list[DecoderWord] | None:
        """Return what it has said by now; None where it has ended and said all."""
        if not select.select([self._out], [], [], timeout_s)[0]:
            return []
        piece = os.read(self._out.fileno(), 1 << 16)
        if not piece:
            return None
        *lines, self._seen = (self._seen + piece).split(b"\n")
        return [msgspec.json.decode(line, type=DecoderWord) for line in lines]

    @property
    def code(self) -> int:
        """How it ended, once it has said all."""
        return self._process.wait()

    def end(self) -> None:
        """End it, if it has not ended; what it wrote is whole. Twice does no harm."""
        if self._process.poll() is None:
            self._process.terminate()
        self.no_more()
        self._process.wait()
        self._out.close()
