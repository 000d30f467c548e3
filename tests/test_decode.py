"""Ring-buffer pages are decoded as the kernel wrote them; the kernel's own print is the judge."""

import re
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from zaplock.errors import UserError
from zaplock.recorder.buffers import Buffers
from zaplock.recorder.decode import Decoder, merged
from zaplock.recorder.layouts import check_header_event, read_layouts
from zaplock.recorder.meanings import MMAP_LOCK, NAMING, SCHED
from zaplock.recorder.tracefs import Instance, opened
from zaplock.trace import text
from zaplock.trace.events import EventKind

FIXTURES = Path(__file__).parent / "fixtures" / "recorder"
EVENTS = (*MMAP_LOCK, "syscalls:sys_enter_munmap", "syscalls:sys_exit_munmap", NAMING[0])
NEW = read_layouts(FIXTURES / "format-6.18", EVENTS)
SCHEDULING = read_layouts(FIXTURES / "format-6.18", [SCHED[1]])
OLD = read_layouts(FIXTURES / "format-memcg-path", EVENTS)
MM = 0xFFFF_8881_0000_0040


@dataclass
class Page:
    """A page as the kernel's ring buffer would write it (synthesised)."""

    time_ns: int
    data: bytes = b""
    flags: int = 0
    tail: bytes = b""
    heads: list[int] = field(default_factory=list)

    def add(self, kind: int, delta: int, rest: bytes) -> "Page":
        self.data += struct.pack("<I", kind | delta << 5) + rest
        return self

    def event(self, delta: int, payload: bytes, *, long: bool = False) -> "Page":
        payload += b"\0" * (-len(payload) % 4)
        if long:
            return self.add(0, delta, struct.pack("<I", len(payload) + 4) + payload)
        return self.add(len(payload) // 4, delta, payload)

    def bytes(self) -> bytes:
        head = struct.pack("<QQ", self.time_ns, len(self.data) | self.flags)
        return (head + self.data + self.tail).ljust(4096, b"\0")


def released(tid: int, write: int = 0) -> bytes:
    number = next(layout.id for layout in NEW.events if layout.event == MMAP_LOCK[2])
    return struct.pack("<HBBiQQB", number, 0, 0, tid, MM, 7, write)


def waking(tid: int, *, woken: int, flags: int) -> bytes:
    number = SCHEDULING.events[0].id
    return struct.pack("<HBBi16siii", number, flags, 0, tid, b"bash", woken, 120, 1)


def times(*pages: Page) -> list[int]:
    raw = b"".join(page.bytes() for page in pages)
    columns = Decoder(NEW).decode(raw, 3).columns
    return columns["time_ns"][columns["kind"] == EventKind.RELEASED].tolist()


def test_deltas_add_up_within_a_page() -> None:
    first = Page(1000).event(0, released(1)).event(5, released(1)).event(7, released(1))
    second = Page(9000).event(1, released(1))
    assert times(first, second) == [1000, 1005, 1012, 9001]


def test_a_time_extend_carries_the_upper_bits() -> None:
    far = 10 * 3600 * 10**9
    page = Page(1000).event(0, released(1))
    page.add(30, far & (1 << 27) - 1, struct.pack("<I", far >> 27)).event(0, released(1))
    assert times(page) == [1000, 1000 + far]


@pytest.mark.parametrize("base", [5 << 40, 3 << 59 | 5 << 40])
def test_an_absolute_stamp_takes_its_upper_bits_from_the_time_before(base: int) -> None:
    stamp = (base + 12345) & (1 << 59) - 1
    page = Page(base).event(0, released(1))
    page.add(31, stamp & (1 << 27) - 1, struct.pack("<I", stamp >> 27)).event(2, released(1))
    assert times(page) == [base, base + 12347]


def test_discarded_events_are_skipped_but_their_time_counts() -> None:
    page = Page(1000).event(10, released(1))
    page.add(29, 100, struct.pack("<I", 12) + b"\xff" * 8)  # discarded after 100 ns
    page.event(3, released(1))
    page.add(29, 1, struct.pack("<I", 12) + b"\xff" * 8)  # time 1 stands for none
    page.event(3, released(1))
    assert times(page) == [1010, 1113, 1116]


def test_padding_ends_a_page() -> None:
    page = Page(1000).event(0, released(1)).add(29, 0, b"\xff" * 40)
    assert times(page, Page(2000).event(0, released(1))) == [1000, 2000]


def test_long_events_and_empty_pages() -> None:
    long = Page(1000).event(4, released(1) + b"x" * 200, long=True).event(1, released(2))
    assert times(Page(1), long, Page(2)) == [1004, 1005]
    assert times() == []


@pytest.mark.parametrize(("tail", "flags", "count"), [
    (struct.pack("<Q", 4321), 3 << 30, 4321),
    (b"", 1 << 31, -1),
])  # fmt: skip
def test_losses_are_told(tail: bytes, flags: int, count: int) -> None:
    page = Page(5000, flags=flags, tail=tail).event(10, released(1))
    columns = Decoder(NEW).decode(page.bytes(), 3).columns
    assert columns["kind"].tolist() == [EventKind.LOST, EventKind.RELEASED]
    assert (columns["length"][0], columns["time_ns"][0], columns["cpu"][0]) == (count, 5000, 3)


def test_an_interrupt_tells_nobody_who_woke() -> None:
    """A timer fires while 9 is in munmap: 9 did not wake 12 then, but it does so afterwards."""
    hardirq, softirq, nmi, irqs_off = 0x08, 0x10, 0x40, 0x01
    page = Page(1000)
    for flags in (hardirq, softirq, nmi, irqs_off):
        page.event(5, waking(9, woken=12, flags=flags | irqs_off))
    columns = Decoder(SCHEDULING).decode(page.bytes(), 0).columns
    assert columns["kind"].tolist() == [EventKind.WAKEUP] * 4
    assert columns["tid"].tolist() == [12] * 4
    assert columns["detail"].tolist() == [0, 0, 0, 9]


def test_the_string_layout_of_older_kernels() -> None:
    """Synthesised to the documented format of 5.11 to 6.14; `released` has an `ip` in front."""
    asked = struct.pack("<HBBiQIBB", 901, 0, 0, 42, MM, 0x0005_0018, 1, 0) + b"/a\0\0\0"
    acquired = struct.pack("<HBBiQIBB", 902, 0, 0, 42, MM, 0x0005_0018, 0, 1) + b"/a\0\0\0"
    freed = struct.pack("<HBBiQQIB", 903, 0, 0, 43, 0xFFFFFFFF81000000, MM, 0x0005_0020, 1)
    page = Page(1).event(1, asked).event(1, acquired).event(1, freed + b"/a\0")
    columns = Decoder(OLD).decode(page.bytes(), 0).columns
    assert columns["kind"].tolist() == [EventKind.ASKED, EventKind.ACQUIRED, EventKind.RELEASED]
    assert columns["mm"].tolist() == [MM] * 3
    assert columns["write"].tolist() == [1, 0, 1]
    assert columns["success"].tolist() == [0, 1, 0]
    assert columns["tid"].tolist() == [42, 42, 43]


def test_an_unknown_packing_is_refused() -> None:
    known = (FIXTURES / "format-6.18" / "events" / "header_event").read_text()
    check_header_event(known)
    check_header_event(re.sub(r"\ttime_stamp.*\n", "", known))  # as 4.9 to 4.16 tell it
    with pytest.raises(UserError, match="time_delta"):
        check_header_event(known.replace("27 bits", "28 bits"))
    with pytest.raises(UserError, match="time_extend"):
        check_header_event(known.replace("type == 30", "type == 33"))


def test_any_order_of_any_heads_agrees_with_a_plain_loop() -> None:
    """Random pages, decoded in lockstep and one by one."""
    random = np.random.default_rng(4)
    pages, expected = [], []
    for _ in range(200):
        now = int(random.integers(1 << 40))
        page = Page(now)
        while len(page.data) < 3500 and random.random() > 0.01:
            delta = int(random.integers(2, 1 << 20))
            kind = random.choice(["event", "long", "extend", "discard"], p=[0.7, 0.1, 0.1, 0.1])
            if kind == "extend":
                page.add(30, delta, struct.pack("<I", 3))
                now += (3 << 27) + delta
            elif kind == "discard":
                page.add(29, delta, struct.pack("<I", 8) + b"zzzz")
                now += delta
            else:
                page.event(delta, released(1), long=kind == "long")
                now += delta
                expected.append(now)
        pages.append(page)
    assert times(*pages) == expected


@pytest.mark.root
def test_the_decoder_agrees_with_the_kernels_own_print() -> None:
    """One recording, read twice: as the kernel prints it, and as pages."""
    with opened() as tracefs:
        layouts = read_layouts(tracefs.path, (*EVENTS, *SCHED))
        with Instance(tracefs, buffer_kb=8192) as instance:
            instance.write("options/hash-ptr", "0")
            for layout in layouts.events:
                instance.enable(layout.event)
            buffers = Buffers([instance], layouts.page.page_size)
            try:
                instance.start()
                script = """
import mmap, time
for n in range(200): mmap.mmap(-1, 4096 + 4096 * n).close()
for n in range(20): time.sleep(0.001)  # woken by a timer
"""
                subprocess.run([sys.executable, "-c", script], check=True)
                instance.stop()
                printed = text.parse(instance.read("trace").splitlines()).events
                decoder = Decoder(layouts)
                found = merged(
                    [decoder.decode(pages, cpu).columns for cpu, pages in buffers.drain()]
                )
            finally:
                buffers.close()
    assert len(printed) == len(found["time_ns"]) > 2000
    # The print rounds to microseconds, so events of two CPUs may swap places: compare by CPU.
    for cpu in set(found["cpu"].tolist()):
        ours, theirs = found["cpu"] == cpu, printed["cpu"] == cpu
        for name in ("kind", "tid", "write", "success", "mm", "address", "length", "result"):
            assert found[name][ours].tolist() == printed[name][theirs].tolist(), (cpu, name)
        woken = found["kind"][ours] == EventKind.WAKEUP
        wakers = found["detail"][ours][woken], printed["detail"][theirs][woken]
        assert wakers[0].tolist() == wakers[1].tolist()
        late = np.abs(found["time_ns"][ours] - printed["time_ns"][theirs])
        assert int(late.max()) <= 1000
    wakers = found["detail"][found["kind"] == EventKind.WAKEUP]
    assert (wakers != 0).any(), "nobody is known to have woken anybody"
