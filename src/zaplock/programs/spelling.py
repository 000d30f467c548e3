"""What a recorder writes about a stopped thread: its call as strace would, and its address space.

Numbers stay numbers; only what lies behind a pointer or a descriptor is spelled out.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from zaplock.model import flags as f
from zaplock.model.store import RangeMap
from zaplock.oracle import real, ring
from zaplock.programs.file_tables import Facts, facts_text
from zaplock.programs.text import ADDR_COMPAT_LAYOUT, READ_IMPLIES_EXEC
from zaplock.system_calls import SYSTEM_CALLS
from zaplock.untrusted_names import read_text

CHANGES_PRIVILEGES = ("setuid", "setreuid", "setresuid", "capset", "unshare", "setns")
PLAIN = (
    "mmap", "mprotect", "munmap", "brk", "mremap", "msync", "mincore", "madvise", "shmget", "shmat",
    "shmdt", "dup", "dup2", "dup3", "close", "close_range", "io_uring_setup", "mlock",
    "munlock", "mlockall", "munlockall",
    "remap_file_pages", "mlock2", "pkey_mprotect", "mseal", "io_destroy", "personality",
    "map_shadow_stack", "fork", "vfork", "userfaultfd", "set_mempolicy_home_node", "seccomp",
    "ptrace", *CHANGES_PRIVILEGES,
)  # fmt: skip
"""Calls that the replay reads as plain numbers."""
SPELLED = (
    "clone", "clone3", "io_setup", "execve", "execveat", "mbind", "open", "openat", "openat2",
    "creat",
    "memfd_create", "prctl", "setrlimit", "prlimit64", "process_madvise",
)  # fmt: skip
COMMANDS = {
    0xAA00: "USERFAULTFD_IOC_NEW", 0xC020_AA00: "UFFDIO_REGISTER", 0x8010_AA01: "UFFDIO_UNREGISTER",
    0: "F_DUPFD", 1030: "F_DUPFD_CLOEXEC", 1033: "F_ADD_SEALS",
}  # fmt: skip
"""What is seen of ioctl (what decides which ranges a userfaultfd watches) and of fcntl."""
NUMBERS = {name: SYSTEM_CALLS[name].number for name in (*PLAIN, *SPELLED)}
_ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")
_PAGEMAP_SCAN, _PROCMAP_QUERY = 0xC060_6610, 0xC068_6611
_REGIONS, _FEW, _MOST_HOLES, _SMALL = 2048, 64, 128, 1 << 20
_FILE, _PRESENT, _SWAPPED, _ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_LIMITS = {
    "Max address space": "as", "Max data size": "data", "Max locked memory": "memlock",
    "Max stack size": "stack",
}  # fmt: skip
_CAPABILITIES = {"ipc_lock": 14, "sys_rawio": 17}


def call_text(tid: int, name: str, arguments: tuple[int, ...]) -> str:
    """Write a call that a thread is about to make."""
    spell = _SPELL.get(name)
    told = (
        spell(tid, arguments)
        if spell
        else list(map(hex, arguments[: len(SYSTEM_CALLS[name].arguments)]))
    )
    if name == "mmap":
        told[4] = _descriptor(tid, arguments[4])
    return f"{name}({', '.join(told)})"


def is_recorded(number: int, arguments: tuple[int, ...]) -> bool:
    """Return whether a call is one of those that are recorded."""
    if number in (_IOCTL, _FCNTL):
        return arguments[1] & 0xFFFF_FFFF in COMMANDS
    return number in _RECORDED


_IOCTL, _FCNTL = SYSTEM_CALLS["ioctl"].number, SYSTEM_CALLS["fcntl"].number
_RECORDED = frozenset(NUMBERS.values())

OPENS = ("userfaultfd", "open", "openat", "openat2", "creat", "memfd_create", "dup", "dup2", "dup3")


def result_text(tid: int, name: str, result: int) -> str:
    """Write what a call returned."""
    if (name in OPENS and result >= 0) or (name in ("ioctl", "fcntl") and result > 0):
        return _descriptor(tid, result)
    if -4096 < result < 0:
        code = errno.errorcode.get(-result, "")
        return f"-1 {code} ({os.strerror(-result)})" if code else str(result)
    return hex(result % (1 << 64)) if name in ("mmap", "mremap", "brk", "shmat") else str(result)


def leader(tid: int) -> int:
    """Return the process that a thread is of."""
    return int(read_text(f"/proc/{tid}/status").partition("\nTgid:")[2].split()[0])


def parent(tid: int) -> int:
    """Return the parent of the process that a thread is of."""
    return int(read_text(f"/proc/{tid}/status").partition("\nPPid:")[2].split()[0])


def waits_for_child(pid: int) -> bool:
    """Return whether a process is in a call that waits for a child or a tracee."""
    try:
        return read_text(f"/proc/{pid}/syscall").split(" ")[0] in _WAITING
    except OSError:
        return False


_WAITING = ("61", "247")  # wait4, waitid


def maps_lines(tid: int, key: str) -> list[str]:
    """Write the maps of a thread's process as lines of a recording."""
    lines = Path(f"/proc/{tid}/maps").read_text(errors="replace").splitlines()
    return [f"# {key}: {line}" for line in lines]


def file_lines(tid: int, arguments: tuple[int, ...]) -> list[str]:
    """Write what stands behind the descriptor that an mmap is given, if it maps a file.

    Only what the kernel has at hand is asked for: a file system may be served by a process that
    waits for the recorder.
    """
    number = arguments[4] & 0xFFFF_FFFF
    if arguments[3] & f.MAP_ANONYMOUS or number >> 31:
        return []
    try:
        told = read_text(f"/proc/{tid}/fdinfo/{number}")
        path = os.readlink(f"/proc/{tid}/fd/{number}")
        fields = dict(line.split(":\t", 1) for line in told.splitlines() if ":\t" in line)
        flags = int(fields["flags"], 8)
        mount, inode = fields["mnt_id"], fields["ino"]
    except (OSError, KeyError, ValueError):
        return []
    mode = 3 if flags & _O_PATH else flags & 3
    options, kind, page = _mount(tid, mount)
    noexec = "noexec" in options
    seals, huge = None, _bytes(page) if kind == "hugetlbfs" else 0
    if path.startswith("/memfd:"):
        seals, huge = _of_memory(tid, number)
    facts = Facts(number, mode, f"{mount}:{inode}", seals, huge, noexec)
    return [f"# file: {facts_text(facts)}"]


_O_PATH, _PIDFD_GETFD, _F_GET_SEALS = 0o10000000, 438, 1034
_libc = ctypes.CDLL(None, use_errno=True)


def _of_memory(tid: int, number: int) -> tuple[int | None, int]:
    """Return the seals of a file in memory, and the size of its huge pages."""
    try:
        pidfd = os.pidfd_open(leader(tid))
    except OSError:
        return None, 0
    try:
        copy = _libc.syscall(_PIDFD_GETFD, pidfd, number, 0)
        if copy < 0:
            return None, 0
        try:
            size = os.fstat(copy).st_blksize
            return fcntl.fcntl(copy, _F_GET_SEALS), size if size >= f.PMD_SIZE else 0
        except OSError:
            return None, 0
        finally:
            os.close(copy)
    finally:
        os.close(pidfd)


def _mount(tid: int, number: str) -> tuple[list[str], str, str]:
    """Return a mount's options, its file system and that one's page size, as mountinfo has them.

    Empty for one that no process can see.
    """
    for line in read_text(f"/proc/{tid}/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields = mount.split()
        if fields[0] == number:
            page = _PAGE.search(system)
            return fields[5].split(","), system.split()[0], page[1] if page else ""
    return [], "", ""


_PAGE = re.compile(r"\bpagesize=(\d+[KMG])")


def _bytes(text: str) -> int:
    """Return how many bytes 2M is."""
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]] if text else 0


def hangs_on_pool(tid: int, name: str, arguments: tuple[int, ...]) -> bool:
    """Return whether a call maps huge pages, by its flags or by its file."""
    if name != "mmap" or arguments[3] & f.MAP_HUGETLB:
        return name == "mmap"
    if arguments[3] & f.MAP_ANONYMOUS:
        return False
    try:
        return os.stat(f"/proc/{tid}/fd/{arguments[4] & 0xFFFF_FFFF}").st_blksize >= f.PMD_SIZE
    except OSError:
        return False


def pool_line() -> str:
    """Write how many bytes of huge pages nobody uses or has reserved."""
    return f"# limit: huge_pages {real.free_huge_pages(f.PMD_SIZE) * f.PMD_SIZE}"


def hangs_on_lengths(name: str, arguments: tuple[int, ...]) -> bool:
    """Return whether what a call returns hangs on how long the files are that it works on."""
    return name in ("mlock", "mlock2") or (name == "madvise" and arguments[2] in _POPULATES)


_POPULATES = (f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE)


def length_lines(tid: int, low: int, high: int, told: dict[tuple[int, int], int]) -> list[str]:
    """Write how long the files are that mappings of a range go beyond, unless that was `told`.

    To ask for it takes CAP_CHECKPOINT_RESTORE: without, that is what is written.
    """
    found = []
    for line in Path(f"/proc/{tid}/maps").read_text(errors="replace").splitlines():
        span, _, offset, _, inode = line.split(None, 5)[:5]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if inode == "0" or end <= low or high <= start:
            continue
        try:
            file = os.stat(f"/proc/{tid}/map_files/{start:x}-{end:x}")
        except PermissionError:
            found.append(f"# length: {start:x} unknown")
            continue
        except OSError:
            continue
        key, is_short = (file.st_dev, file.st_ino), file.st_size < int(offset, 16) + end - start
        if stat.S_ISREG(file.st_mode) and (is_short or key in told):
            if told.get(key) != file.st_size:
                found.append(f"# length: {start:x} {file.st_size}")
            told[key] = file.st_size
    return found


def written_ranges(tid: int, known: RangeMap[bool]) -> list[tuple[int, int]]:
    """List where a thread's process has mappings with pages of their own that are not known yet.

    One page tells it of its mapping, so what is known and what is big costs no walk of its pages.
    Where there are many known parts, or before Linux 6.11, the pages themselves are listed.
    Source: PAGEMAP_SCAN (6.7), PROCMAP_QUERY (6.11).
    """
    with open(f"/proc/{tid}/pagemap", "rb", buffering=0) as pagemap:
        runs = [(low, high) for low, high, _ in known.overlapping(0, ring.TASK_SIZE)]
        if len(runs) <= _MOST_HOLES:
            with open(f"/proc/{tid}/maps", "rb", buffering=0) as maps, suppress(OSError):
                return _written_mappings(pagemap, maps, runs)
        pages: list[tuple[int, int]] = []
        begin = 0
        while begin < ring.TASK_SIZE:
            begin, parts = _scan(pagemap, begin, ring.TASK_SIZE, _REGIONS)
            pages += parts
        return beyond(pages, runs)


def _written_mappings(
    pagemap: FileIO, maps: FileIO, known: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """List where mappings have pages of their own outside of known ranges, by their first page.

    Small known ranges are walked with what lies around them: that costs less than one more ioctl.
    """
    found: list[tuple[int, int]] = []
    big = [span for span in known if span[1] - span[0] > _SMALL]
    for low, high in beyond([(0, ring.TASK_SIZE)], big):
        begin = done = low
        while begin < high:
            begin, parts = _scan(pagemap, begin, high, _FEW)
            for start, stop in beyond(parts, known):
                while max(start, done) < stop:  # it may lie in several mappings
                    first, last = _mapping_at(maps, max(start, done))
                    found += beyond([(max(first, done), min(last, high))], known)
                    done = last
    return found


def _scan(pagemap: FileIO, begin: int, end: int, most: int) -> tuple[int, list[tuple[int, int]]]:
    """Look for anonymous pages from `begin` on: how far was looked, and where they are.

    `most`: 1 for the first page alone, else how many ranges of them.
    """
    regions = ctypes.create_string_buffer(24 * most)
    argument = bytearray(struct.pack(
        "<12Q", 96, 0, begin, end, 0, ctypes.addressof(regions), most, most == 1,
        _FILE | _ZERO, _FILE | _ZERO, _PRESENT | _SWAPPED, _PRESENT,
    ))  # fmt: skip
    count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
    parts = [
        (start, stop) for start, stop, _ in struct.iter_unpack("<3Q", regions.raw[: 24 * count])
    ]
    walked = struct.unpack_from("<Q", argument, 32)[0] if count == most else end
    return walked, parts


def _mapping_at(maps: FileIO, address: int) -> tuple[int, int]:
    """Return where the mapping around an address begins and ends. Raises OSError before 6.11."""
    query = bytearray(struct.pack("<3Q", 104, 0, address).ljust(104, b"\0"))
    fcntl.ioctl(maps, _PROCMAP_QUERY, query)
    start, end = struct.unpack_from("<2Q", query, 24)
    return start, end


def beyond(spans: list[tuple[int, int]], known: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return what of sorted spans lies in none of the known ones, which are sorted, too."""
    found = []
    k = 0
    for begin, end in spans:
        low = begin
        while k < len(known) and known[k][1] <= low:
            k += 1
        at = k
        while at < len(known) and known[at][0] < end:
            if low < known[at][0]:
                found.append((low, known[at][0]))
            low = max(low, known[at][1])
            at += 1
        if low < end:
            found.append((low, end))
    return found


def privileges(tid: int) -> list[str]:
    """Write the limits and capabilities that decide about memory."""
    found = [*limits(tid), *capabilities(tid)]
    persona = int(read_text(f"/proc/{tid}/personality"), 16)
    if persona & READ_IMPLIES_EXEC:
        found.append("# capable: read_implies_exec yes")
    if persona & ADDR_COMPAT_LAYOUT or _sysctl("legacy_va_layout"):
        found.append("# capable: bottom_up yes")
    return found + machine_limits()


def limits(tid: int) -> list[str]:
    """Write the limits of a thread's process."""
    return [
        f"# limit: {name} {line[26:].split()[0]}"
        for line in read_text(f"/proc/{tid}/limits").splitlines()
        for told, name in _LIMITS.items()
        if line.startswith(told)
    ]


def capabilities(tid: int) -> list[str]:
    """Write whether a thread may lock memory, and from which address on it may map.

    What it may do in a user namespace of its own does not count.
    """
    held = int(read_text(f"/proc/{tid}/status").partition("CapEff:")[2].split()[0], 16)
    if os.stat(f"/proc/{tid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
        held = 0
    found = [
        f"# capable: {name} {'yes' if held >> bit & 1 else 'no'}"
        for name, bit in _CAPABILITIES.items()
    ]
    is_raw = held >> _CAPABILITIES["sys_rawio"] & 1
    return [*found, f"# limit: lowest {0 if is_raw else _sysctl('mmap_min_addr')}"]


def machine_limits() -> list[str]:
    """Write the machine's own limits: mappings, bytes of memory at once and in huge pages."""
    found = [f"# limit: mappings {_sysctl('max_map_count')}"]
    mode = _sysctl("overcommit_memory")
    if mode != 2:  # then it depends on what others have
        memory = real.total_pages() << 12 if mode == 0 else "unlimited"
        found.append(f"# limit: memory {memory}")
    return [*found, pool_line()]


def _sysctl(name: str) -> int:
    return int(read_text(f"/proc/sys/vm/{name}"))


def _descriptor(tid: int, fd: int) -> str:
    number = struct.unpack("<i", struct.pack("<I", fd & 0xFFFF_FFFF))[0]
    if number < 0:
        return str(number)
    try:
        path = os.readlink(f"/proc/{tid}/fd/{number}")
        if path == "anon_inode:[pidfd]":  # as strace -yy has it
            told = read_text(f"/proc/{tid}/fdinfo/{number}").partition("\nPid:")[2].split()[:1]
            path = f"pid:{told[0]}" if told else path
        elif path.startswith("/") and os.path.isdir(f"/proc/{tid}/fd/{number}"):
            path += "/"
        return f"{number}<{_UNCLEAR.sub(_octal, path)}>"
    except OSError:
        return str(number)


_UNCLEAR = re.compile(r'[\x00-\x1f\\<>"]')


def _octal(character: re.Match[str]) -> str:
    return f"\\{ord(character[0]):03o}"


def _read(tid: int, address: int, length: int) -> bytes:
    try:
        with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(length)
    except (OSError, OverflowError, ValueError):
        return b""


def _string(tid: int, address: int) -> str:
    """Read a string of at most 4096 bytes, page by page, as strace would write it."""
    text = b""
    while address and b"\0" not in text and len(text) < 4096:
        part = _read(tid, address + len(text), 4096 - (address + len(text)) % 4096)
        if not part:
            break
        text += part
    shown = text.partition(b"\0")[0].decode(errors="replace")
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _io_setup(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write a new context, which is where its ring is mapped; before the call it is 0."""
    held = _read(tid, a[1], 8)
    context = f"[{struct.unpack('<Q', held)[0]:#x}]" if len(held) == 8 else hex(a[1])
    return [str(a[0]), context]


def _clone(tid: int, a: tuple[int, ...]) -> list[str]:
    return [f"flags={a[0]:#x}"]


def _clone3(tid: int, a: tuple[int, ...]) -> list[str]:
    held = _read(tid, a[0], 8)
    return [f"{{flags={struct.unpack('<Q', held)[0] if len(held) == 8 else 0:#x}}}", str(a[1])]


def _openat(tid: int, a: tuple[int, ...]) -> list[str]:
    return [hex(a[0]), _string(tid, a[1]), _ACCESS[a[2] & 3]]


def _openat2(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write how a file is opened as far as it decides about mappings."""
    held = _read(tid, a[2], 8)
    flags = struct.unpack("<Q", held)[0] if len(held) == 8 else 0
    return [hex(a[0]), _string(tid, a[1]), f"{{flags={_ACCESS[flags & 3]}}}", str(a[3])]


def _prctl(tid: int, a: tuple[int, ...]) -> list[str]:
    told = [hex(value) for value in a[:5]]
    if a[0] == 0x53564D41 and a[4]:
        told[4] = _string(tid, a[4])
    return told


def _limit(tid: int, address: int) -> str:
    held = _read(tid, address, 16) if address else b""
    if len(held) < 16:
        return "NULL"
    soft, hard = struct.unpack("<QQ", held)
    return f"{{rlim_cur={soft}, rlim_max={hard}}}"


_RESOURCES = {2: "RLIMIT_DATA", 3: "RLIMIT_STACK", 8: "RLIMIT_MEMLOCK", 9: "RLIMIT_AS"}


def _resource(number: int) -> str:
    return _RESOURCES.get(number, str(number))


def _prlimit64(tid: int, a: tuple[int, ...]) -> list[str]:
    return [str(a[0]), _resource(a[1]), _limit(tid, a[2]), hex(a[3])]


def _process_madvise(tid: int, a: tuple[int, ...]) -> list[str]:
    count = min(a[2], 1024)
    held = _read(tid, a[1], 16 * count)
    pairs = struct.iter_unpack("<QQ", held[: len(held) // 16 * 16])
    told = ", ".join(f"{{iov_base={base:#x}, iov_len={length}}}" for base, length in pairs)
    return [_descriptor(tid, a[0]), f"[{told}]", str(a[2]), str(a[3]), str(a[4])]


def _ioctl(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write what a userfaultfd is to watch, or no longer."""
    held = _read(tid, a[2], 24)
    told = hex(a[2])
    if len(held) == 24:
        start, length, mode = struct.unpack("<3Q", held)
        told = f"{{range={{start={start:#x}, len={length:#x}}}, mode={mode:#x}}}"
    return [_descriptor(tid, a[0]), COMMANDS.get(a[1] & 0xFFFF_FFFF, hex(a[1])), told]


def _fcntl(tid: int, a: tuple[int, ...]) -> list[str]:
    command = a[1] & 0xFFFF_FFFF
    return [_descriptor(tid, a[0]), COMMANDS.get(command, hex(command)), hex(a[2])]


def _mbind(tid: int, a: tuple[int, ...]) -> list[str]:
    """Write the mask of nodes as its words, where it can be read."""
    bits = a[4] - 1
    told = [hex(value) for value in a[:6]]
    if a[3] and 0 < bits <= 1 << 15:
        length = (bits + 63) // 64 * 8
        held = _read(tid, a[3], length)
        if len(held) == length:
            words = (f"{word:#x}" for (word,) in struct.iter_unpack("<Q", held))
            told[3] = f"[{', '.join(words)}]"
    return told


_SPELL: dict[str, Callable[[int, tuple[int, ...]], list[str]]] = {
    "clone": _clone,
    "clone3": _clone3,
    "io_setup": _io_setup,
    "execve": lambda tid, a: [_string(tid, a[0])],
    "execveat": lambda tid, a: [hex(a[0]), _string(tid, a[1])],
    "open": lambda tid, a: [_string(tid, a[0]), _ACCESS[a[1] & 3]],
    "openat": _openat,
    "openat2": _openat2,
    "creat": lambda tid, a: [_string(tid, a[0]), "O_WRONLY"],
    "fcntl": _fcntl,
    "ioctl": _ioctl,
    "mbind": _mbind,
    "memfd_create": lambda tid, a: [_string(tid, a[0]), hex(a[1])],
    "prctl": _prctl,
    "setrlimit": lambda tid, a: [_resource(a[0]), _limit(tid, a[1])],
    "prlimit64": _prlimit64,
    "process_madvise": _process_madvise,
}
