"""How verdicts are told: long stories begin with a summary, nothing that matters is cut, and what
no interleaving reached is named."""

from __future__ import annotations

import re

import pytest

from zaplock.check.counterexample import Story, tell
from zaplock.check.matrix import check_row
from zaplock.check.verdicts import check, closed_system, find_design, find_scenario
from zaplock.cli import main
from zaplock.views.counterexample import summary, table
from zaplock.views.matrix import summary as summary_of_all


def story_of(scenario: str, design: str) -> Story:
    found = check(find_scenario(scenario), find_design(design))
    assert found.schedule is not None
    system = closed_system(find_scenario(scenario), find_design(design), found.fair)
    return tell(system, found.schedule, groups=found.groups, cycle=found.cycle)


LONG = [("driver-shrink", "linux-6.18"), ("nested-flush", "linux-4.20"), ("fork-copy", "linux-6.4"),
        ("munmap-file", "linux-6.18/no-i-mmap-lock")]  # fmt: skip


@pytest.mark.parametrize(("scenario", "design"), LONG)
def test_a_long_story_is_told_in_five_lines_first(scenario: str, design: str) -> None:
    story = story_of(scenario, design)
    head, *lines, blank = summary(story)
    assert (head, blank) == ("in short:", "")
    assert 1 < len(lines) <= 5
    assert lines[0].startswith(f"  {story.tasks[story.rows[0].task]}: ")
    last = story.rows[-1]
    assert lines[-1].startswith(f"  {story.tasks[last.task]}: ")
    assert last.step.partition("(")[0] in lines[-1].split(", ")[-1]


def test_a_summary_names_locks_and_what_changed_and_not_what_was_only_read() -> None:
    said = "\n".join(summary(story_of("driver-shrink", "linux-6.18")))
    assert "down_write_killable mmap_lock, detach_vmas_to_be_unmapped, downgrade_write" in said
    assert "find_vmas" not in said


def test_a_summary_names_the_ranges_that_are_locked() -> None:
    said = "\n".join(summary(story_of("no-memory-fixed", "radixvm")))
    assert "lock_range mmap_lock, p2, p4, W, take_range" in said
    assert "unlock_range mmap_lock, p2, p4, W" in said


def test_a_short_story_has_no_summary() -> None:
    assert summary(story_of("expand", "linux-4.20")) == []


@pytest.mark.parametrize(("scenario", "design"), [*LONG, ("expand", "rfc-v6")])
def test_no_column_cuts_a_step_or_its_result(scenario: str, design: str) -> None:
    story = story_of(scenario, design)
    drawn = table(story)
    assert "…" not in drawn
    for row in story.rows:
        result = f" = {row.result}" if row.result not in ("", "violation") else ""
        for word in (row.step + result).split():
            assert word in drawn, row


def test_lines_of_the_protocols_that_nothing_ran_are_listed_when_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["check", "munmap-error", "--design", "linux-6.18"]
    assert main(words) == 0
    assert "no interleaving ran" not in capsys.readouterr().out
    assert main([*words, "--unreached"]) == 0
    said = capsys.readouterr().out
    assert "lines that no interleaving ran under linux-6.18" in said
    assert "munmap.py:" in said, "what comes after the limit of mappings"


def test_all_scenarios_together_say_what_their_audits_cost() -> None:
    cells = check_row("munmap-fault-gup", ["linux-4.9", "linux-6.18"])
    found = re.search(r"audited: \d+ positions and \d+ steps again, \d+ % of the time",
                      "\n".join(summary_of_all(cells)))  # fmt: skip
    assert found is not None
