"""The assembled interpreter (stub.S) and the entries of the programs that it runs.

A program is a sequence of 64-byte entries: which handler, which system call, six arguments, and a
place for the result. The bare process runs thousands of system calls from such a program without
a line of Python between them, so what its kernel does is all that changes its address space.

x86-64 only: the stub is machine code, and PAGEMAP_SCAN's number is spelled out in it (Linux 6.7).
"""

from __future__ import annotations

import struct

CODE = bytes.fromhex(
    "4889fbeb0b4989c6488943384883c3408b03488d0de7ffffff4801c1ffe18b4304488b7b08488b7310488b53"
    "184c8b53204c8b43284c8b4b300f05ebc84c8d2dc1ffffff488b7b08488b07ebb84c8d2db1ffffff488b7b08"
    "488b731048893731c0eba2488b7b08488b7310488b0648034318488907eb95488b5b08eb934d85f6758a488b"
    "5b08eb88488b7b0831f631d2b8080000000f054531e4488b7b08488b7318488b531031c00f054885c07e1b49"
    "01c44889c2488b7b20488b7318b8010000000f054c3b632872d04c89e0e933ffffff488b73104c8b7b18498d"
    "4f1048894e28488b7b084889f2be106660c0b8100000000f054989074885c0790231c0488d0440498d77104c"
    "8d04c64d89c44c8d2d200000004c39c67332488b3e4c8b4e08f6461008741f4c39cf731a4c3b6328731a488b"
    "07498904244983c4084881c700100000ebe14883c618ebc94c89e24c29c248c1ea03498957084c89e24c29fa"
    "488b7b204c89feb8010000000f05e992feffff89f8c1e0108b4e0881e1ffff000009c848f7d8488982900000"
    "00488b4a5048898aa8000000c3b80f0000000f05"
)

# Offsets of the handlers in CODE: the first half of an entry's first qword.
SYSCALL = 0x01E
LOAD = 0x03D
STORE = 0x04D
PATCH = 0x063
JUMP = 0x077
JUMP_IF_ZERO = 0x07D
READ = 0x088
SCAN = 0x0D2
ON_SIGNAL = 0x173
RESTORER = 0x199

ENTRY = 64
RESULT = 56  # where in an entry its result is

_PACK = struct.Struct("<IIQQQQQQQ").pack
_MASK = (1 << 64) - 1


def entry(handler: int, *arguments: int, number: int = 0) -> bytes:
    """Pack one entry; `number` is the system call's, arguments are taken modulo 2**64."""
    a = [value & _MASK for value in arguments] + [0] * (6 - len(arguments))
    return _PACK(handler, number, a[0], a[1], a[2], a[3], a[4], a[5], 0)


def syscall(number: int, *arguments: int) -> bytes:
    """Pack the entry of one system call."""
    return entry(SYSCALL, *arguments, number=number)
