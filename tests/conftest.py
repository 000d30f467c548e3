"""Fixtures that tests of several modules take."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Generator, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, TextIO

import jsonschema
import pytest
from _pytest.runner import runtestprotocol
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False
"""Pytest writes the asserts of each module anew that it imports, zaplock's own among them: a worker
that may not keep them takes 10 s of CPU time for that. While tests run it is as it was before: they
write modules that others soon replace.
"""
from zaplock import cli  # noqa: E402

ONLY_COMPUTE = {
    "test_actors",
    "test_advice_followed",
    "test_arrows",
    "test_authors",
    "test_behind",
    "test_bench_table",
    "test_blame",
    "test_blame_fast",
    "test_call_counts",
    "test_check",
    "test_check_processes",
    "test_check_split",
    "test_closed_loops",
    "test_command_line",
    "test_compare",
    "test_compiled_levels",
    "test_cost_units",
    "test_dependencies",
    "test_diff",
    "test_direct",
    "test_exhaustive",
    "test_face",
    "test_fidelity",
    "test_file_tables",
    "test_fleet",
    "test_fleet_store",
    "test_footprints",
    "test_found",
    "test_fuzz",
    "test_fuzz_cli",
    "test_graph_calls",
    "test_guest",
    "test_hidden_state",
    "test_history",
    "test_holds",
    "test_holds_reference",
    "test_html_page",
    "test_hung_task",
    "test_import",
    "test_import_forms",
    "test_kernel_stacks",
    "test_lab",
    "test_leaps",
    "test_liveness",
    "test_lock_probes",
    "test_mistakes",
    "test_model_random",
    "test_mutations",
    "test_names",
    "test_odd_recordings",
    "test_on_disk",
    "test_oracle_guests",
    "test_outputs",
    "test_outside",
    "test_own_protocols",
    "test_pages",
    "test_patterns",
    "test_perfetto",
    "test_profiles",
    "test_programs",
    "test_proposals",
    "test_protocols",
    "test_quota",
    "test_race",
    "test_rare_programs",
    "test_reader_files",
    "test_recipes",
    "test_recorded_children",
    "test_recorded_files",
    "test_recorded_kinds",
    "test_recorded_tracers",
    "test_recorder_flight",
    "test_recording_file",
    "test_release_interrupted",
    "test_release_owners",
    "test_release_queue",
    "test_release_recipes",
    "test_release_stress",
    "test_report",
    "test_report_simulated",
    "test_rivals",
    "test_scale",
    "test_searches_at_once",
    "test_sequential",
    "test_sizes",
    "test_stacks_views",
    "test_store",
    "test_strace_versions",
    "test_strangers",
    "test_thread_accesses",
    "test_timed",
    "test_timed_locks",
    "test_timed_rwsem",
    "test_timeline",
    "test_told",
    "test_transcripts",
    "test_weak_memory",
    "test_wide_levels",
    "test_without_locks",
}
"""Modules whose tests neither trace nor time anything, so that they can run beside the others."""
BUT_LOOK = {
    "test_a_cell_of_a_notebook_is_recorded",
    "test_record_ends_as_its_command_ends",
    "test_the_kernel_at_hand_stands_in_the_last_row",
    "test_the_next_command_has_the_costs_of_this_one",
    "test_the_recorder_tells_of_32_bit_calls",
    "test_the_same_probe_runs_on_the_host_and_leaves_no_instance",
    "test_this_kernels_munmap_under_a_tenth_of_a_cpu_takes_as_long_as_predicted",
    "test_this_machines_kernel_holds_the_lock_in_the_predicted_modes",
    "test_what_was_recorded_is_json_too",
}
"""Tests of those modules that do, all the same."""
SHARE = {
    "test_check_split",
    "test_compare",
    "test_compiled_levels",
    "test_exhaustive",
    "test_face",
    "test_fleet",
    "test_fuzz",
    "test_guest",
    "test_lab",
    "test_oracle_guests",
    "test_pages",
    "test_patterns",
    "test_transcripts",
}
"""Those of them whose tests share what took long to make: they stay on one worker."""

os.environ.pop("COLUMNS", None)  # what is read here has no width, as a file has none

MACHINE = "machine"
TRIES = 3
"""Of a case, or of what is marked `by_chance`: others may compute just when somebody looks."""
TURNS = Path(tempfile.gettempdir()) / f"zaplock-tests-{os.geteuid()}"
QUEUE, TURN = 0, 1
"""The bytes of that file that are locked."""
REPEATED = "repeated"
TIMER = pytest.StashKey[object]()


class OneLooksAtTheMachine(LoadScopeScheduling):  # type: ignore[misc]
    """One worker gets everything that looks at this machine, one test after the other."""

    def _split_scope(self, nodeid: str) -> str:
        if not only_computes(nodeid):
            return MACHINE
        module, _ = parts_of(nodeid)
        return module if module in SHARE else nodeid


def parts_of(nodeid: str) -> tuple[str, str]:
    """Return a test's module and its name, without its parameters."""
    path, name, *_ = nodeid.split("::")
    return Path(path).stem, name.partition("[")[0]


def only_computes(nodeid: str) -> bool:
    """Tell whether a test may run beside those that look at this machine."""
    module, name = parts_of(nodeid)
    return module in ONLY_COMPUTE and name not in BUT_LOOK


def pytest_collection_finish() -> None:
    """Let no collection walk again over what lasts as long as the session: tests and modules."""
    sys.dont_write_bytecode = WRITES_NO_BYTECODE
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneLooksAtTheMachine:
    """Deal the tests out to the workers."""
    return OneLooksAtTheMachine(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Repeat what failed by chance, and log its last try; which ones were is told at the end."""
    if only_computes(item.nodeid) and "PYTEST_XDIST_WORKER" in os.environ:
        give_way()
    if item.path.parent.name != "cases" and item.get_closest_marker("by_chance") is None:
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in reversed(range(TRIES)):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not left or not any(report.failed for report in reports):
            break
        item.user_properties.append((REPEATED, " ".join(map(reason, reports)).strip()))
        item.session._setupstate.teardown_exact(None)  # what it looked at is made anew as well
        item._initrequest()  # type: ignore[attr-defined]
        if TIMER in item.stash:  # a failure has stopped the timer
            item.ihook.pytest_timeout_set_timer(item=item, settings=item.stash[TIMER])
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> Generator[None, bool, bool]:
    """Keep how long a test may take for its next try."""
    item.stash[TIMER] = settings
    return (yield)


@functools.cache
def give_way() -> None:
    """Let the other worker go first: the group that looks at the machine is the first one given."""
    os.nice(10)


def reason(report: pytest.TestReport) -> str:
    """Give what a failed part of a test said in its first lines."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(getattr(crash, "message", report.longrepr))[:400] if report.failed else ""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which needed another try, and why."""
    reports = [one for each in terminalreporter.stats.values() for one in each]
    repeated = {
        (one.nodeid, why)
        for one in reports
        for name, why in getattr(one, "user_properties", ())
        if name == REPEATED
    }
    for nodeid, why in sorted(repeated):
        terminalreporter.write_line(f"repeated: {nodeid}: {why}")


@pytest.fixture(autouse=True)
def turn_at_the_machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let nobody look at the machine while a test takes CPUs away from everybody.

    One worker has all tests that look, one after the other: this is about those of other sessions.
    What only computes goes on all the same, as it has no moment that it could miss, unless it needs
    two CPUs.
    """
    needs = request.node.get_closest_marker("needs_cpus") is not None
    if only_computes(request.node.nodeid) and not needs:
        yield
        return
    takes = request.node.get_closest_marker("takes_cpus") is not None
    with open(TURNS, "a+b") as turns:
        fcntl.lockf(turns, fcntl.LOCK_EX, 1, QUEUE)  # nobody overtakes who waits for all others
        fcntl.lockf(turns, fcntl.LOCK_EX if takes else fcntl.LOCK_SH, 1, TURN)
        fcntl.lockf(turns, fcntl.LOCK_UN, 1, QUEUE)
        yield


@pytest.fixture
def segment() -> Iterator[SharedMemory]:
    """Lend a segment of 2 MiB that is full of z."""
    made = SharedMemory(create=True, size=2 << 20)
    made.buf[:] = b"z" * made.size
    yield made
    made.unlink()


@functools.cache
def _validator(verb: str) -> jsonschema.Draft202012Validator:
    from zaplock.cli._json_schemas import schema

    return jsonschema.Draft202012Validator(_closed(schema(verb)))


def _closed(schema: Any) -> Any:
    """Return a schema that lets no field through that it doesn't name."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    rules = {name: _closed(one) for name, one in schema.items()}
    return {**rules, "additionalProperties": False} if "properties" in rules else rules


class _Told:
    """Standard output that remembers what was written to it."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.text = out, io.StringIO()

    def write(self, text: str) -> int:
        self.text.write(text)
        return self.out.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.out, name)


@pytest.fixture(autouse=True)
def json_fits_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever document any test lets a verb print with --json is its schema's, no field more."""
    run = cli._run

    def fitting(verb: str, arguments: list[str], *, own_process: bool) -> int:
        if "--json" not in arguments:
            return run(verb, arguments, own_process=own_process)
        told = _Told(sys.stdout)
        with contextlib.redirect_stdout(told):
            code = run(verb, arguments, own_process=own_process)
        lines = told.text.getvalue()
        each = lines.splitlines() if "--explore" in arguments else [lines] if lines.strip() else []
        for document in each:
            read = json.loads(document)
            _validator(verb).validate(read)
            assert not list(_fractions(read)), "times are whole nanoseconds"
        return code

    monkeypatch.setattr(cli, "_run", fitting)


def _fractions(read: Any, name: str = "") -> Iterator[str]:
    """Name the times in a document that are no whole numbers; 60.0 is none either."""
    if isinstance(read, dict):
        for key, value in read.items():
            # In a dict of times by task or cause the name stands above.
            yield from _fractions(value, key if key.endswith("_ns") else name)
    elif isinstance(read, list):
        for value in read:
            yield from _fractions(value, name)
    elif isinstance(read, float) and name:
        yield name


LONGEST_LINE = 300
"""Of an error, in characters; a value that the user gave counts for no more than so many:"""
LONGEST_VALUE = 40


@pytest.fixture(autouse=True)
def errors_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever error any test is told: it fits into a few lines of a terminal."""
    readable = cli.readable

    def short(text: str) -> str:
        told = readable(text)
        plain = re.sub(rf"(\S{{{LONGEST_VALUE}}})\S+", r"\1", told)
        assert len(plain) <= LONGEST_LINE, f"{len(plain)} characters: {told}"
        return told

    monkeypatch.setattr(cli, "readable", short)
