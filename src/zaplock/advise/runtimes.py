"""Whose program it is: advice to a Java user is a flag of the JVM, not a system call.

A process is recognised by its name, by the libraries in its memory map and, for Go, by the build
information in its file; each only while it runs (`recognise`). The settings and their public
sources stand in docs/advice.md, one row each.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zaplock.untrusted_names import name_of


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program or allocator with settings of its own.

    `process` matches names of processes, `library` paths of the memory map (regular expressions,
    "" matches nothing); `settings` says by topic (`kinds.Kind.topic`) what to set; `source` is
    where that is documented.
    """

    name: str
    process: str
    library: str
    settings: Mapping[str, str]
    source: str


GO: Final = Runtime(
    "Go",
    "",
    "",
    {
        "free": "set GOMEMLIMIT so that the scavenger keeps what is used again, call "
        "debug.FreeOSMemory rarely or never, and try GODEBUG=madvdontneed=0 (MADV_FREE: pages go "
        "only when memory is short)",
        "huge pages": "use a release of Go without MADV_COLLAPSE in its scavenger (golang/go "
        "issue 63334)",
    },
    "https://pkg.go.dev/runtime",
)
RUNTIMES: Final = (
    Runtime(
        "Redis",
        r"redis-|valkey-",
        "",
        {
            "fork": 'persist on a replica or by appendonly alone (save ""), keep instances small '
            "(more of them), disable transparent huge pages; INFO's latest_fork_usec shows it",
            "free": "in redis.conf: jemalloc-bg-thread yes, and the lazyfree-lazy-* options, so "
            "that a background thread frees big keys",
        },
        "https://redis.io/docs/latest/operate/oss_and_stack/management/optimization/latency/",
    ),
    Runtime(
        "PostgreSQL",
        r"postgres$|postmaster",
        "",
        {
            "fork": "in postgresql.conf huge_pages = on (a fork copies a 512th of the page tables),"
            " and a connection pooler, so that fewer backends are forked",
            "free": "in postgresql.conf huge_pages = on; a pooler, so that fewer backends end",
        },
        "https://www.postgresql.org/docs/current/runtime-config-resource.html",
    ),
    Runtime(
        "QEMU",
        r"qemu-system|qemu-kvm|^kvm$",
        "",
        {
            "free": "switch free-page-reporting=on of virtio-balloon-pci off, and deflate the "
            "balloon in small steps",
            "fill": "give the memory backend prealloc=on,prealloc-threads=N, so that it is filled "
            "before the guest runs",
        },
        "https://www.qemu.org/docs/master/system/qemu-manpage.html",
    ),
    Runtime(
        "Java",
        r"^java$",
        r"/libjvm\.so",
        {
            "free": "keep the heap: -Xms equal to -Xmx; else give back less often: "
            "G1PeriodicGCInterval=0 (G1), -XX:-ZUncommit or a longer ZUncommitDelay (ZGC)",
            "fill": "-XX:+AlwaysPreTouch: the heap is filled before the program begins",
        },
        "https://openjdk.org/jeps/346",
    ),
    Runtime(
        ".NET",
        r"^dotnet$",
        r"/libcoreclr\.so",
        {"free": "DOTNET_GCRetainVM=1 (System.GC.RetainVM): segments are kept for the next use"},
        "https://learn.microsoft.com/dotnet/core/runtime-config/garbage-collector",
    ),
    Runtime(
        "jemalloc",
        "",
        r"/libjemalloc[^/]*\.so",
        {
            "free": "MALLOC_CONF=background_thread:true,dirty_decay_ms:30000,muzzy_decay_ms:30000 "
            "(the decay times say how long freed pages are kept; -1: for ever)"
        },
        "https://jemalloc.net/jemalloc.3.html",
    ),
    Runtime(
        "tcmalloc",
        "",
        r"/libtcmalloc[^/]*\.so",
        {"free": "TCMALLOC_RELEASE_RATE=0.1 (the default is 1; 0: nothing is given back)"},
        "https://gperftools.github.io/gperftools/tcmalloc.html",
    ),
    Runtime(
        "mimalloc",
        "",
        r"/libmimalloc[^/]*\.so",
        {"free": "MIMALLOC_PURGE_DELAY=10000 (ms that freed pages are kept; -1: for ever)"},
        "https://microsoft.github.io/mimalloc/environment.html",
    ),
    Runtime("Python", r"^python[0-9.]*$|^pypy", r"/libpython3[^/]*\.so", {}, ""),
    Runtime(
        "glibc malloc",
        "",
        r"/libc\.so\.6|/libc-2[^/]*\.so",
        {
            "free": "where malloc calls it: GLIBC_TUNABLES=glibc.malloc.mmap_threshold=1073741824:"
            "glibc.malloc.trim_threshold=2147483648 (free keeps blocks below the first on the heap,"
            " and gives back only what exceeds the second), and fewer calls of malloc_trim; where "
            "the program calls it: "
        },
        "https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html",
    ),
)
"""In the order in which they are asked: programs, then allocators, then the C library."""

_GO_BUILD_INFO: Final = b"\xff Go buildinf:"


def recognise(pid: int, process: str) -> Runtime | None:
    """Say whose program a process is, by its name and, where it still runs, its memory map.

    A process that has another name by now is somebody else's: then the name alone counts. The map
    takes no mmap_lock on 6.18; on older kernels for read, a few pages of text at a time.
    """
    maps = _maps(pid) if _comm(pid) == process[:15] else ""
    return recognised(process, maps) or (GO if maps and _is_go(pid) else _c_library(maps))


def recognised(process: str, maps: str) -> Runtime | None:
    """Say whose program it is by name and memory map alone; the C library counts as nobody."""
    for runtime in RUNTIMES[:-1]:
        if runtime.process and re.search(runtime.process, process):
            return runtime
        if runtime.library and re.search(runtime.library, maps):
            return runtime
    return None


def _c_library(maps: str) -> Runtime | None:
    return RUNTIMES[-1] if re.search(RUNTIMES[-1].library, maps) else None


def _comm(pid: int) -> str:
    try:
        return name_of(Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n"))
    except OSError:
        return ""


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return ""


def _is_go(pid: int) -> bool:
    try:
        with (
            open(f"/proc/{pid}/exe", "rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text,
        ):
            return text.find(_GO_BUILD_INFO) >= 0
    except (OSError, ValueError):
        return False
