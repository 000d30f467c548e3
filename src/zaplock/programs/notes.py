"""What a recorder notes beside a stopped thread's calls, as lines that begin with `#`.

Its process's maps, the file that it is about to map, how long files are, its limits and
capabilities: all that a replay needs to know and no call tells. How they read stands in `parser`.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import stat
from functools import cache
from pathlib import Path

from zaplock.model import flags as f
from zaplock.oracle import real
from zaplock.programs.file_kinds import is_driver
from zaplock.programs.file_tables import Facts, facts_text
from zaplock.programs.kernel_files import forbids_execution
from zaplock.programs.task_status import leader
from zaplock.programs.text import ADDR_COMPAT_LAYOUT, READ_IMPLIES_EXEC
from zaplock.untrusted_names import read_text

_LIMITS = {
    "Max address space": "as", "Max data size": "data", "Max locked memory": "memlock",
    "Max stack size": "stack",
}  # fmt: skip
_CAPABILITIES = {"ipc_lock": 14, "sys_rawio": 17, "sys_resource": 24}


def maps_lines(tid: int, key: str) -> list[str]:
    """Write the maps of a thread's process as lines of a recording."""
    lines = Path(f"/proc/{tid}/maps").read_text(errors="replace").splitlines()
    return [f"# {key}: {line}" for line in lines]


def sealed_lines(tid: int) -> list[str]:
    """Write what the kernel has sealed of a program before it begins.

    That is page 0 where its personality has one (MMAP_PAGE_ZERO, since 6.14), and the kernel's own
    mappings where it was built so (CONFIG_MSEAL_SYSTEM_MAPPINGS, since 6.16).
    """
    found, span = [], ""
    for line in read_text(f"/proc/{tid}/smaps").splitlines():
        first, *rest = line.split()
        if _SPAN.fullmatch(first):
            span = first
        elif first == "VmFlags:" and "sl" in rest:
            found.append(f"# sealed: {span}")
    return found


_SPAN = re.compile("[0-9a-f]+-[0-9a-f]+")


def have_narrow_addresses(maps: list[str]) -> bool:
    """Return whether lines that `maps_lines` has written are of a 32-bit program."""
    spans = (line.split(None, 3)[2] for line in maps if not line.endswith("[vsyscall]"))
    return max((int(span.partition("-")[2], 16) for span in spans), default=1 << 33) <= 1 << 32


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
    noexec = "noexec" in options or forbids_execution(path)
    seals, huge = None, _bytes(page) if kind == "hugetlbfs" else 0
    if path.startswith("/memfd:"):
        seals, huge = _of_memory(tid, number)
    facts = Facts(number, mode, f"{mount}:{inode}", seals, huge, noexec, kind == "overlay")
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
            size = os.fstatvfs(copy).f_bsize  # st_blksize is tmpfs' wish for huge pages, too
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


def privileges(tid: int) -> list[str]:
    """Write the limits and capabilities that decide about memory."""
    found = [*limits(tid), *capabilities(tid), ipc_line(tid)]
    persona = int(read_text(f"/proc/{tid}/personality"), 16)
    if persona & READ_IMPLIES_EXEC:
        found.append("# capable: read_implies_exec yes")
    if persona & ADDR_COMPAT_LAYOUT or _sysctl("legacy_va_layout"):
        found.append("# capable: bottom_up yes")
    return [*found, *machine_limits(), f"# limit: keys {_keys()}"]


@cache
def _keys() -> int:
    """Return how many protection keys a program has, if the kernel has switched them on."""
    return 16 if "ospke" in read_text("/proc/cpuinfo").partition("\n\n")[0].split() else 0


def ipc_line(tid: int) -> str:
    """Write in which IPC namespace a task is."""
    return f"# ipc: {os.stat(f'/proc/{tid}/ns/ipc').st_ino}"


def segment_lines(tid: int, segment: int, at: int) -> list[str]:
    """Write how long a segment is that was attached at an address, as its mapping shows."""
    for line in read_text(f"/proc/{tid}/maps").splitlines():
        span, _, _, _, inode = line.split(None, 5)[:5]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start == at and inode == str(segment & 0xFFFF_FFFF):
            page = os.statvfs(f"/proc/{tid}/map_files/{span}").f_bsize
            return [f"# segment: {segment} {end - start} {page if page >= f.PMD_SIZE else 0}"]
    return []


def copied_lines(tid: int, child: int) -> list[str]:
    """Write which mappings of drivers a new child has got of its maker (VM_DONTCOPY)."""
    spans = _of_drivers(tid)
    theirs = set(_of_drivers(child)) if spans else set()
    return [f"# copied: {span} {'yes' if span in theirs else 'no'}" for span in spans]


def _of_drivers(tid: int) -> list[str]:
    fields = (line.split(None, 5) for line in read_text(f"/proc/{tid}/maps").splitlines())
    return [found[0] for found in fields if len(found) > 5 and is_driver(found[5].rstrip())]


def limits(tid: int) -> list[str]:
    """Write the limits of a thread's process, soft and hard."""
    found = []
    for line in read_text(f"/proc/{tid}/limits").splitlines():
        for told, name in _LIMITS.items():
            if line.startswith(told):
                soft, hard = line[26:].split()[:2]
                found.append(f"# limit: {name} {soft}")
                found.append(f"# limit: {name}_hard {hard}")
    return found


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
