"""A divergence as a script that runs on its own: Python and ctypes, no zaplock.

The script does in one forked process what the sequence does, prints every result, and ends with the
window's part of smaps. Accesses that may fault go through a few bytes of machine code with a signal
handler, as in stub.S. What the model said stands beside it as comments. Operations that concern the
whole process (mlockall, RLIMIT_AS) act on the interpreter too: there only the oracle's bare process
shows the exact figures, and the script says so.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from zaplock.oracle import ops
from zaplock.oracle.compare import Divergence
from zaplock.oracle.composed_calls import OPTIONS
from zaplock.oracle.ops import Argument, Op, Ref, slots_used

# peek(address), poke(address, value), a handler that resumes at r13, and its restorer:
#   push r13; lea r13,[rip+1f]; mov rax,[rdi]; 1: pop r13; ret
#   push r13; lea r13,[rip+1f]; mov [rdi],rsi; xor eax,eax; 1: pop r13; ret
#   and on_signal, restorer as in stub.S
_TOUCH = (
    "41554c8d2d03000000488b07415dc3"
    "41554c8d2d05000000488937" "31c0415dc3"
    "89f8c1e0108b4e0881e1ffff000009c848f7d848898290000000488b4a5048898aa8000000c3"
    "b80f0000000f05"
)  # fmt: skip
_PEEK, _POKE, _HANDLER, _RESTORER = 0, 15, 32, 70

_HEAD = '''#!/usr/bin/env python3
"""{title}

{differences}
"""
import ctypes, errno, mmap, os, struct, sys, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("{touch}"))
base = ctypes.addressof(ctypes.c_char.from_buffer(code))
peek = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_ulong)(base + {peek})
poke = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong)(base + {poke})
vector = ctypes.create_string_buffer(1 << 16)


def fill_memory(size, how):  # run this in a memory cgroup of 64 MiB
    pid = os.fork()
    if not pid:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (0x8000 if how == 1 else 0)
        filled = mmap.mmap(-1, size, flags=flags)
        for advice in {{0: (23,), 1: (), 2: (14, 23), 3: (15, 23)}}[how]:
            filled.madvise(advice)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def clear_refs(kind):
    try:
        with open("/proc/self/clear_refs", "wb", buffering=0) as file:
            written = file.write(b"%d" % kind)
            if kind in (1, 2, 3):  # a 4 flushes all TLBs: else what is in them is not noted again
                file.write(b"4")
        return written
    except OSError as error:
        return -error.errno


def call(number, *arguments):
    passed = (ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments)
    result = libc.syscall(ctypes.c_long(number), *passed)
    return result if result != -1 else -ctypes.get_errno()


def say(k, text, result):
    shown = errno.errorcode.get(-result) if -4096 < result < 0 else hex(result)
    if result < -4095:
        shown = "signal %d code %d" % (-result >> 16, -result & 0xFFFF)
    print("op%d %s = %s" % (k, text, shown), flush=True)
    return result


def catch_faults():
    stack = ctypes.create_string_buffer(1 << 16)
    call(131, ctypes.addressof(ctypes.create_string_buffer(
        struct.pack("<QQQ", ctypes.addressof(stack), 0, 1 << 16))), 0)
    action = ctypes.create_string_buffer(struct.pack("<4Q", base + {handler}, 0x4C000004,
                                                     base + {restorer}, 0))
    for signal in (11, 7):
        call(13, signal, ctypes.addressof(action), 0, 8)
    return stack


def remote(address, length, tag):
    there = ctypes.addressof(vector) + 64
    struct.pack_into("<4Q", vector, 0, address, length, there, min(length, 8 * 4096))
    for at in range(64, 64 + min(length, 8 * 4096), 4096):
        struct.pack_into("<Q", vector, at, tag)
    where = ctypes.addressof(vector)
    return where + 16, 1, where, 1


def merge():
    scans, run = (open("/sys/kernel/mm/ksm/" + name, mode, 0) for name, mode in
                  (("full_scans", "rb"), ("run", "wb")))
    run.write(b"1")
    last = int(os.pread(scans.fileno(), 20, 0)) + 8
    while int(os.pread(scans.fileno(), 20, 0)) < last:
        time.sleep(0.001)
    run.write(b"0")
    return 0


def ksm_write(name, number):
    with open("/sys/kernel/mm/ksm/" + name, "wb", 0) as file:
        return file.write(b"%d" % number) and 0


def mounted(most, least):  # a hugetlbfs, of which nobody else knows; -1: no such limit
    context = call(430, b"hugetlbfs", 0)
    for name, pages in (("size", most), ("min_size", least)):
        if pages >= 0:
            call(431, context, 1, name.encode(), b"%d" % (pages << 21), 0)
    call(431, context, 1, b"pagesize", b"2M", 0)
    call(431, context, 6, None, None, 0)
    return call(432, context, 0, 0)


def on_tmpfs(name, huge, named, size):  # on a mount with huge pages, of which nobody else knows
    context = call(430, b"tmpfs", 0)
    call(431, context, 1, b"huge", huge, 0)
    call(431, context, 6, None, None, 0)
    root = call(432, context, 0, 0)
    fd = os.open(name, os.O_RDWR | os.O_CREAT, dir_fd=root)
    if not named:
        os.unlink(name, dir_fd=root)
    os.ftruncate(fd, size)
    return fd


def room(fd):
    return os.fstatvfs(fd).f_bfree


def page(fd, number, tag):
    os.pwrite(fd, struct.pack("<Q", tag), number * 4096)

'''

_OPEN = {
    "m0": 'os.memfd_create("m0", os.MFD_ALLOW_SEALING)',
    "m1": 'os.memfd_create("m1", os.MFD_ALLOW_SEALING)',
    "disk": 'os.open("/var/tmp", os.O_RDWR | os.O_TMPFILE, 0o600)',
    "zero": 'os.open("/dev/zero", os.O_RDWR)',
    "ro": 'os.memfd_create("ro")',
}

_TAIL = """
for block in open("/proc/self/smaps").read().split("VmFlags:"):
    lines = block.strip().splitlines()
    header = next((line for line in lines if "-" in line.split(" ")[0]), "f-")
    if int(header.split("-")[0], 16) < 0x40000000:
        print("\\n".join(lines))
sys.stdout.flush()
os._exit(0)  # what the sequence did to the interpreter is no matter any more
"""


def write(divergence: Divergence) -> str:
    """Return the text of a script that shows a divergence's kernel side."""
    sequence = divergence.sequence
    title = f"After {sequence[divergence.at]} the kernel and the model differ."
    head = _HEAD.format(
        title=title,
        differences="\n".join(divergence.differences),
        touch=_TOUCH,
        peek=_PEEK,
        poke=_POKE,
        handler=_HANDLER,
        restorer=_RESTORER,
    )
    return head + "\n".join(_body(sequence)) + "\n" + _TAIL


def _body(sequence: Sequence[Op]) -> list[str]:
    lines = ["files = []", "stack = catch_faults()"]
    if any(op.name in _UFFD_COMMANDS or "file" in _names(op) for op in sequence):
        lines += _files()
    if slots_used(sequence) & ops.HUGE_FILES.keys():
        lines += _huge_files(slots_used(sequence))
    if slots_used(sequence) & ops.TMPFS_FILES.keys():
        lines += _tmpfs_files()
    if any(op.name == "uring_register" for op in sequence):
        lines.append("uring = call(425, 1, ctypes.addressof(ctypes.create_string_buffer(120)))")
    for name in sorted(ops.segments_used(sequence)):
        size, flags = ops.SEGMENTS[name]
        lines.append(f"{name} = call(29, 0, {size:#x}, {flags:#o})")
        lines.append(f"__import__('atexit').register(call, 31, {name}, 0, 0)")
    return lines + [_line(k, op) for k, op in enumerate(sequence)]


def _huge_files(slots: Collection[int]) -> list[str]:
    """Make files up to the last that is used, as their number is their place; mounts take root."""
    lines = []
    if ops.MOUNT_OF.keys() & slots:
        shares = list(map(tuple, ops.MOUNTS))
        lines = [f"mounts = [mounted(most, least) for most, least in {shares}]"]
    for slot, (name, size) in ops.HUGE_FILES.items():
        if slot > max(slots):
            break
        made = f'os.memfd_create("{name}", 4 | {size.bit_length() - 1} << 26)'
        if slot in ops.MOUNT_OF:
            made = f'os.open("{name}", os.O_RDWR | os.O_CREAT, dir_fd=mounts[{ops.MOUNT_OF[slot]}])'
        lines.append(f"files.append({made})")
    return lines


def _tmpfs_files() -> list[str]:
    """Make the files on mounts of tmpfs, as their number is their place."""
    lines = [f"files += [None] * ({min(ops.TMPFS_FILES)} - len(files))"]
    for file in ops.TMPFS_FILES.values():
        made = f'on_tmpfs("{file.name}", b"{file.huge}", {file.named}, {file.size})'
        lines.append(f"files.append({made})")
    return lines


_UFFD_COMMANDS = {
    "uffd_register": "0xC020AA00", "uffd_unregister": "0x8010AA01", "uffd_copy": "0xC028AA03",
    "uffd_zeropage": "0xC020AA04", "uffd_continue": "0xC020AA07",
    "uffd_poison": "0xC020AA08",
    "uffd_writeprotect": "0xC018AA06", "uffd_move": "0xC028AA05",
}  # fmt: skip


def _files() -> list[str]:
    lines = []
    for slot, name in enumerate(ops.FILES):
        lines.append(f"files.append({_OPEN[name]})")
        pages = ops.FILE_PAGES[slot]
        if pages:
            written = ops.written_pages(slot)
            lines.append(f"os.ftruncate(files[-1], {pages * 4096})")
            lines.append(f"for n in {written}: page(files[-1], n, {slot + 1} << 32 | n + 1)")
    lines += [
        f"files[{ops.READ_ONLY_SLOT}] = os.open('/proc/self/fd/%d' % files[-1], os.O_RDONLY)",
        "uffd = call(323, 0o4000 | 1)",
        "struct.pack_into('<QQQ', vector, 0, 0xAA, 1 << 7, 0)",
        "call(16, uffd, 0xC018AA3F, ctypes.addressof(vector))",
    ]
    return lines


def _names(op: Op) -> tuple[str, ...]:
    return ops.CALLS[op.name][1] if op.name in ops.CALLS else ops.ACCESSES[op.name]


def _line(k: int, op: Op) -> str:
    arguments = [_text(name, value) for name, value in zip(_names(op), op.args, strict=True)]
    return f"r{k} = say({k}, {str(op)!r}, {_call(k, op, arguments)})"


def _text(name: str, value: Argument) -> str:
    if isinstance(value, Ref):
        return f"r{value.op} + {value.delta:#x}"
    if name == "file" and ops.is_slot(value):
        return f"files[{value}]"
    return hex(value) if value > 9 else str(value)


_KSM_FILES = {
    "ksm_unmerge": "run", "ksm_zero_pages": "use_zero_pages", "ksm_most": "max_page_sharing",
}  # fmt: skip


def _call(k: int, op: Op, arguments: list[str]) -> str:
    inside = ", ".join(arguments)
    if op.name == "load":
        return f"peek({inside} & -4096)"
    if op.name == "store":
        return f"poke({inside} & -4096, {ops.store_tag(k):#x})"
    if op.name == "store_value":
        return f"poke({arguments[0]} & -4096, {arguments[1]})"
    if op.name == "ksm_scan":
        return "merge()"
    if op.name in _KSM_FILES:
        return f"ksm_write({_KSM_FILES[op.name]!r}, {inside or 2})"
    if op.name == "fill_memory":
        return f"fill_memory({inside})"
    if op.name == "fill_group":  # of whom else is in the group nothing is shown
        return f"fill_memory({inside}, 3)"
    if op.name == "clear_refs":
        return f"clear_refs({inside})"
    if op.name == "crowd":
        return "0  # fills the address space: see composed_calls.crowd"
    if op.name == "fork":
        return "(lambda pid: os._exit(0) if pid == 0 else os.waitpid(pid, 0)[1])(os.fork())"
    if op.name == "into_child":
        return "(lambda pid: 0 if pid == 0 else os._exit(os.waitpid(pid, 0)[1] and 1))(os.fork())"
    if op.name == "setrlimit":
        return f"__import__('resource').prlimit(0, {arguments[0]}, ({arguments[1]}, -1)) and 0"
    if op.name == "mincore":
        return f"call(27, {inside}, ctypes.addressof(vector))"
    if op.name.startswith("uffd"):
        before = ""
        if op.name == "uffd_copy":  # of the vector's second page
            before = f"struct.pack_into('<Q', vector, 4096, {ops.store_tag(k):#x}) or "
            source = "ctypes.addressof(vector) + 4096"
            inside = f"{arguments[0]}, {source}, 4096, {arguments[1]}"
        if op.name == "uffd_move":
            inside = f"{arguments[0]}, {arguments[2]}, {arguments[1]}, {arguments[3]}"
        packed = f"struct.pack_into('<{inside.count(',') + 1}Q', vector, 0, {inside})"
        command = _UFFD_COMMANDS[op.name]
        return f"{before}{packed} or call(16, uffd, {command}, ctypes.addressof(vector))"
    if op.name == "uring_register":
        packed = f"struct.pack_into('<2Q', vector, 0, {inside})"
        return f"{packed} or (call(427, uring, 0, ctypes.addressof(vector), 1), " + (
            "call(427, uring, 1, 0, 0))[0]"
        )
    if op.name == "mbind":
        start, length, mode, nodes, flags = arguments
        packed = f"struct.pack_into('<Q', vector, 0, {nodes})"
        inside = f"{start}, {length}, {mode}, ctypes.addressof(vector), 64, {flags}"
        return f"{packed} or call(237, {inside})"
    if op.name == "fallocate":
        return f"call(285, {inside})"
    if op.name == "huge_room":
        return f"room({inside})"
    if op.name in ops.SEGMENTS:
        return f"call(30, {op.name}, {inside})"
    if op.name == "shmdt":
        return f"call(67, {inside})"
    if op.name == "add_seals":
        return f"call(72, {arguments[0]}, 1033, {arguments[1]})"
    if op.name in OPTIONS:
        return f"call(157, {OPTIONS[op.name]}, {inside}, 0, 0, 0)"
    if op.name.startswith("process_vm"):
        packed = f"remote({inside}, {ops.store_tag(k):#x})"
        return f"call({ops.CALLS[op.name][0]}, os.getpid(), *{packed}, 0)"
    if op.name == "process_madvise":
        packed = f"struct.pack_into('<2Q', vector, 0, {arguments[0]}, {arguments[1]})"
        where = "os.pidfd_open(os.getpid()), ctypes.addressof(vector), 1"
        return f"{packed} or call(440, {where}, {arguments[2]}, 0)"
    return f"call({ops.CALLS[op.name][0]}, {inside})"
