"""What `perf trace` and `ltrace -S` write, as lines of strace.

perf trace names arguments, leaves out those that are zero and takes the prefix off the names of
flags; ltrace writes numbers, and of every call the first four arguments only (so of an mmap not
which file). Of what lies behind a pointer neither tells anything (so of a clone3 no flags).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from zaplock.system_calls import SYSTEM_CALLS

_PERF = re.compile(
    r"^\s{0,40}(?:\?|\d+\.\d+)\s{1,9}\(\s{0,40}(?:\d+\.\d+ ms\s{0,9})?\):\s{1,9}"
    r"(?:[^(]{0,80}?/(\d{1,10})\s{1,9})?(\S.*)$"
)
_PERF_CALL = re.compile(r"^(\w+)\(")
_PERF_RESULT = re.compile(r"\s=\s|\s\.\.\.$")
_PERF_GOES_ON = re.compile(r"^\.\.\. \[continued\]: (\w+)\(\)\)?\s+=\s*+(.*)$")
_PERF_ARGUMENT = re.compile(r"\b(\w{1,40}):(?: |$|(?=\|))")
_LTRACE = re.compile(r"\bSYS_(\w+)(?=\(| resumed>)")
_LTRACE_LINE = re.compile(r"^(?:\[pid\s+\d+\]\s+|\d+\s+)?(?:\d+\.\d+\s+)?SYS_\w+\(")
_LTRACE_CALL = re.compile(
    r"^(.*?\bmmap\([^,()]+, [^,()]+, [^,()]+, )([^,()<\s]+)(\)| <unfinished \.\.\.>)(.*)$"
)
_LTRACE_GONE = re.compile(r" <no return \.\.\.>\s*$")
_NUMBER = re.compile(r"[1-9]\d{0,9}|0|0x[0-9a-f]{1,8}")
_ANONYMOUS = 0x20
UNKNOWN_NAME = "?"
"""Stands for the path of a file of which only the address of its name is told."""

_ORDER = {  # where perf's names are none of the catalogue's
    "mmap": ("addr", "len", "prot", "flags", "fd", "off"),
    "mremap": ("addr", "old_len", "new_len", "flags", "new_addr"),
    "remap_file_pages": ("start", "size", "prot", "pgoff", "flags"),
    "madvise": ("start", "len_in", "behavior"),
    "brk": ("brk",),
    "mbind": ("start", "len", "mode", "nmask", "maxnode", "flags"),
    "set_mempolicy_home_node": ("start", "len", "home_node", "flags"),
    "mincore": ("start", "len", "vec"),
    "pkey_mprotect": ("start", "len", "prot", "pkey"),
    "munmap": ("addr", "len"),
    "shmat": ("shmid", "shmaddr", "shmflg"),
    "shmdt": ("shmaddr",),
    "mlockall": ("flags",),
    "prctl": ("option", "arg2", "arg3", "arg4", "arg5"),
    "execve": ("filename", "argv", "envp"),
    "open": ("filename", "flags", "mode"),
    "openat": ("dfd", "filename", "flags", "mode"),
    "creat": ("pathname", "mode"),
    "memfd_create": ("uname", "flags"),
    "userfaultfd": ("flags",),
    "close": ("fd",),
    "fcntl": ("fd", "cmd", "arg"),
    "dup": ("fildes",),
    "dup2": ("oldfd", "newfd"),
    "dup3": ("oldfd", "newfd", "flags"),
    "ioctl": ("fd", "cmd", "arg"),
    "shmget": ("key", "size", "shmflg"),
    "setrlimit": ("resource", "rlim"),
    "prlimit64": ("pid", "resource", "new_rlim", "old_rlim"),
    "process_madvise": ("pidfd", "vec", "vlen", "behavior", "flags"),
    "clone": ("clone_flags", "newsp", "parent_tidptr", "child_tidptr", "tls"),
    **dict.fromkeys(("mlock2", "msync", "mseal"), ("start", "len", "flags")),
    **dict.fromkeys(("mlock", "munlock"), ("start", "len")),
    "mprotect": ("start", "len", "prot"),
}
_PREFIXES = {
    ("mmap", "prot"): "PROT_", ("mmap", "flags"): "MAP_", ("mprotect", "prot"): "PROT_",
    ("pkey_mprotect", "prot"): "PROT_", ("mremap", "flags"): "MREMAP_",
    ("madvise", "behavior"): "MADV_", ("msync", "flags"): "MS_", ("openat", "flags"): "O_",
    ("open", "flags"): "O_", ("prctl", "option"): "PR_", ("fcntl", "cmd"): "F_",
    ("clone", "clone_flags"): "CLONE_",
    ("setrlimit", "resource"): "RLIMIT_", ("prlimit64", "resource"): "RLIMIT_",
    ("process_madvise", "behavior"): "MADV_",
}  # fmt: skip


def as_strace(lines: Sequence[str]) -> Iterator[str]:
    """Yield lines as strace would have written them; those of strace, and comments, as they are.

    Where ltrace wrote them, calls of libraries are left out.
    """
    is_ltrace = any(map(_LTRACE_LINE.match, lines))
    for line in lines:
        if line.startswith("#"):
            yield line
        elif matched := _PERF.match(line):
            yield f"{_of_perf(matched[1] or '', matched[2].rstrip())}\n"
        elif is_ltrace:
            is_of_system = _LTRACE.search(line) or "+++" in line
            yield _of_ltrace(line) if is_of_system else "\n"  # numbers of lines stay
        else:
            yield line


def _of_ltrace(line: str) -> str:
    """Take the prefix off; of a mapping of memory say that it has no file."""
    named = _LTRACE.sub(lambda m: f"syscall_{int(m[1]):#x}" if m[1].isdigit() else m[1], line)
    if gone := _LTRACE_GONE.search(named):
        end = ") = 0" if "execve" in named else " <unfinished ...>"
        named = f"{named[: gone.start()]}{end}\n"
    cut = _LTRACE_CALL.match(named)
    if cut and _NUMBER.fullmatch(cut[2]) and int(cut[2], 0) & _ANONYMOUS:
        return f"{cut[1]}{cut[2]}, -1, 0{cut[3]}{cut[4]}\n"
    return named


def _of_perf(tid: str, text: str) -> str:
    goes_on = _PERF_GOES_ON.match(text)
    if goes_on:
        result = goes_on[2] or "0"  # a clone's in the child is not written
        return f"{tid} <... {goes_on[1]} resumed>) = {result}".lstrip()
    call, result = _PERF_CALL.match(text), _PERF_RESULT.search(text)
    if call is None or result is None:
        return f"{tid} {text}".lstrip()
    told = text[call.end() : result.start()].rstrip().removesuffix(")")
    arguments = ", ".join(_arguments(call[1], told))
    is_open = result[0].endswith("...")
    end = " <unfinished ...>" if is_open else f") = {text[result.end() :].lstrip()}"
    return f"{tid} {call[1]}({arguments}{end}".lstrip()


def _arguments(name: str, told: str) -> list[str]:
    """Put named arguments into their order; what was left out is zero."""
    parts = _PERF_ARGUMENT.split(told)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    values = {key: value.rstrip(", ") or UNKNOWN_NAME for key, value in pairs}
    values |= {key: UNKNOWN_NAME for key, value in values.items() if value.startswith("|")}
    order = _ORDER.get(name)
    if order is None:
        known = SYSTEM_CALLS.get(name)
        return list(values.values()) or ["0"] * len(known.arguments if known else ())
    if "filename" in values and not values["filename"].startswith('"'):
        values["filename"] = f'"{UNKNOWN_NAME}"'
    if name == "mmap" and "fd" not in values and "ANON" in values.get("flags", ""):
        values["fd"] = "-1"
    return [_prefixed(_PREFIXES.get((name, key), ""), values.get(key, "0")) for key in order]


def _prefixed(prefix: str, value: str) -> str:
    """Give names their prefix back; numbers stay, and what is not told."""
    if value == UNKNOWN_NAME:
        return value
    parts = value.split("|") if prefix else [value]
    return "|".join(
        part if not prefix or _NUMBER.fullmatch(part) or part.startswith(prefix) else prefix + part
        for part in parts
    )
