"""How fast real ring-buffer pages become columns, against the text that the kernel prints of them.

Both sides start from the same recorded workload and end with the same events: the decoder with
every column of `zaplock.trace.events`, the text side with the fields that one regular expression
takes out of each line of `trace_pipe` (the fastest of the obvious ways in Python). Reading
`trace_pipe` is part of the text side, since the kernel formats there; reading the pages is part of
the decoder's. A loop of `struct.unpack_from` over the same pages stands between.

    python -m pytest bench/test_decode.py -s
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from time import perf_counter

import numpy as np
import pytest

from zaplock.recorder.buffers import Buffers
from zaplock.recorder.decode import Decoder
from zaplock.recorder.layouts import Layouts, read_layouts
from zaplock.recorder.meanings import MMAP_LOCK
from zaplock.recorder.tracefs import Instance, Tracefs, opened
from zaplock.trace.events import EventKind

PAIRS = 150_000
LINE = re.compile(
    r"\s*(.+)-(\d+)\s+\[(\d+)\] \S+\s+(\d+)\.(\d+): mmap_lock_(\w+): "
    r"mm=(\w+) \S+ write=(\w+)(?: success=(\w+))?"
)


def workload(instance: Instance) -> None:
    instance.start()
    for _ in range(PAIRS):
        mmap.mmap(-1, 4096).close()
    instance.stop()


def prepared(tracefs: Tracefs, layouts: Layouts) -> Instance:
    instance = Instance(tracefs, buffer_kb=96 << 10)
    for layout in layouts.events:
        instance.enable(layout.event)
    return instance


def decoded(tracefs: Tracefs, layouts: Layouts) -> tuple[float, int, bytes]:
    """Seconds from the kernel's buffers to columns, how many events, and one CPU's pages."""
    with prepared(tracefs, layouts) as instance:
        buffers = Buffers([instance], layouts.page.page_size)
        workload(instance)
        decoder = Decoder(layouts)
        begin = perf_counter()
        by_cpu: dict[int, list[bytes]] = {}
        while chunks := buffers.drain():
            for cpu, pages in chunks:
                by_cpu.setdefault(cpu, []).append(pages)
        whole = {cpu: b"".join(parts) for cpu, parts in by_cpu.items()}
        count = sum(counted(decoder, pages, cpu) for cpu, pages in whole.items())
        seconds = perf_counter() - begin
        buffers.close()
    return seconds, count, max(whole.values(), key=len)


def printed(tracefs: Tracefs, layouts: Layouts) -> tuple[float, int]:
    """Seconds to read and parse a tenth of `trace_pipe`, and how many events that was."""
    with prepared(tracefs, layouts) as instance:
        workload(instance)
        pipe = os.open(instance.path / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
        begin, rows, rest = perf_counter(), [], ""
        while len(rows) < PAIRS // 2:
            lines = (rest + os.read(pipe, 1 << 16).decode()).split("\n")
            rest = lines.pop()
            for line in lines:
                found = LINE.match(line)
                if found:
                    comm, tid, cpu, seconds, micros, what, mm, write, success = found.groups()
                    time_ns = int(seconds) * 10**9 + int(micros) * 1000
                    rows.append(
                        (time_ns, what, comm, int(tid), int(cpu), int(mm, 16), write, success)
                    )
        seconds_taken = perf_counter() - begin
        os.close(pipe)
    return seconds_taken, len(rows)


def unpacked(pages: bytes, layouts: Layouts) -> tuple[float, int]:
    """Seconds for a plain loop over 300 of the same pages, and how many events that was."""
    kinds = {layout.id: layout for layout in layouts.events}
    mm, write = layouts.events[0].field("mm"), layouts.events[0].field("write")
    assert mm
    assert write
    begin, rows = perf_counter(), []
    for page in range(0, min(len(pages), 300 * 4096), 4096):
        time_ns, commit = struct.unpack_from("<QQ", pages, page)
        at, end = page + 16, page + 16 + (commit & 0xFFFFFFF)
        while at < end:
            (head,) = struct.unpack_from("<I", pages, at)
            length, delta = head & 31, head >> 5
            if 1 <= length <= 28:
                time_ns += delta
                number, _, _, tid = struct.unpack_from("<HBBi", pages, at + 4)
                if number in kinds:
                    (pointer,) = struct.unpack_from("<Q", pages, at + 4 + mm.offset)
                    rows.append((time_ns, number, tid, pointer, pages[at + 4 + write.offset]))
                at += 4 + 4 * length
            elif length == 30:
                time_ns += delta + (struct.unpack_from("<I", pages, at + 4)[0] << 27)
                at += 8
            else:
                break
    return perf_counter() - begin, len(rows)


@pytest.mark.root
def test_pages_against_text(capsys: pytest.CaptureFixture[str]) -> None:
    with opened() as tracefs:
        layouts = read_layouts(tracefs.path, MMAP_LOCK)
        rates: dict[str, list[float]] = {"decoder": [], "decode only": [], "struct": [], "text": []}
        for _ in range(5):
            seconds, count, pages = decoded(tracefs, layouts)
            rates["decoder"].append(count / seconds)
            rates["decode only"].append(only_decoded(pages, layouts))
            for name, (taken, rows) in (
                ("struct", unpacked(pages, layouts)),
                ("text", printed(tracefs, layouts)),
            ):
                rates[name].append(rows / taken)
    million = {name: float(np.median(rate)) / 1e6 for name, rate in rates.items()}
    with capsys.disabled():
        print(f"\n{count:,} events of the kernel's own pages, medians of 5, million events/s:")
        print(f"  pages read and decoded, all columns  {million['decoder']:6.2f}")
        print(f"  the decoding alone                   {million['decode only']:6.2f}")
        print(f"  loop of struct.unpack_from           {million['struct']:6.2f}")
        print(f"  trace_pipe read and parsed           {million['text']:6.3f}")
        print(f"  ratio to trace_pipe                  {million['decoder'] / million['text']:6.1f}")
    assert million["decoder"] > 20 * million["text"]


def only_decoded(pages: bytes, layouts: Layouts) -> float:
    decoder, begin = Decoder(layouts), perf_counter()
    return counted(decoder, pages, 0) / (perf_counter() - begin)


def counted(decoder: Decoder, pages: bytes, cpu: int) -> int:
    """Decode in the portions that the recorder takes; count the events."""
    portion, count = 2048 * 4096, 0
    for start in range(0, len(pages), portion):
        columns = decoder.decode(pages[start : start + portion], cpu).columns
        count += int((columns["kind"] <= EventKind.RELEASED).sum())
    return count
