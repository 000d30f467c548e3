"""The Perfetto trace, parsed back: tracks, nested slices, arrows from culprit to victim."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from scenes import MS, crowd, database

from zaplock.trace.analysis import analyse
from zaplock.trace.events import Events
from zaplock.trace.summary import summarise
from zaplock.views.perfetto import BEGIN, END, INSTANT, call_track, lock_track, write_perfetto

proto = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


def parsed(events: Events, path: Path) -> Any:
    trace = proto.Trace()
    trace.ParseFromString(write_perfetto(summarise(analyse(events, "6.18")), path).read_bytes())
    return trace


def test_each_thread_has_its_tracks(tmp_path: Path) -> None:
    trace = parsed(database(), tmp_path / "db.pftrace")
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in trace.packet
        if packet.HasField("track_descriptor")
    }
    thread = tracks[call_track(101)].thread
    assert (thread.tid, thread.pid, thread.thread_name) == (101, 100, "db-free")
    below = tracks[lock_track(101)]
    assert (below.parent_uuid, below.name) == (call_track(101), "mmap_lock")
    assert {d.process.process_name for d in tracks.values() if d.HasField("process")} == {
        "db",
        "ps",
    }


def test_an_arrow_leads_from_the_munmap_to_whom_it_kept_waiting(tmp_path: Path) -> None:
    trace = parsed(database(), tmp_path / "db.pftrace")
    leaves, arrives = {}, {}
    for packet in trace.packet:
        event = packet.track_event
        for flow in event.flow_ids:
            leaves[flow] = (event.track_uuid, packet.timestamp)
        for flow in event.terminating_flow_ids:
            arrives[flow] = (event.track_uuid, packet.timestamp)
    assert leaves.keys() == arrives.keys()
    drawn = {(leaves[flow][0], arrives[flow][0]) for flow in leaves}
    assert drawn == {
        (lock_track(101), lock_track(102)),
        (lock_track(101), lock_track(200)),
    }
    assert all(leaves[flow][1] <= arrives[flow][1] for flow in leaves)
    assert {time for _, time in leaves.values()} == {186 * MS}


@pytest.mark.parametrize("events", [database(), crowd(20_000)], ids=["database", "crowd"])
def test_slices_nest_on_every_track(events: Events, tmp_path: Path) -> None:
    """Every begin has its end, in order of time, and no end comes without a begin."""
    depth: dict[int, int] = defaultdict(int)
    last = slices = 0
    for packet in parsed(events, tmp_path / "x.pftrace").packet:
        if not packet.HasField("track_event"):
            continue
        assert packet.timestamp >= last
        last = packet.timestamp
        event = packet.track_event
        assert event.type in (BEGIN, END, INSTANT)
        if event.type == BEGIN:
            depth[event.track_uuid] += 1
            slices += 1
        elif event.type == END:
            depth[event.track_uuid] -= 1
            assert depth[event.track_uuid] >= 0
    assert slices > 5
    assert set(depth.values()) == {0}
