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
    "3427488b53104c29e2b8000c00004839c2480f47d04f8d1426b8110000000f054885c07e2c4901c44b8d0426"
    "483b4328731f4c3b631072c2488b7b204c89fe4c89e2b8010000000f054d01e64531e4eba9488b7b304885ff"
    "745a4d85f6754e4bc7042700000000498d4c240748c1e9034c3927752331c04839c87410498b14c7483b54c7"
    "10751148ffc0ebeb48c7c0ffffffffe991feffff4c3b6708770f4c89274883c7104c89fef348a5eb0748c707"
    "ffffffff488b7b204c89fe4c89e2b8010000000f054b8d0426e95bfeffff488b73104c8b7b18498d4f104889"
    "4e28488b7b084889f2be106660c0b8100000000f0549890749c74708000000004885c0790231c0488d044049"
    "8d77104c8d04c64d89c44531f64c8d2d9900000031ed4c39c60f8386000000488b3e4c8b4e08f64610087470"
    "4c39cf736b4c3b632872304989fd4989f24c89e24c29fa4901d6488b7b204c89feb8010000000f054d89c74d"
    "89c44c89d64c89ef4c8d2d460000004839ef0f82ae0000004989f2488b07498904244983c4084881c7001000"
    "004c89c8482b06483d0000004072994881c700f01f00eb904883c618e971ffffff4d29fce99cfeffff4c89d6"
    "4881e700f0ffff48890556120000483dfefff4ff75b04889fd4881cdffff1f0048ffc5f6461040759d4989f5"
    "4989fa488d15c611000048897a10bf07000000be116668c0b8100000000f054c89d74c89ee4c8d2da5ffffff"
    "31ed4885c0480f446a20488b05fb110000e958fffffff646104075304989f54889febf6300000031d241ba08"
    "000000b80e0000000f054889f74c89ee4c8d2d62ffffff83f8f20f851cffffff488b05b9110000e916ffffff"
    "488b7b08f048ff0f41bc0010000048833f007e10f39041ffcc75f3b8180000000f05ebe44c8b63104d85e474"
    "0549ffccebf631c0e988fcffff89f8c1e0108b4e0881e1ffff000009c848f7d8488b7e1031e441ffe5"
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
SCAN = 0x1AA
MEET = 0x344
ON_SIGNAL = 0x37D

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
