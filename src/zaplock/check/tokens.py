"""Tokens: SCENARIO@DESIGN~SCHEDULE names all that it takes to see a run again."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from zaplock.check.scenarios import Scenario
from zaplock.check.verdicts import (
    Added,
    closed_system,
    find_design,
    find_scenario,
    spell_rules,
)
from zaplock.engines.checking.configuration import Configuration
from zaplock.engines.checking.schedule import spell, unspell
from zaplock.errors import UserError
from zaplock.model.words import MEMORY_MODELS, MemoryModel
from zaplock.protocols.design import Design
from zaplock.untrusted_names import shell_word

_FAILING: Final = re.compile(r"~failing([1-9])$")


@dataclass(frozen=True)
class Token:
    """A token, read: what to run and in which order."""

    scenario: Scenario
    design: Design
    reference: str
    """How the design is asked for."""
    fair: bool
    schedule: tuple[int, ...]
    groups: tuple[int, ...]
    cycle: int

    def system(self) -> Configuration:
        """Make the closed system that the schedule belongs to."""
        return closed_system(self.scenario, self.design, self.fair)


def token_of(start: Token, schedule: tuple[int, ...]) -> str:
    """Name another schedule of what a token stands for."""
    scenario = start.scenario
    rule = spell_rules(start.fair, scenario.memory, scenario.failing_allocations)
    return f"{start.scenario.name}@{start.reference}{rule}~{spell(schedule)}"


def read_token(
    text: str, designs: Collection[str] = (), scenario: str = "", added: Added = Added()
) -> Token:
    """Read what `CheckResult.token` wrote; raises UserError where it is none.

    A design or scenario that is a file's (FILE.py:NAME) runs that file, so a token alone, which
    somebody may have sent, doesn't name one: the design must be among `designs`, the scenario must
    be `scenario`, which the user gives.
    """
    rest, tilde, schedule = text.rpartition("~")
    shortage = _FAILING.search(rest)
    rest = _FAILING.sub("", rest)
    memory: MemoryModel = next((one for one in MEMORY_MODELS if rest.endswith(f"~{one}")), "sc")
    rest = rest.removesuffix(f"~{memory}")
    fair = rest.endswith("~fair")
    of, at, design = rest.removesuffix("~fair").partition("@")
    if not tilde or not at:
        raise UserError(f"token {text!r} is not SCENARIO@DESIGN~SCHEDULE as a check prints it")
    if scenario and scenario != of:
        raise UserError(f"token {text!r} is of the scenario {of!r}, and not of {scenario!r}")
    for name, is_given, way_out in (
        (of, of == scenario, f"zaplock check {shell_word(of)} --replay ..."),
        (design, design in designs, f"--design {shell_word(design)} as well"),
    ):
        if _runs_a_file(name) and not is_given:
            raise UserError(
                f"token {text!r} would run the file of {name!r}: if you trust that file, "
                f"give {way_out}"
            )
    failing = int(shortage[1]) if shortage else 0
    found = find_scenario(of, replace(added, failing=failing), memory)
    system = closed_system(found, find_design(design), fair)
    return Token(found, find_design(design), design, fair, *unspell(schedule, len(system.programs)))


def _runs_a_file(name: str) -> bool:
    """Say whether a name is a file's, which would be run (FILE.py:NAME, also behind a slash)."""
    return ".py:" in name


def replaying(token: str, design: str, scenario: str = "", added: Added = Added()) -> str:
    """Return the command that shows a counterexample again.

    A token doesn't name what would run a file, so the command does (see `read_token`).
    """
    words = ["zaplock", "check"]
    words += [scenario] if _runs_a_file(scenario) else []
    words += ["--replay", token]
    words += ["--design", design] if _runs_a_file(design) else []
    for option, names in (("--operation", added.operations), ("--invariant", added.invariants)):
        words += [word for name in names for word in (option, name)]
    return " ".join(map(shell_word, words))
