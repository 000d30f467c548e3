"""Be the process that parses tables for another (`apart`): run as a script, with polars alone.

A request comes as JSON with the descriptor of a memory file, which holds a table as Parquet. The
answer to {"ask": "look"} is what the table says of itself; after {"ask": "parse"} the memory file
holds the wanted columns as Arrow IPC. How much memory and CPU time a request may take stands in it;
one that takes more ends this process, as does whatever else breaks the parser.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import socket
import sys
from typing import Any


def main() -> None:
    """Answer until nobody asks any more. Arguments: a socket's descriptor, where polars lies."""
    sys.path.append(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, for who asks: it ends us
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import polars as pl

    pl.read_parquet(io.BytesIO(_smallest(pl)))  # its threads and pools are there from now on
    base = _address_space()
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        while True:
            message, files, *_ = socket.recv_fds(asker, 1 << 16, 1)
            if not message:
                return
            asker.send(json.dumps(_answer(pl, base, json.loads(message), files[0])).encode())
            os.close(files[0])


def _answer(pl: Any, base: int, request: dict[str, Any], file: int) -> dict[str, Any]:
    _limit(resource.RLIMIT_AS, base + request["bytes"])
    _limit(resource.RLIMIT_CPU, int(_cpu_s()) + 1 + request["cpu_s"])
    try:
        content = io.BytesIO(os.pread(file, os.fstat(file).st_size, 0))
        if request["ask"] == "look":
            rows = pl.scan_parquet(content).select(pl.len()).collect().item()
            return {"rows": rows, "columns": list(pl.read_parquet_schema(content))}
        frame = pl.read_parquet(content, columns=request["columns"])
        os.ftruncate(file, 0)
        with os.fdopen(os.dup(file), "wb") as out:
            out.seek(0)
            frame.write_ipc(out)
    except BaseException as error:  # polars' PanicException is no Exception
        return {"error": (str(error) or type(error).__name__).splitlines()[0][:200]}
    return {}


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _address_space() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _smallest(pl: Any) -> bytes:
    packed = io.BytesIO()
    pl.DataFrame({"number": [1], "text": ["x"]}).write_parquet(packed, compression="zstd")
    return packed.getvalue()


if __name__ == "__main__":
    main()
