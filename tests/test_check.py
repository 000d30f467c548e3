"""zaplock check: the bugs of history are found where they were, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zaplock.check.bugs import BUGS, LIVENESS, Bug, expected, has
from zaplock.check.counterexample import tell
from zaplock.check.matrix import check_row, unexpected
from zaplock.check.pairs import SIDES, pair_names
from zaplock.check.scenarios import parse_operation, shipped_scenarios
from zaplock.check.tokens import read_token
from zaplock.check.verdicts import check, closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.designs import SHIPPED
from zaplock.designs.linux import linux, releases_that_differ
from zaplock.designs.rules_read import observe
from zaplock.engines.checking.exhaustive import explore
from zaplock.engines.checking.reference import explore_plainly
from zaplock.errors import UserError
from zaplock.linux_version import parse
from zaplock.model.violations import Invariant

RELEASES = [design.name for design in releases_that_differ()]
OWN_BUGS = [
    ("munmap-fault-gup", "linux-6.18/zap-before-detach", Invariant.OLD_CONTENT_OR_SIGSEGV),
    ("munmap-fault-gup", "linux-6.18/no-detached-recheck", Invariant.NO_STALE_VMA),
    ("uffd-event", "rfc-v6/event-before-unlock", Invariant.NO_DEADLOCK),
    ("stack-rot", "linux-6.1/growth-under-read", Invariant.USE_AFTER_FREE),
]
RULE_OF = {
    "expand": Invariant.NO_VMA_OVER_FREED_TABLES,
    "ceiling": Invariant.NO_LIVE_PTE_IN_FREED_TABLE,
    "nested-flush": Invariant.NO_STALE_TRANSLATION,
    "missed-flush": Invariant.NO_STALE_TRANSLATION,
    "reader-count": Invariant.MUTUAL_EXCLUSION,
    "lost-update": Invariant.BOOKS_BALANCE,
    "arch-unmap": Invariant.PRIVATE_UNDER_READ,
    "hugetlb": Invariant.PRIVATE_UNDER_READ,
    "mremap-flush": Invariant.NO_STALE_TRANSLATION,
}


@pytest.mark.parametrize("scenario", shipped_scenarios())
def test_a_written_scenario_breaks_where_history_says_and_is_proved_elsewhere(
    scenario: str,
) -> None:
    """Under every shipped design, and every release that differs from the one before it."""
    cells = check_row(scenario, list(dict.fromkeys([*SHIPPED, *RELEASES])))
    assert not unexpected(cells), [(c.design, c.verdict, c.invariants, c.why) for c in cells]


@pytest.mark.parametrize("side", SIDES)
def test_pairs_break_where_history_says_and_are_proved_elsewhere(side: str) -> None:
    mine = [name for name in pair_names() if name.startswith(f"{side}+")]
    for name in mine:
        strange = unexpected(check_row(name, list(SHIPPED)))
        assert not strange, [(c.scenario, c.design, c.verdict, c.invariants) for c in strange]


@pytest.mark.parametrize("scenario", RULE_OF)
def test_a_bug_of_history_has_a_short_counterexample(scenario: str) -> None:
    bug = next(bug for bug in BUGS if scenario in bug.scenarios)
    affected = [design for design in SHIPPED.values() if has(design, bug)]
    assert affected
    for design in affected:
        found = check(find_scenario(scenario), design)
        assert found.violation is not None
        assert found.violation.invariant is RULE_OF[scenario]
        assert len(found.groups or found.schedule) <= 25


@pytest.mark.parametrize(("scenario", "design", "rule"), OWN_BUGS)
def test_a_bug_that_no_shipped_design_has_is_found_in_its_mutant(
    scenario: str, design: str, rule: Invariant
) -> None:
    found = check(find_scenario(scenario), find_design(design))
    assert found.violation is not None
    assert found.violation.invariant is rule
    assert len(found.groups or found.schedule) <= 25
    assert check(find_scenario(scenario), find_design(design.partition("/")[0])).verdict == "proved"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_history_and_the_rules_of_a_design_tell_the_same_bugs(bug: Bug) -> None:
    for design in releases_that_differ():
        assert bug.is_in(parse(design.kernel)) == bug.rules(design), design.name
    assert all(find_scenario(name) for name in bug.scenarios)


def test_a_backport_tells_two_stable_releases_apart() -> None:
    cells = check_row("stack-rot", ["linux-6.1.36", "linux-6.1.37", "linux-6.4", "linux-6.4.1"])
    assert [cell.verdict for cell in cells] == ["broken", "proved", "broken", "proved"]
    assert [cell.known for cell in cells] == ["stale node", "", "stale node", ""]


def test_another_process_s_vma_is_met_in_the_releases_that_had_that_and_in_no_other() -> None:
    releases = ["6.14", "6.15.9", "6.15.10", "6.16", "6.16.1", "6.17", "7.3"]
    cells = check_row("vma-reuse", [f"linux-{release}" for release in releases])
    assert [cell.verdict == "broken" for cell in cells] == [False, True, False, True, *[False] * 3]
    assert {cell.known for cell in cells} == {"", "another process's VMA"}
    assert not unexpected(cells)


@pytest.mark.parametrize(
    ("scenario", "rule", "invariant"),
    [
        ("rwsem-leavers", {"rwsem": replace(linux("7.1").rwsem, del_waiter="inverted")},
         "NO_DEADLOCK"),
        ("rwsem-leavers", {"rwsem": replace(linux("7.1").rwsem, del_waiter="late")}, "NO_DEADLOCK"),
        ("collapse-dontneed", {"collapse_locks_first": False}, "USE_AFTER_FREE"),
    ],
)  # fmt: skip
def test_a_bug_that_was_mended_before_its_release_shows_without_the_repair(
    scenario: str, rule: dict[str, Any], invariant: str
) -> None:
    before = replace(linux("7.1"), name="before", **rule)
    found = check(find_scenario(scenario), before)
    assert found.verdict == "broken"
    assert found.violation is not None
    assert found.violation.invariant.name == invariant
    assert expected(scenario, before) is not None
    assert check(find_scenario(scenario), linux("7.1")).verdict == "proved"


@pytest.mark.parametrize("scenario", ["stack-rot", "reader-count", "exit-reap", "mremap-touch"])
def test_a_verdict_is_that_of_all_designs_with_the_rules_that_were_asked_for(scenario: str) -> None:
    cells = check_row(scenario, RELEASES)
    assert any(cell.shared for cell in cells)
    for cell in filter(lambda cell: cell.shared, cells):
        alone = check_row(scenario, [cell.design])[0]
        assert replace(alone, seconds=0) == replace(cell, seconds=0, shared=False)


def test_what_a_design_is_asked_in_a_loop_makes_no_other_states() -> None:
    """Who goes round a loop is where he was, though he read a rule on the way."""
    scenario, design = find_scenario("fork-guarded"), SHIPPED["linux-6.18"]
    plain, observed = (
        explore(closed_system(scenario, each, fair=True)) for each in (design, observe(design))
    )
    assert (observed.answer, observed.states) == (plain.answer, plain.states)


WRAPPED = """
from dataclasses import replace
from zaplock.designs.linux import LINUX_6_18, linux

def wrapped(design):
    async def do_munmap(cx, start, length, events, downgrade=False):
        return await design.do_munmap(cx, start, length, events, downgrade)
    rwsem = replace(design.rwsem, name="my own")
    return replace(design, name="wrapped", do_munmap=do_munmap, rwsem=rwsem)

OLD = wrapped(linux("4.9"))
ROTTEN = wrapped(replace(LINUX_6_18, stack_growth="read"))
NEW = wrapped(LINUX_6_18)
"""


@pytest.mark.parametrize(
    ("name", "scenario", "verdict"),
    [
        ("ROTTEN", "stack-rot", "broken"),
        ("NEW", "stack-rot", "proved"),
        ("OLD", "stack-rot", "proved"),
        ("OLD", "reader-count", "broken"),
        ("NEW", "reader-count", "proved"),
        ("OLD", "missed-flush", "broken"),
        ("NEW", "expand", "proved"),
    ],
)
def test_a_wrapped_protocol_and_a_renamed_policy_get_the_verdict_of_what_they_wrap(
    name: str, scenario: str, verdict: str, tmp_path: Path
) -> None:
    file = tmp_path / "wrapped.py"
    file.write_text(WRAPPED)
    cell = check_row(scenario, [f"{file}:{name}"])[0]
    assert cell.verdict == verdict
    assert bool(cell.known) == (verdict == "broken"), "its rules make the bug"


def test_the_liveness_promise_is_broken_by_a_queued_writer_everywhere() -> None:
    for cell in check_row(LIVENESS, list(SHIPPED)):
        assert cell.invariants == ("READER_WAITS_EXCLUSIVE_ONLY",), cell.design


def test_without_a_queued_writer_the_liveness_promise_is_kept() -> None:
    import msgspec

    convoy = find_scenario(LIVENESS)
    readers = msgspec.structs.replace(
        convoy, task=tuple(task for task in convoy.task if task.name != "mprotect")
    )
    for design in SHIPPED.values():
        if design.munmap_downgrades:
            assert check(readers, design).verdict == "broken", "munmap itself is a writer"
    alone = msgspec.structs.replace(
        convoy, task=tuple(task for task in convoy.task if task.name in ("munmap", "proc"))
    )
    for name in SHIPPED:
        assert check(alone, find_design(name)).verdict == "proved"


@pytest.mark.parametrize("design", ["linux-4.9", "rfc-v6", "linux-6.18"])
@pytest.mark.parametrize("scenario", ["expand", "munmap-reuse", "uffd-event", "munmap+truncate"])
def test_packed_states_and_whole_states_agree_on_address_spaces(scenario: str, design: str) -> None:
    system = closed_system(find_scenario(scenario), find_design(design))
    packed = explore(system, all_violations=True)
    whole = explore_plainly(system, exact=True)
    assert (packed.answer, packed.states, packed.transitions) == (
        whole.answer, whole.states, whole.transitions,
    )  # fmt: skip
    rules = [{one.invariant for one in verdict.violations} for verdict in (packed, whole)]
    assert rules[0] == rules[1]


def test_a_token_replays_to_the_same_violation_and_story() -> None:
    found = check(find_scenario("ceiling"), find_design("linux-4.20"))
    token = read_token(found.token)
    assert (token.schedule, token.groups) == (found.schedule, found.groups)
    stories = [tell(token.system(), token.schedule, (), token.groups) for _ in range(2)]
    assert stories[0] == stories[1]
    assert found.violation is not None
    assert stories[0].invariant == found.violation.invariant.name
    assert stories[0].rows[-1].result == "violation"
    assert stories[0].rows[-1].function == "free_pgtables"


# The verb


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main(["check", *argv])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_json_has_the_promised_shape(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "expand", "--design", "linux-4.20", "--json")
    found = json.loads(out)
    assert code == 1
    assert err.startswith("next: zaplock check --replay")
    wanted = {"scenario", "design", "verdict", "invariant", "states", "seconds", "token", "steps"}
    assert wanted <= set(found)
    assert (found["scenario"], found["design"]) == ("expand", "linux-4.20")
    assert (found["verdict"], found["invariant"]) == ("broken", "NO_VMA_OVER_FREED_TABLES")
    assert found["steps"][-1]["result"] == "violation"
    code, out, _ = run(capsys, "expand", "--design", "linux-5.10", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["invariant"], found["token"], found["steps"]) == (
        0, "proved", None, None, [],
    )  # fmt: skip


def test_a_replay_tells_the_story_again(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "expand", "--design", "rfc-v6", "--json")
    token = json.loads(out)["token"]
    code, out, _ = run(capsys, "--replay", token)
    assert code == 1
    assert "downgrade_write(mmap_lock)" in out
    assert "NO_VMA_OVER_FREED_TABLES: grow puts a VMA over [p11, p12)" in out
    assert "munmap D, grow R" in out


def test_html_needs_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "story.html"
    run(capsys, "expand", "--design", "linux-4.20", "--html", str(page))
    text = page.read_text()
    assert "startPlayer" in text
    assert "expand_stack" in text
    assert "http:" not in text.replace("http://www.w3.org", "")
    assert "https:" not in text


def test_a_limit_and_a_vacuous_scenario_end_with_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = run(
        capsys, "munmap-fault-gup", "--design", "linux-6.18", "--max-states", "100", "--json"
    )
    assert (code, json.loads(out)["verdict"]) == (3, "not-exhausted")
    dull = tmp_path / "dull.toml"
    dull.write_text(
        'summary = "nothing downgrades"\nsometimes = ["downgraded"]\n[[map]]\npages = [0, 2]\n'
        '[[task]]\ndo = ["read 0 -> 0"]\n'
    )
    code, out, _ = run(capsys, str(dull), "--design", "linux-6.18", "--json")
    found = json.loads(out)
    assert (code, found["verdict"], found["why"]) == (3, "vacuous", "never: downgraded")


def test_the_limit_of_memory_holds_for_whole_states_too() -> None:
    words = ["check", "munmap-fault-gup", "--design", "linux-6.18", "--exact", "--max-memory", "90"]
    code = (  # ru_maxrss would count who started it, too
        "import re\nfrom pathlib import Path\nfrom zaplock.cli import main\n"
        f"ended = main({words!r})\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())\n"
        "print(ended, int(peak[1]) >> 10)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    ended, peak_mib = map(int, done.stdout.splitlines()[-1].split())
    assert ended == 3
    assert peak_mib < 100


@pytest.mark.parametrize("design", ["linux-4.9", "rfc-v6", "linux-6.18"])
def test_an_assertion_that_fails_in_an_interleaving_is_a_counterexample(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, design: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'summary = "two munmaps in one mapping"\n[[map]]\npages = [0, 8]\n'
        '[[task]]\ndo = ["munmap 1 2"]\n[[task]]\ndo = ["munmap 4 2"]\n'
    )
    code, out, err = run(capsys, str(path), "--design", f"{design}/no-mmap-lock")
    assert (code, err) == (1, "")
    assert "ASSERTION_HOLDS" in out
    assert "the easiest counterexample under" in out


def test_random_runs_find_a_bug_and_prove_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "missed-flush", "--design", "linux-4.9", "--sample", "500", "--pct", "2", "--json"
    )
    assert (code, json.loads(out)["verdict"]) == (1, "broken")
    code, out, _ = run(capsys, "missed-flush", "--design", "linux-6.18", "--sample", "50", "--json")
    assert (code, json.loads(out)["verdict"]) == (3, "not-exhausted")


def test_two_processes_and_whole_states_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    states = set()
    for extra in ([], ["--jobs", "2"], ["--exact"]):
        code, out, _ = run(capsys, "munmap-reuse", "--design", "rfc-v6", "--json", *extra)
        found = json.loads(out)
        assert (code, found["verdict"]) == (0, "proved")
        states.add(found["states"])
    assert len(states) == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nonsense"], "no scenario 'nonsense'"),
        (["munmap+sleep"], "no pair 'munmap+sleep'"),
        (["expand", "--design", "linux-9"], "no design 'linux-9'"),
        (["expand", "--design", "linux-6.18/none"], "no mutation 'none' of linux-6.18"),
        ([], "give one of: a SCENARIO"),
        (["--all", "--sample", "5"], "--sample is for one SCENARIO"),
        (["expand", "--jobs", "0"], "--jobs 0 is not above 0"),
        (["expand", "--pct", "2"], "--pct needs --sample"),
        (["--replay", "expand"], "is not SCENARIO@DESIGN~SCHEDULE"),
        (["--replay", "expand@linux-4.20~a99"], "the schedule doesn't fit"),
        (["missing.toml"], "can't be read"),
        (["expand", "--html", "/nowhere/x.html", "--design", "rfc-v6"], "can't be written"),
    ],
)
def test_bad_input_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[map]]\npages = [0, 2]", "missing required field `summary`"),
        ('summary = "x"\ncolour = "red"', "unknown field"),
        ('summary = "x"\n[[task]]\ndo = ["munmap a b"]', "arguments must be numbers"),
        ('summary = "x"\n[[task]]\ndo = ["munmap 0 4 -> fine"]', "'fine' is neither"),
        ('summary = "x"\n[[task]]\ndo = ["munmap 0"]', "is written 'munmap PAGE PAGES'"),
        ('summary = "x"\n[[task]]\ndo = ["dance 0"]', "no operation 'dance'"),
        ('summary = "x"\n[[task]]\ndo = ["truncate 1 0"]', "its file 1 is not among"),
        ('summary = "x"', "has no tasks"),
        ('summary = "x"\nsometimes = ["rain"]\n[[task]]\ndo = ["read 0"]', "nothing is called"),
    ],
)
def test_a_broken_scenario_file_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    code, _, err = run(capsys, str(path), "--design", "linux-6.18")
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_results_are_read_by_name() -> None:
    operation = parse_operation("read 3 -> old SIGSEGV | 7")
    assert operation.expected == (1003, -11, 7)
    with pytest.raises(UserError, match="'old' is the content of a page"):
        parse_operation("exit -> old")


FIRES = {
    Invariant.NO_PTE_BEHIND_ZAP: ("expand", "rfc-v6"),
    Invariant.NO_VMA_OVER_FREED_TABLES: ("expand", "rfc-v6"),
    Invariant.NO_STALE_VMA: ("munmap-fault-gup", "linux-6.18/no-detached-recheck"),
    Invariant.TEARDOWN_ORDER: ("munmap-file", "linux-6.1/no-rmap-unlink"),
    Invariant.PRIVATE_UNDER_READ: ("hugetlb", "rfc-v6-posted"),
    Invariant.LOCK_MODE: ("munmap-fault-gup", "linux-4.20/unlock-read-as-write"),
    Invariant.OLD_CONTENT_OR_SIGSEGV: ("munmap-fault-gup", "linux-6.1/zap-before-detach"),
    Invariant.NO_STALE_TRANSLATION: ("missed-flush", "linux-4.9"),
    Invariant.NO_LIVE_PTE_IN_FREED_TABLE: ("ceiling", "linux-4.20"),
    Invariant.WALK_INSIDE_VMA: ("munmap-lower-half", "linux-4.18/fault-without-lock"),
    Invariant.ERROR_LEAVES_NO_TRACE: ("brk-error", "linux-5.10/no-rollback"),
    Invariant.BOOKS_BALANCE: ("lost-update", "linux-5.10"),
    Invariant.NO_DEADLOCK: ("uffd-event", "linux-4.20/event-before-unlock"),
    Invariant.READER_WAITS_EXCLUSIVE_ONLY: ("convoy", "linux-6.18"),
    Invariant.BOUNDED_HOLD: ("bounded-cut", "linux-6.18"),
    Invariant.RETURN_MEANS_GONE: ("dying-twice", "linux-6.18-dying/nobody-gives-way"),
    Invariant.NO_SPURIOUS_ENOMEM: ("dying-gap", "linux-6.18-dying/nobody-gives-way"),
    Invariant.NO_SPURIOUS_SEGV: ("dying-stack", "linux-6.18-dying/fails-instead-of-waiting"),
    Invariant.MUTUAL_EXCLUSION: ("reader-count", "linux-4.20"),
    Invariant.HOLDER_SEES: ("rwsem-acquire", "linux-4.20"),
    Invariant.FORBIDDEN_OUTCOME: ("litmus/sb", "linux-6.18"),
    Invariant.USE_AFTER_FREE: ("stack-rot", "linux-6.18/growth-under-read"),
    Invariant.SNAPSHOT_PER_VMA: ("maps-split", "linux-6.18/maps-without-second-look"),
    Invariant.DISK_APART: ("major-fork", "linux-7.3-wilcox-2026-05-hold"),
    Invariant.BOUNDED_BACKLOG: ("dying-backlog", "linux-6.18-dying/no-tombstone-taken"),
}
ELSEWHERE = {Invariant.NO_LIVELOCK, Invariant.NO_STARVATION, Invariant.ASSERTION_HOLDS,
             Invariant.CODE_RUNS}  # fmt: skip
"""What is found by other means; test_liveness.py and test_hidden_state.py see them fire."""


@pytest.mark.parametrize("rule", [r for r in Invariant if r not in ELSEWHERE])
def test_every_invariant_fires_somewhere(rule: Invariant) -> None:
    scenario, design = FIRES[rule]
    system = closed_system(find_scenario(scenario), find_design(design))
    broken = {one.invariant for one in explore(system, all_violations=True).violations}
    assert rule in broken


def test_a_design_of_ones_own_is_checked_and_its_token_replays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = Path(__file__).parent.parent / "docs" / "examples" / "own_munmap.py"
    code, out, _ = run(capsys, "munmap-reuse", "--design", f"{own}:HASTY", "--json")
    found = json.loads(out)
    assert (code, found["design"]) == (1, "hasty")
    assert found["invariant"] == "NO_VMA_OVER_FREED_TABLES"
    # A token may come from anybody: alone it runs no file.
    code, _, err = run(capsys, "--replay", found["token"])
    assert code == 2
    assert f"--design {own}:HASTY" in err
    code, out, _ = run(capsys, "--replay", found["token"], "--design", f"{own}:HASTY")
    assert code == 1
    assert "own_munmap.py:" in out
    for scenario in ("munmap-reuse", "munmap-fault-gup", "munmap-file", "expand"):
        code, _, _ = run(capsys, scenario, "--design", f"{own}:MENDED", "--json")
        assert code == 0


def test_the_timed_engine_runs_the_same_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "expand", "--design", "linux-4.20", "--json")
    found = json.loads(out)
    code, out, _ = run(capsys, "--replay", found["token"], "--timed", "--json")
    timed = json.loads(out)
    assert code == 1
    assert timed["violation"].startswith(f"{found['invariant']}: grow puts a VMA over [p11, p12)")
    assert [(row["task"], row["step"]) for row in timed["steps"]] == [
        (row["task"], row["does"]) for row in found["steps"]
    ]
    times = [row["at_ns"] for row in timed["steps"]]
    assert times == sorted(times)
    assert times[-1] > 0


def test_the_fair_queue_breaks_nothing_that_history_does_not_know() -> None:
    for scenario in ("expand", "munmap-fault-gup", "munmap+proc", "exit+oom-reap"):
        assert not unexpected(check_row(scenario, list(SHIPPED), queue="fair")), scenario
