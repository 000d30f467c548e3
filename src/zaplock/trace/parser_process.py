"""Be the process that parses tables for another (`separate_parser`): a script, with arro3 alone.

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

_BATCH = 1 << 16
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET = range(1, 11)
_STRUCT = 12


def main() -> None:
    """Answer until nobody asks any more. Arguments: a socket's descriptor, where arro3 lies."""
    sys.path.append(sys.argv[2])
    # What a terminal or `timeout` sends to a whole group is for who asks, which ends this process.
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from arro3 import io as arrow

    arrow.read_parquet(
        io.BytesIO(_smallest(arrow))
    ).read_all()  # what it needs is there from now on
    base = _address_space()
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        while True:
            message, files, *_ = socket.recv_fds(asker, 1 << 16, 1)
            if not message:
                return
            asker.send(json.dumps(_answer(arrow, base, json.loads(message), files[0])).encode())
            os.close(files[0])


def _answer(arrow: Any, base: int, request: dict[str, Any], file: int) -> dict[str, Any]:
    _limit(resource.RLIMIT_AS, base + request["bytes"])
    _limit(resource.RLIMIT_CPU, int(_cpu_s()) + 1 + request["cpu_s"])
    try:
        content = io.BytesIO(os.pread(file, os.fstat(file).st_size, 0))
        if request["ask"] == "look":
            columns = arrow.read_parquet(content).schema.names
            return {"rows": rows_of(content.getvalue()), "columns": columns}
        read = arrow.read_parquet(content, batch_size=_BATCH).read_all()
        table = read.select(request["columns"])
        os.ftruncate(file, 0)
        with os.fdopen(os.dup(file), "wb") as out:
            out.seek(0)
            arrow.write_ipc(table, out)
    except BaseException as error:  # a PanicException of Rust is no Exception
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


def _smallest(arrow: Any) -> bytes:
    from arro3.core import Array, DataType, Table

    file = io.BytesIO()
    texts = Array(["x"], DataType.large_utf8())
    arrow.write_parquet(Table.from_pydict({"texts": texts}), file, compression="zstd(1)")
    return file.getvalue()


def rows_of(content: bytes) -> int:
    """Return how many rows a Parquet file says it has: the third field of its footer.

    The footer is Thrift's compact protocol (parquet.thrift, struct FileMetaData).
    """
    length = int.from_bytes(content[-8:-4], "little")
    if content[-4:] != b"PAR1" or length + 8 > len(content):
        raise ValueError("it is no Parquet file")
    footer, number = _Thrift(content[-8 - length : -8]), 0
    while number < 3:
        header = footer.byte()
        number = number + (header >> 4) if header >> 4 else footer.number()
        if number == 3:
            return footer.number()
        if header & 15 == 0:
            break
        footer.skip(header & 15)
    raise ValueError("it does not say how many rows it has")


class _Thrift:
    """Bytes in Thrift's compact protocol, read one value after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def varint(self) -> int:
        value, shift = 0, 0
        while True:
            part = self.byte()
            value, shift = value | (part & 127) << shift, shift + 7
            if part < 128:
                return value

    def number(self) -> int:
        """Read an integer of any size: zigzag, so that small negative ones are short."""
        value = self.varint()
        return value >> 1 ^ -(value & 1)

    def skip(self, kind: int, *, within: bool = False) -> None:
        """Go past a value; a boolean field is in its header, one `within` a list has a byte."""
        if kind in (_TRUE, _FALSE):
            self._at += within
        elif kind == _BYTE:
            self._at += 1
        elif kind in (_I16, _I32, _I64):
            self.varint()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            length = self.varint()
            self._at += length
        elif kind in (_LIST, _SET):
            header = self.byte()
            for _ in range(self.varint() if header >> 4 == 15 else header >> 4):
                self.skip(header & 15, within=True)
        elif kind == _STRUCT:
            while header := self.byte():
                if not header >> 4:
                    self.varint()
                self.skip(header & 15)
        else:
            raise ValueError("its footer is damaged")


if __name__ == "__main__":
    main()
