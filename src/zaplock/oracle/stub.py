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
    "4881e700f0ffff488b07eba14c8d2d9affffff488b7b084881e700f0ffff488b731048893731c0eb844c8d2d"
    "7dffffff488b7b08488b731048893731c0e96bffffff488b7b08488b7310488b0648034318488907e95bffff"
    "ff488b5b08e956ffffff4d85f60f8549ffffff488b5b08e944ffffff4c8b7b184531f64531e4488b7b084b8d"
    "3427488b53104c29e24f8d1426b8110000000f054885c07e2c4901c44b8d0426483b4328731f4c3b631072ce"
    "488b7b204c89fe4c89e2b8010000000f054d01e64531e4ebb5488b7b304885ff745a4d85f6754e4bc7042700"
    "000000498d4c240748c1e9034c3927752331c04839c87410498b14c7483b54c710751148ffc0ebeb48c7c0ff"
    "ffffffe99dfeffff4c3b6708770f4c89274883c7104c89fef348a5eb0748c707ffffffff488b7b204c89fe4c"
    "89e2b8010000000f054b8d0426e967feffff488b73104c8b7b18498d4f1048894e28488b7b084889f2be1066"
    "60c0b8100000000f0549890749c74708000000004885c0790231c0488d0440498d77104c8d04c64d89c44531"
    "f64c8d2d490000004c39c67370488b3e4c8b4e08f6461008745d4c39cf73584c3b632872294889fd4989f24c"
    "89e24c29fa4901d6488b7b204c89feb8010000000f054d89c74d89c44c89d64889ef488b07498904244983c4"
    "084881c7001000004c89c8482b06483d0000004072ac4881c700f01f00eba34883c618eb8b4d29fce9b8feff"
    "ff488b7b08f048ff0f41bc0010000048833f007e10f39041ffcc75f3b8180000000f05ebe44c8b63104d85e4"
    "740549ffccebf631c0e963fdffff89f8c1e0108b4e0881e1ffff000009c848f7d848898290000000488b4a50"
    "48898aa8000000c3b80f0000000f05"
)

# Offsets of the handlers in CODE: the first half of an entry's first qword.
SYSCALL = 0x01E
LOAD = 0x03D
TOUCH_LOAD = 0x04D
TOUCH_STORE = 0x064
STORE = 0x081
PATCH = 0x09A
JUMP = 0x0B1
JUMP_IF_ZERO = 0x0BA
READ = 0x0CC
SCAN = 0x19E
MEET = 0x269
ON_SIGNAL = 0x2A2
RESTORER = 0x2C8

ENTRY = 64
RESULT = 56  # where in an entry its result is

_PACK = struct.Struct("<IIQQQQQQQ").pack
_PADDING = tuple((0,) * (7 - count) for count in range(7))


def entry(handler: int, *arguments: int, number: int = 0) -> bytes:
    """Pack one entry; `number` is the system call's, arguments are below 2**64."""
    return _PACK(handler, number, *arguments, *_PADDING[len(arguments)])


def syscall(number: int, *arguments: int) -> bytes:
    """Pack the entry of one system call."""
    return _PACK(SYSCALL, number, *arguments, *_PADDING[len(arguments)])
