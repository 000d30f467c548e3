"""Why a recorded result that the model doesn't give may still be right: what a trace doesn't tell.

`reason` returns the one fact that the recording lacks, "" where there is no excuse.
"""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EBADF,
    EBUSY,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    ENODEV,
    ENOMEM,
    ENOSYS,
    ENXIO,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    ETXTBSY,
)

from zaplock.model import flags as f
from zaplock.programs.arguments import numbers
from zaplock.programs.calls import page_size, pidfd_owner
from zaplock.programs.file_kinds import is_driver
from zaplock.programs.ranges import ranges_of
from zaplock.programs.recorded_world import (
    WIDE,
    LiveSpace,
    StraceWorld,
    linker_of,
)
from zaplock.programs.recording import UNKNOWN, StraceRecording, TracedCall
from zaplock.programs.text import CONSTANTS, descriptor, file_of, number
from zaplock.system_calls import CLONES

LIMITED = ("mmap", "mremap", "brk", "mprotect", "munmap", "madvise", "shmat", "mbind")
LOCKING = ("mlock", "mlock2", "mlockall", "mmap", "mremap", "munlock")
OF_FILES = (
    EACCES, EPERM, ENODEV, ETXTBSY, EINVAL, EOVERFLOW, EOPNOTSUPP, ENOMEM, EAGAIN, EIO, ENXIO,
    EBUSY, EBADF,
)  # fmt: skip
OF_PAGES = (
    f.MADV_COLLAPSE, f.MADV_PAGEOUT, f.MADV_COLD, f.MADV_POPULATE_READ, f.MADV_POPULATE_WRITE,
    f.MADV_WILLNEED, f.MADV_REMOVE, 100, 101,
)  # fmt: skip
OF_A_KERNEL = (f.MADV_HUGEPAGE, f.MADV_NOHUGEPAGE, f.MADV_MERGEABLE, f.MADV_UNMERGEABLE)
FIRST_NEW_ADVICE = 18  # MADV_WIPEONFORK, 4.14

NO_POOL = "the pool of huge pages is not in the recording"


def left_out(recording: StraceRecording) -> str:
    """Return which call of those that every dynamic linker makes strace was told to leave out.

    A linker that maps code of a library also asks for the heap and protects what it has relocated,
    and has unmapped its cache, if it has one, before the program grows the heap. "" where all are
    there, or nothing can be said.
    """
    made = [call for call in recording.calls if not call.cut]
    linked = [call for call in made if call.name == "mmap" and is_library(call)]
    if not linked or linker_of(recording.begin) is None:
        return ""
    needed = ["mprotect", "brk"]
    heap = sum(call.name == "brk" for call in made)
    if heap > 1 and any("ld.so.cache" in argument for call in made for argument in call.arguments):
        needed.append("munmap")
    names = {call.name for call in recording.calls}
    missing = [name for name in needed if name not in names]
    told = f"no {' and no '.join(missing)} is in the recording: it was made without"
    return f"{told} (strace -e trace=%memory)" if missing else ""


def is_library(call: TracedCall) -> bool:
    """Return whether a call maps code of a file at a place that its caller has chosen."""
    if len(call.arguments) < 5:
        return False
    try:
        prot, flags = (number(argument) for argument in call.arguments[2:4])
        file = descriptor(call.arguments[4])
    except ValueError:
        return False
    return bool(prot & f.PROT_EXEC and flags & f.MAP_FIXED) and file >= 0


def selected(recording: StraceRecording) -> str:
    """Return which calls strace was told to leave out by how they ended, "" for none (-z, -Z).

    It writes a call when it has ended then, and not that it overlaps others: that of a child comes
    before the call that made it.
    """
    results = [call.result for call in recording.calls if call.result != UNKNOWN]
    if len(results) > 1 and max(results) < 0:
        return "no call in it has succeeded: strace has left out those that did (-Z)"
    names = {call.name for call in recording.calls}
    linked = linker_of(recording.begin) is not None and {"brk", "mprotect"} <= names
    if linked and not names & {"mmap", "mmap2"}:
        return "no mmap is in the recording, which every dynamic linker calls: it was made without"
    told = (argument for call in recording.calls for argument in call.arguments)
    if "io_setup" not in names and any("libaio.so" in argument for argument in told):
        return "libaio is loaded, and whether it has called io_setup is not in the recording"
    gone = {(note.pid, note.line) for note in recording.notes if note.kind == "exit"}
    last: dict[int, int] = {}
    for call in recording.calls:
        made = call.result if call.name in CLONES and call.line == call.end else 0
        first = last.get(made, 0) if made > 0 else 0
        if first and not any(pid == made and first < line < call.line for pid, line in gone):
            return (
                f"process {made} calls before the call that made it: strace has left out which "
                "calls overlap (-z or -e status)"
            )
        last[call.pid] = call.line
    return ""


def may_have_executed(world: StraceWorld, live: LiveSpace, call: TracedCall) -> str:
    """Return why a call may be another program's, "" where none can have been executed unseen.

    A C library asks where the heap is once, when its program begins.
    """
    asks = call.name == "brk" and call.arguments[:1] in (("NULL",), ("0",), ("0x0",))
    if world.sees_execs or not (asks and live.known.heap):
        return ""
    return "whether a program was executed since then is not in the recording: trace execve, too"


def reason(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """Return which fact the recording lacks that would explain a result, "" for none."""
    if call.result == -ENOSYS:
        return f"the recorded kernel has no {call.name}"
    if f.TASK_SIZE_4_LEVELS <= call.result < UNKNOWN:
        return WIDE
    if call.result == -EINTR:
        return "a signal ended the call"
    for rule in _RULES:
        told = rule(world, live, call, got)
        if told:
            return told
    return ""


def _of_file(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name != "mmap" or -call.result not in OF_FILES:
        return ""
    flags = numbers(call, 4)[3]
    if flags & f.MAP_HUGETLB and flags & f.MAP_ANONYMOUS:
        return "" if "huge_pages" in live.known.given else NO_POOL
    if flags & f.MAP_ANONYMOUS:
        return ""
    path = file_of(call.arguments[4])
    file = live.known.files.file(call.pid, descriptor(call.arguments[4]))
    mode = dict(live.known.modes).get(file or 0)
    if mode is not None and call.result == -EACCES and not is_driver(path):
        return ""
    told = path or "the file"
    return f"what {told} allows (how it was opened, its seals, its driver) is not recorded"


def _of_protection(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name not in ("mmap", "mprotect", "pkey_mprotect"):
        return ""
    prot = numbers(call, 3)[2]
    if call.result in (-EACCES, -EPERM) and prot & f.PROT_EXEC:
        return "PR_SET_MDWE, a noexec mount or a security module forbids it; none is recorded"
    if call.result == -EACCES and got == 0 and prot & f.PROT_WRITE and call.name != "mmap":
        return "how the mapped file was opened is not in the recording"
    if call.name == "pkey_mprotect" and live.known.keys is None:
        return "which protection keys are allocated is not in the recording"
    return ""


def _of_keys(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """A mapping that can be executed and not read takes a key, too (execute_only_pkey)."""
    if not call.name.startswith("pkey_") or not live.known.most_keys:
        return ""
    return "whether an execute-only mapping has taken a protection key is not in the recording"


def _of_seals(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.result != -EPERM or world.sees_seals or call.name not in _SEALED:
        return ""
    return "whether the mapping was sealed (mseal) is not in the recording"


_SEALED = ("munmap", "mremap", "mprotect", "pkey_mprotect", "mmap", "madvise", "shmat", "shmdt")


def _of_locking(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name not in LOCKING or "rlimit_memlock" in live.known.given:
        return ""
    locks = call.name not in ("mmap", "mremap") or got >= 0
    if locks and call.result in (-ENOMEM, -EAGAIN, -EPERM) and call.name != "mmap":
        return "RLIMIT_MEMLOCK and CAP_IPC_LOCK are not in the recording"
    if call.name == "mmap" and call.result in (-EAGAIN, -EPERM):
        return "RLIMIT_MEMLOCK and CAP_IPC_LOCK are not in the recording"
    return ""


def _of_length(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """What lies beyond the end of its file can't be locked."""
    known = world.sees_paths and "no lengths" not in live.known.given
    if known or call.name not in ("mlock", "mlock2") or call.result != -ENOMEM:
        return ""
    ranges = ranges_of(call)
    for vma in world.vmas(live):
        if vma.file and any(low < vma.end and vma.start < high for low, high in ranges):
            name = world.machine.files[vma.file].name
            return f"how long {name} is, which is locked with its mapping, is not recorded"
    return ""


def _of_memory(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    refused_brk = call.name == "brk" and got > call.result >= 0
    if call.name not in LIMITED or not (refused_brk or (call.result == -ENOMEM and got >= 0)):
        return ""
    is_bound = call.pid not in live.traced.visitors  # those have limits of their own
    if is_bound and {"rlimit_as", "rlimit_data", "memory", "mappings"} <= live.known.given:
        return ""
    return "limits (RLIMIT_AS, RLIMIT_DATA, memory, map count) are not in the recording"


def _of_pages(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name == "mincore" and call.result == -EFAULT:
        return "where the vector lies is not in the recording"
    is_strict = call.name == "mbind" and number(call.arguments[5]) & CONSTANTS["MPOL_MF_STRICT"]
    if is_strict and -EIO in (call.result, got):
        return "it depends on pages (MPOL_MF_STRICT), which a trace doesn't show"
    return "it depends on pages, which a trace doesn't show" if depends_on_pages(call) else ""


def depends_on_pages(call: TracedCall) -> bool:
    """Return whether a call is an advice that does nothing to mappings, only to their pages."""
    if call.name not in ("madvise", "process_madvise"):
        return False
    return number(call.arguments[2 if call.name == "madvise" else 3]) in OF_PAGES


def _of_monitor(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name != "ioctl" or got:
        return ""
    return "what the userfaultfd was asked to be (UFFDIO_API) is not in the recording"


def _of_kernel(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.result != -EINVAL or got != 0:
        return ""
    if call.name == "prctl":
        return "the recorded kernel has no such prctl"
    if call.name != "madvise":
        return ""
    advice = number(call.arguments[2])
    if advice in OF_A_KERNEL or advice >= FIRST_NEW_ADVICE:
        return "the recorded kernel was built without this advice, or is older"
    return ""


def _written(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """A mapping here may be two there, if pages of both had been written before they touched."""
    if call.name != "mremap" or call.result != -EFAULT or got < 0:
        return ""
    start, length = numbers(call, 2)
    if any(start < joint < start + length for joint in live.joints):
        return "whether two mappings had become one depends on which pages were written"
    return ""


def _cut(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """A list of calls by name (strace -e trace=mmap,...) may lack those that cut mappings."""
    if call.name != "mremap" or call.result != -EFAULT or got < 0 or world.sees_cuts:
        return ""
    return "whether mlock or madvise has cut the mapping is not in the recording: trace %memory"


CUTTING = frozenset(
    {"madvise", "mlock", "mlock2", "mlockall", "msync", "mincore", "mbind", "mseal"}
)
"""Who has one of these in a recording has them all, most likely: %memory, or all calls."""


def _of_driver(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """Mappings of devices, rings and sockets may not be cut, moved or protected as others are.

    Some choose where they are mapped, too (get_unmapped_area: a bpf arena, a frame buffer).
    """
    if call.name == "mmap" and call.result >= 0 <= got and is_driver(file_of(call.arguments[4])):
        return f"where the driver of {file_of(call.arguments[4])} has it mapped is its own to say"
    ranges = ranges_of(call)
    for vma in world.vmas(live):
        meets = any(low < vma.end and vma.start < high for low, high in ranges)
        if meets and vma.file in world.drivers:
            name = world.machine.files[vma.file].name
            return f"what the driver of {name} lets be done with its mappings is not recorded"
    return ""


def _of_stack(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """A stack grows when it is touched, which is no call."""
    if world.sees_paths or not live.stack_end:
        return ""
    start = next((vma.start for vma in world.vmas(live) if vma.end == live.stack_end), 0)
    if any(start - _FARTHEST <= low < start for low, _ in ranges_of(call)):
        return "how far its stack has grown is not in the recording"
    return ""


_FARTHEST = 8 << 20
"""How far below its beginning a stack may have grown: what most limits are (RLIMIT_STACK)."""


def _of_filter(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.result >= 0 or not world.filters.may_forbid(live.traced.pids, call.line):
        return ""
    return "a seccomp filter may have forbidden it: what it forbids is not recorded"


def _of_process(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name != "process_madvise" or pidfd_owner(world, live, call):
        return ""
    return "whose memory it advises is not in the recording (pidfd_open)"


def _of_segment(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name != "shmat" or call.result != -EINVAL or got < 0:
        return ""
    return "whether the segment was still there is not in the recording (shmctl)"


def _of_size(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    if call.name == "mmap" and page_size(numbers(call, 4)[3]) not in (f.PAGE_SIZE, f.PMD_SIZE):
        return NO_POOL
    return ""


def _of_width(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """What a call of another width than the program places goes where that width's base is.

    Source: arch/x86/mm/mmap.c get_mmap_base.
    """
    if call.pid not in live.known.crossing or call.name not in PLACED:
        return ""
    widths = "64-bit call of a 32-bit" if live.known.limits.is_narrow else "32-bit call of a 64-bit"
    return f"where mappings begin for a {widths} program is not in the recording"


PLACED = ("mmap", "mremap", "shmat", "io_setup")


def _of_hint(world: StraceWorld, live: LiveSpace, call: TracedCall, got: int) -> str:
    """strace writes the fifth argument of an mremap only where it is bound to it."""
    is_short = call.name == "mremap" and len(call.arguments) == 4
    if not is_short or not numbers(call, 4)[3] & (f.MREMAP_FIXED | f.MREMAP_DONTUNMAP):
        return ""
    return "where it was to move is not in the recording"


_RULES = (
    _of_file, _of_protection, _of_keys, _of_seals, _of_locking, _of_length, _of_memory, _of_pages,
    _of_kernel, _of_monitor, _written, _cut, _of_driver, _of_filter, _of_process, _of_segment,
    _of_size, _of_hint, _of_stack, _of_width,
)  # fmt: skip
