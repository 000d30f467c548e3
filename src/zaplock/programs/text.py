"""The words of a line of strace: where an argument ends, which number it stands for, which file.

strace writes what people read, so nothing here is fixed: paths hold commas, brackets and
parentheses (`3<a(b>`), sockets hold `->`, numbers that have no name come beside names that have one
(`0x8 /* MAP_??? */|MAP_ANONYMOUS`), and old versions know fewer names.
"""

from __future__ import annotations

import re
from contextlib import suppress

from zaplock.model import flags as model_flags

CONSTANTS = {
    name: value
    for name, value in vars(model_flags).items()
    if name.startswith(("MAP_", "PROT_", "MADV_", "MREMAP_", "MCL_")) and isinstance(value, int)
} | {
    "NULL": 0, "MAP_FILE": 0, "MAP_ANON": 0x20, "MLOCK_ONFAULT": 1,
    "MS_ASYNC": 1, "MS_INVALIDATE": 2, "MS_SYNC": 4,
    "MAP_HUGE_SHIFT": 26, "PROT_SEM": 8,
    "MAP_HUGE_2MB": 21 << 26, "MAP_HUGE_1GB": 30 << 26, "MAP_UNINITIALIZED": 0x400_0000,
    "RLIM_INFINITY": (1 << 64) - 1, "RLIM64_INFINITY": (1 << 64) - 1,
    "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9,
    "SHM_RDONLY": 0o10000, "SHM_RND": 0o20000, "SHM_REMAP": 0o40000, "SHM_EXEC": 0o100000,
    "SHM_HUGETLB": 0o4000, "SHM_NORESERVE": 0o10000, "IPC_CREAT": 0o1000, "IPC_EXCL": 0o2000,
    "SHM_HUGE_SHIFT": 26, "SHM_HUGE_2MB": 21 << 26, "SHM_HUGE_1GB": 30 << 26,
    "PR_SET_VMA": 0x53564D41, "PR_SET_VMA_ANON_NAME": 0, "PR_SET_MDWE": 65, "PR_SET_MM": 35,
    "PR_MDWE_REFUSE_EXEC_GAIN": 1, "PR_MDWE_NO_INHERIT": 2, "PR_SET_THP_DISABLE": 41,
    "PR_SET_MEMORY_MERGE": 67, "PR_SET_SECCOMP": 22,
    "CLOSE_RANGE_UNSHARE": 2, "CLOSE_RANGE_CLOEXEC": 4, "CLONE_FILES": 0x400,
    "CLONE_NEWIPC": 0x800_0000, "CLONE_VM": 0x100, "CLONE_THREAD": 0x10000, "CLONE_VFORK": 0x4000,
    "MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3, "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6, "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13,
    "MPOL_MF_STRICT": 1, "MPOL_MF_MOVE": 2, "MPOL_MF_MOVE_ALL": 4, "IPC_PRIVATE": 0, "IPC_RMID": 0,
    "UFFDIO_REGISTER_MODE_MISSING": 1, "UFFDIO_REGISTER_MODE_WP": 2,
    "UFFDIO_REGISTER_MODE_MINOR": 4,
    "ARCH_MAP_VDSO_X32": 0x2001, "ARCH_MAP_VDSO_32": 0x2002, "ARCH_MAP_VDSO_64": 0x2003,
    "PKEY_DISABLE_ACCESS": 1, "PKEY_DISABLE_WRITE": 2,
    "MFD_CLOEXEC": 1, "MFD_ALLOW_SEALING": 2, "MFD_HUGETLB": 4, "MFD_NOEXEC_SEAL": 8,
    "MFD_EXEC": 16, "MFD_HUGE_2MB": 21 << 26, "MFD_HUGE_1GB": 30 << 26,
    "O_RDONLY": 0, "O_WRONLY": 1, "O_RDWR": 2,
    "F_DUPFD": 0, "F_DUPFD_CLOEXEC": 1030, "F_ADD_SEALS": 1033,
    "F_SEAL_SEAL": 1, "F_SEAL_SHRINK": 2, "F_SEAL_GROW": 4, "F_SEAL_WRITE": 8,
    "F_SEAL_FUTURE_WRITE": 16, "F_SEAL_EXEC": 32,
}  # fmt: skip
"""The names that strace writes for the numbers that the replay asks for."""

LIMITS = {CONSTANTS[f"RLIMIT_{name.upper()}"]: name for name in ("as", "data", "memlock", "stack")}
"""How a recording's notes name the limits that decide about memory, by their numbers."""

READ_IMPLIES_EXEC = 0x40_0000
"""The personality in which what can be read can be executed."""
ADDR_LIMIT_3GB = 0x800_0000
"""The personality in which a 32-bit program has 3 GiB."""
ADDR_COMPAT_LAYOUT = 0x20_0000
"""The personality in which mappings go up, as they did before 2.6."""

_CLOSERS = {"(": ")", "[": "]", "{": "}"}


def arguments_and_rest(text: str) -> tuple[list[str], str] | None:
    """Split what follows `name(` into its arguments and what comes after the closing parenthesis.

    None where there is no closing parenthesis: the line has been cut.
    """
    found: list[str] = []
    closers: list[str] = []
    begin = k = 0
    last_comment = text.rfind("*/")
    while k < len(text):
        character = text[k]
        if closers and closers[-1] == ">":  # a path: only angle brackets count
            k = _in_angle(text, k, closers)
        elif character == '"':
            k = _end_of_string(text, k)
        elif text.startswith("/*", k):
            k = text.find("*/", k) + 1 if k < last_comment else k
        elif character == "<" and text[k - 1 : k].isalnum() and not text.startswith("<<", k):
            closers.append(">")
        elif character == "<" and text.startswith("<<", k):
            k += 1
        elif character in _CLOSERS:
            closers.append(_CLOSERS[character])
        elif closers and character == closers[-1]:
            closers.pop()
        elif character == ")" and not closers:
            if text[begin:k].strip():
                found.append(text[begin:k].strip())
            return found, text[k + 1 :]
        elif character == "," and not closers:
            found.append(text[begin:k].strip())
            begin = k + 1
        k += 1
    return None


def _in_angle(text: str, k: int, closers: list[str]) -> int:
    if text[k] == "<":
        closers.append(">")
    elif text[k] == ">" and text[k - 1] != "-":
        closers.pop()
    return k


def _end_of_string(text: str, k: int) -> int:
    k += 1
    while k < len(text) and text[k] != '"':
        k += 2 if text[k] == "\\" else 1
    return k


def split_arguments(text: str) -> list[str]:
    """Split at the commas that are not inside brackets, angle brackets, comments or quotes."""
    split = arguments_and_rest(text + ")")
    return split[0] if split else [text]


def number(text: str) -> int:
    """Return the value of an argument: a number, names joined by |, a shift, a product.

    Raises ValueError for what is none of these.
    """
    value = 0
    for part in without_comments(text).split("|"):
        value |= _term(part.strip())
    return value


def known_flags(text: str) -> int:
    """Return those of an argument's flags that have a number here; the others don't matter."""
    value = 0
    for part in without_comments(text).split("|"):
        with suppress(ValueError):
            value |= _term(part.strip())
    return value


def without_comments(text: str) -> str:
    """Return a text without what stands in /* */, as -X verbose writes names beside numbers."""
    before = ""
    while before != text:  # 0x28 /* 0x8 /* MAP_??? */|MAP_ANONYMOUS */
        before, text = text, _COMMENT.sub("", text)
    return text


_COMMENT = re.compile(r"/\*(?:(?!/\*).)*?\*/")
"""One that has no other in it."""


def _term(part: str) -> int:
    if "<<" in part:
        left, right = part.split("<<")
        return _term(left) << _term(right)
    if "*" in part:
        left, right = part.split("*")
        return _term(left) * _term(right)
    if part in CONSTANTS:
        return CONSTANTS[part]
    if part.startswith("~"):
        return ~_term(part[1:])
    if len(part) > 1 and part[0] == "0" and part.isdigit():
        return int(part, 8)
    try:
        return int(part, 0)
    except ValueError:
        told = "its value is not in the recording" if part == "?" else f"{part!r} is no number"
        raise ValueError(told) from None


def file_of(text: str) -> str:
    """Return the path behind a descriptor argument as `-y` shows it, "" for none."""
    matched = re.match(r"^-?\w+<(.*)>(?:\(deleted\))?$", text)
    if not matched:
        return ""
    path = matched[1]
    path = path.split("<", 1)[0] if path.endswith(">") else path  # -yy: </dev/null<char 1:3>>
    return unescaped(path.removesuffix(" (deleted)").removesuffix("(deleted)"))


def quoted(text: str) -> str:
    """Return what stands in the quotes that an argument begins with, as maps would write it.

    Raises ValueError where there are none, or where strace has cut what is in them (-s).
    """
    end = _end_of_string(text, 0)
    if not text.startswith('"') or text[end : end + 1] != '"':
        raise ValueError(f"{text!r} is no string")
    if text.startswith("...", end + 1):
        raise ValueError(f"{text} is cut: record with a longer -s")
    return unescaped(text[1:end])


def unescaped(path: str) -> str:
    """Return a path that is written as a string of C as maps writes it, where only lines are."""
    if "\\" not in path:
        return path
    told = _ESCAPE.sub(_character, path.encode(errors="replace")).decode(errors="replace")
    return told.replace("\n", "\\012")


_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-f]{2}|.)")
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f"}


def _character(escaped: re.Match[bytes]) -> bytes:
    told = escaped[1]
    if told[:1].isdigit():
        return bytes([int(told, 8) & 0xFF])
    return bytes([int(told[1:], 16)]) if len(told) == 3 else _LETTERS.get(told, told)


def descriptor(text: str) -> int:
    """Return the number of a descriptor argument. Raises ValueError where there is none."""
    value = int(re.split(r"[<\s]", text, maxsplit=1)[0], 0)
    return value - (1 << 32) if 1 << 31 <= value < 1 << 32 else value  # -e raw=all: 0xffffffff


def field(text: str, name: str) -> str:
    """Return the value of `name=` in a structure as strace writes it, "" where it isn't there."""
    matched = re.search(rf"\b{name}=([^,}}\s]+)", text)
    return matched[1] if matched else ""
