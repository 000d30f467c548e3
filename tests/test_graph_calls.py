"""Lock events by function_graph: the function around a call tells whose semaphore it is about."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from zaplock.errors import UserError
from zaplock.measure.guest import build, recording
from zaplock.measure.guest.capsule import Capsule
from zaplock.measure.guest.experiment import GuestPlan, GuestRun
from zaplock.recorder.graph_calls import AROUND, MM, GraphCalls, TracedFunctions
from zaplock.recorder.rwsem_probes import FUNCTIONS
from zaplock.trace.events import EVENT, EventKind

NAMES = [*(one.name for one in FUNCTIONS), *AROUND]
AT = {name: 0xFFFFFFFF81000000 + 256 * n for n, name in enumerate(NAMES)}
SYMBOLS = TracedFunctions.told(f"{at:x} {name}" for name, at in AT.items())
ZAP, FAULTS, PS = 10, 11, 20
"""The target's first thread, another one, and a process that reads its /proc files."""


def told(*calls: str, graph: GraphCalls | None = None) -> list[tuple[int, str, int, int]]:
    """Feed "TASK function {" and "TASK function }"; return (task, kind, write, success) in order.

    "TASK function;" is a function that is entered and left.
    """
    entries = []
    for call in calls:
        tid, name, *mark = call.removesuffix(";").split()
        kinds = {"{": [EventKind.ASKED], "}": [EventKind.ACQUIRED]}
        both = [EventKind.ASKED, EventKind.ACQUIRED]
        entries += [(int(tid), name, kind) for kind in (kinds[mark[0]] if mark else both)]
    columns = {name: np.zeros(len(entries), EVENT[name]) for name in EVENT.names or ()}
    for row, (tid, name, kind) in enumerate(entries):
        columns["time_ns"][row], columns["tid"][row], columns["kind"][row] = row, tid, kind
        columns["mm"][row] = AT[name] + 4  # behind the landing pad of indirect branches
    graph = graph or GraphCalls(SYMBOLS, {ZAP, FAULTS}, {PS})
    found = graph.paired(columns)
    assert set(found["mm"].tolist()) <= {MM}
    rows = zip(*(found[name].tolist() for name in ("tid", "kind", "write", "success")))
    return [(tid, EventKind(kind).name, write, success) for tid, kind, write, success in rows]


def test_what_is_asked_for_under_the_mmap_lock_is_another_semaphore() -> None:
    assert told(
        f"{ZAP} __x64_sys_munmap {{",
        f"{ZAP} down_write_killable;",
        f"{ZAP} down_write;",  # an anon_vma's
        f"{ZAP} up_write;",
        f"{ZAP} downgrade_write;",
        f"{ZAP} down_read;",
        f"{ZAP} up_read;",
        f"{ZAP} up_read;",
        f"{ZAP} __x64_sys_munmap }}",
    ) == [
        (ZAP, "ASKED", 1, 0),
        (ZAP, "ACQUIRED", 1, 1),
        (ZAP, "ACQUIRED", 0, 1),
        (ZAP, "RELEASED", 0, 0),
    ]


def test_a_trylock_has_failed_where_the_task_asks_again() -> None:
    for around in ((), ("__do_page_fault",), ("do_user_addr_fault",)):
        begin = [f"{FAULTS} {name} {{" for name in around]
        end = [f"{FAULTS} {name} }}" for name in around]
        waited = [f"{FAULTS} down_read_trylock;", f"{FAULTS} down_read;", f"{FAULTS} up_read;"]
        assert told(*begin, *waited, *end) == [
            (FAULTS, "ASKED", 0, 0),
            (FAULTS, "ACQUIRED", 0, 0),
            (FAULTS, "ASKED", 0, 0),
            (FAULTS, "ACQUIRED", 0, 1),
            (FAULTS, "RELEASED", 0, 0),
        ]
        at_once = [f"{FAULTS} down_read_trylock;", f"{FAULTS} down_write;", f"{FAULTS} up_write;"]
        assert told(*begin, *at_once, f"{FAULTS} up_read;", *end) == [
            (FAULTS, "ASKED", 0, 0),
            (FAULTS, "ACQUIRED", 0, 1),
            (FAULTS, "RELEASED", 0, 0),
        ]


def test_a_lock_that_is_never_given_back_was_not_had() -> None:
    killed = [f"{ZAP} SyS_munmap {{", f"{ZAP} down_write_killable;", f"{ZAP} SyS_munmap }}"]
    assert told(*killed) == [(ZAP, "ASKED", 1, 0), (ZAP, "ACQUIRED", 1, 0)]
    in_a_fault = [f"{FAULTS} down_read_trylock;", f"{FAULTS} down_read_killable;"]
    both = [(FAULTS, "ASKED", 0, 0), (FAULTS, "ACQUIRED", 0, 0)] * 2
    assert told(*in_a_fault, f"{FAULTS} do_exit {{") == both


def test_who_reads_proc_has_the_targets_lock_and_its_own_in_a_fault() -> None:
    assert told(
        f"{PS} down_read;",  # outside of a read: a directory's
        f"{PS} up_read;",
        f"{PS} vfs_read {{",
        f"{PS} mm_access {{",
        f"{PS} down_read_killable;",  # exec_update_lock
        f"{PS} up_read;",
        f"{PS} mm_access }}",
        f"{PS} do_user_addr_fault {{",
        f"{PS} down_read_trylock;",
        f"{PS} up_read;",
        f"{PS} do_user_addr_fault }}",
        f"{PS} down_read_killable;",
        f"{PS} up_read;",
        f"{PS} vfs_read }}",
    ) == [(PS, "ASKED", 0, 0), (PS, "ACQUIRED", 0, 1), (PS, "RELEASED", 0, 0)]


def test_an_exits_semaphores_are_nobodys() -> None:
    """A real 4.9 asks in exit_mmap for anon_vmas' semaphores alone, 6.1 for the mmap_lock first."""
    assert not told(
        f"{ZAP} do_exit {{",
        f"{ZAP} down_read;",
        f"{ZAP} up_read;",
        f"{ZAP} exit_mmap {{",
        f"{ZAP} down_write;",
        f"{ZAP} up_write;",
        f"{ZAP} exit_mmap }}",
    )
    plan = GuestPlan(4096, teardown="exit")
    seen = Capsule({f"events/ftrace/{name}/format": b"" for name in ("funcgraph_entry",)})
    with pytest.raises(UserError, match="can't tell an exit's mmap_lock"):
        recording.require_told(GuestRun(plan, seen))


def test_a_release_that_nothing_took_is_counted() -> None:
    graph = GraphCalls(SYMBOLS, {ZAP}, ())
    assert (
        told(f"{ZAP} sys_munmap {{", f"{ZAP} up_write;", f"{ZAP} sys_munmap }}", graph=graph) == []
    )
    assert graph.unanswered == 1


def test_functions_that_were_never_entered_and_strangers_are_passed_over() -> None:
    assert (
        told("99 sys_munmap {", "99 down_write;", f"{ZAP} sys_munmap }}", f"{ZAP} down_read }}")
        == []
    )
    assert TracedFunctions.told([]).of(np.array([1, 2], np.uint64)).tolist() == [-1, -1]
    assert SYMBOLS.of(np.array([AT["mm_access"] + 200], np.uint64)).tolist() == [-1]


def test_the_probe_follows_the_same_functions() -> None:
    text = (Path(build.__file__).parent / "lockgraph.c").read_text()
    lists = dict(re.findall(r"(graph_\w++)\[\] = \{([^}]*+)\}", text))
    words = {name: re.findall(r'"([^"]*+)"', body) for name, body in lists.items()}
    calls = [f"{p}{c}" for p in words["graph_prefixes"] for c in words["graph_calls"]]
    assert sorted([*calls, *words["graph_around"]]) == sorted(AROUND)
