"""What each verb prints with `--json`, as types; `--json-schema` prints them as a JSON schema.

Fields are added within a version, never renamed or taken away. Times are integer nanoseconds
(`_ns`), sizes bytes. Where a verb prints several kinds of documents (one scenario or all of them),
its schema has each of them.

Where the fields of a document are those of a class, that class is its type. Written out is what is
printed otherwise than it is kept (rounded, named, added to), and the classes that a schema can't be
made from: a field with a default would not be required, and fleet's need polars.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, NotRequired, TypedDict

import msgspec

from zaplock.advise.costs import Costs
from zaplock.lab.scale import MeasuredPoint, Point
from zaplock.measure.guest.debian import DebianKernel
from zaplock.trace.call_counts import CallCount
from zaplock.trace.difference import MeasureChange, Pair
from zaplock.trace.gaps import Gap
from zaplock.trace.teardown_outcome import OutcomeDetail, Stalls

VERSION: Final = 1
DESCRIPTION: Final = (
    "Times are integer nanoseconds (_ns), sizes bytes; what something costs may be a fraction of "
    "them. Fields are added, never renamed or taken away within a version."
)

Mode = Literal["exclusive", "shared"]
CheckWord = Literal["proved", "broken", "vacuous", "not-exhausted", "failed"]
Value = str | int | float | bool | None


class StackJson(TypedDict):
    """Innermost frame first."""

    kernel: list[str]
    user: list[str]


class HoldTimeJson(TypedDict):
    """Where a hold's time went; the parts add up to it."""

    on_cpu_ns: int
    preempted_ns: int
    throttled_ns: int
    asleep_ns: dict[str, int]
    unknown_ns: int


class HoldJson(TypedDict):
    """One hold; `time` where the scheduling of the holder was recorded."""

    mm: str
    tid: int
    comm: str
    mode: Mode
    start_ns: int
    hold_ns: int
    downgraded: bool
    operation: str | None
    length: int
    time: NotRequired[HoldTimeJson]
    why_slow: NotRequired[list[str]]
    stack: NotRequired[StackJson]


class BlameJson(TypedDict):
    """Who kept a wait waiting, as what, and for how much of it."""

    tid: int
    comm: str
    operation: str | None
    length: int
    role: str
    share_ns: int
    stack: NotRequired[StackJson]


class WaitJson(TypedDict):
    """One wait; `at_least` where an end of it was not seen."""

    tid: int
    comm: str
    mm: str
    pid: int | None
    operation: str | None
    length: int
    outcome: str
    mode: Mode
    start_ns: int
    wait_ns: int
    at_least: bool
    blame: list[BlameJson]
    unexplained_ns: int
    free_ns: int
    unseen_ns: int
    stack: NotRequired[StackJson]


@dataclass(frozen=True, slots=True)
class CallJson(CallCount):
    """The calls of one operation by one process, and its name."""

    process: str


class SleptBehindJson(TypedDict):
    """A sleep that another's call ended, without the lock."""

    tid: int
    begin_ns: int
    slept_ns: int
    at_least: bool
    comm: str
    woken_by: int
    woken_by_comm: str
    through: list[str]
    culprit: int
    culprit_comm: str
    operation: str
    length: int
    inside_ns: int


class FoundJson(TypedDict):
    """A task that already waited or held when the recording began."""

    tid: int
    task: str
    state: str
    does: str | None
    mode: Mode | None
    mm: str | None
    operation: str | None
    address: int
    length: int
    since_ns: int | None
    looked_ns: int
    wchan: str | None
    kernel_stack: list[str]


class ReportJson(TypedDict):
    """`zaplock report --json`; with `sees_locks` false nothing is known of holds and waits."""

    kernel: str
    duration_ns: int
    lost_events: int
    holds: list[HoldJson]
    holds_in_part: list[HoldJson]
    waits: list[WaitJson]
    calls: list[CallJson]
    slept_behind: list[SleptBehindJson]
    found: NotRequired[list[FoundJson]]
    gaps: NotRequired[list[Gap]]
    sees_locks: NotRequired[Literal[False]]
    caveats: NotRequired[list[str]]


class WaitingNowJson(TypedDict):
    """Who waits now, and behind whom, in sentences."""

    tid: int
    task: str
    mode: Mode
    wait_ns: int
    behind: list[str]
    stack: NotRequired[StackJson]


class HoldingNowJson(TypedDict):
    """Who holds now."""

    tid: int
    task: str
    mode: Mode
    hold_ns: int
    doing: str
    time: NotRequired[HoldTimeJson]
    why_slow: NotRequired[list[str]]
    stack: NotRequired[StackJson]


class WhyJson(ReportJson):
    """`zaplock why --json`: what goes on now, and the report of the seconds before."""

    ended: bool
    waiting: list[WaitingNowJson]
    holding: list[HoldingNowJson]


class RecordJson(TypedDict):
    """`zaplock record --json`."""

    file: str
    seconds: float
    events: int
    lost_events: int
    notes: list[str]
    found: NotRequired[list[FoundJson]]


class ImportJson(TypedDict):
    """`zaplock import --json`."""

    file: str
    events: int
    kinds: dict[str, int]


class FindingJson(TypedDict):
    """One thing that zaplock uses, and what mends it."""

    name: str
    ok: bool
    seen: str
    use: str
    mend: str
    needed: bool


class DoctorJson(TypedDict):
    """`zaplock doctor --json`; `able` says that it can record here."""

    able: bool
    findings: list[FindingJson]


class TeardownJson(OutcomeDetail):
    """One teardown beside its bystanders; None is what could not be seen."""

    design: str
    bystanders: list[str]
    exclusive_hold_ns: int | None
    shared_hold_ns: int | None
    munmap_ns: int
    stalls: dict[str, Stalls]
    hung_tasks: int
    note: NotRequired[str]


class Brk1Json(TypedDict):
    """How fast threads move the end of the heap."""

    design: str
    threads: int
    size: int
    calls: int
    duration_ns: int
    calls_per_s: int


class CompareJson(TypedDict):
    """`zaplock compare --json`; several sizes are a list of these."""

    size: int
    profile: str
    rows: list[TeardownJson]
    brk1: list[Brk1Json]
    measured: list[TeardownJson] | None


class MeasureJson(TypedDict):
    """`zaplock measure --json`: every run and their median."""

    size: int
    kernel: str
    backing: str
    teardown: str
    rows: list[TeardownJson]
    median: TeardownJson


class DesignChangeJson(TypedDict):
    """A change of Linux and the rules that it sets."""

    since: str
    commit: str | None
    subject: str
    what: str
    rules: dict[str, str]
    backported: list[str]
    doubt: str | None


class ProtectionJson(TypedDict):
    """Rules whose absence breaks what was raced for."""

    rules: list[str]
    as_in: str
    changes: list[DesignChangeJson]
    steps: int


class PredictedJson(TypedDict):
    """What the checker says of the design that stands for the kernel."""

    design: str
    verdict: CheckWord
    states: int
    violation: str | None
    steps: int | None
    protections: list[ProtectionJson]


class RaceJson(TypedDict):
    """`zaplock measure --race NAME --json`."""

    race: str
    kernel: str
    release: str
    stand_in: bool
    tries: int
    lost: int
    refused: int
    seen_share: float
    call_ns: int
    complaints: list[str] | None
    predicted: PredictedJson


class ProfileJson(TypedDict):
    """`zaplock calibrate --json`: costs in nanoseconds by unit."""

    file: str
    name: str
    description: str
    source: str
    costs: dict[str, float]
    kernel: str
    cpu: str
    spread: dict[str, list[float]]
    notes: dict[str, str]


class CheckedJson(TypedDict):
    """One prediction beside what was measured."""

    backing: str
    size: int
    predicted_ns: int
    measured_ns: int
    cpu_ns: int
    least_ns: int
    greatest_ns: int
    predicted_cpu_ns: int
    error: float
    cpu_error: float


class ProfileCheckJson(TypedDict):
    """`zaplock calibrate --check --json`."""

    profile: str
    repeat: int
    rows: list[CheckedJson]


class UnitsJson(TypedDict):
    """`zaplock calibrate --units --json`: what is measured, by unit."""

    units: dict[str, str]


class HeldJson(TypedDict):
    """A lock in a task's hands at a step."""

    task: str
    lock: str
    mode: str


class StepJson(TypedDict):
    """A step of a counterexample."""

    step: int
    merged: bool
    task: str
    does: str
    result: str
    function: str
    line: str
    source: str
    holds: list[HeldJson]
    changes: list[str]


class AuditJson(TypedDict):
    """How much of the search was done again, to be certain."""

    positions: int
    steps: int
    seconds: float
    whole: bool


class CheckVerdictJson(TypedDict):
    """One scenario under one design; several are a list."""

    scenario: str
    design: str
    verdict: CheckWord
    invariant: str | None
    message: str | None
    invariants: list[str]
    queues: list[str]
    queue: str
    memory: str
    failing_allocations: int
    unmet: list[str]
    never_run: list[str]
    audit: AuditJson
    states: int
    seconds: float
    why: str | None
    preemptions: int
    token: str | None
    steps: list[StepJson]


class CellJson(TypedDict):
    """`zaplock check --all --json`: a list of these."""

    scenario: str
    design: str
    verdict: CheckWord
    invariants: list[str]
    states: int
    seconds: float
    why: str | None
    known_bug: str | None
    agrees_with_history: bool
    shared: bool


class MutantJson(TypedDict):
    """`zaplock check --mutations --json`: a list of these."""

    design: str
    mutation: str
    summary: str
    scenario: str | None
    invariant: str | None
    equivalent: str | None
    acted: bool


class ReplayedTokenJson(TypedDict):
    """`zaplock check --replay TOKEN --json`."""

    token: str
    invariant: str | None
    message: str | None
    steps: list[StepJson]


class TimedStepJson(TypedDict):
    """A step in virtual time."""

    at_ns: int
    task: str
    step: str


class TimedTokenJson(TypedDict):
    """`zaplock check --replay TOKEN --timed --json`."""

    token: str
    violation: str | None
    steps: list[TimedStepJson]


class LastStepJson(TypedDict):
    """The step that was just taken."""

    task: str
    does: str
    result: str
    function: str
    line: str
    changes: list[str]


class ChoiceJson(TypedDict):
    """A task, the key that moves it, and what it would do."""

    letter: str
    task: str
    next: str | None
    can_move: bool


class ExploredJson(TypedDict):
    """`zaplock check --explore --json`: a line after each step."""

    step: int
    last: LastStepJson | None
    locks: list[HeldJson]
    tasks: list[ChoiceJson]
    ended: bool
    invariant: str | None
    message: str | None


class ScenariosJson(TypedDict):
    """`zaplock check --list --json`: names and what they are."""

    scenarios: dict[str, str]
    litmus: dict[str, str]
    pairs: list[str]
    operations: dict[str, str]
    invariants: dict[str, str]
    mutations: dict[str, str]


class DesignRowJson(TypedDict):
    """`zaplock designs --json`: a list of these."""

    group: str
    design: str
    kernel: str
    summary: str


class RuleJson(TypedDict):
    """A rule's value, and what it was before."""

    value: Value
    before: Value


class DesignJson(TypedDict):
    """`zaplock designs NAME --json`."""

    design: str
    differs_from: str
    rules: dict[str, RuleJson]


DesignPairJson = TypedDict(
    "DesignPairJson",
    {"from": str, "to": str, "gained": list[DesignChangeJson], "lost": list[DesignChangeJson],
     "rules": dict[str, RuleJson]},
)  # fmt: skip


class AdviceJson(TypedDict):
    """One thing to do; `then_ns` is None where what remains isn't known."""

    what: str
    length: int
    now_ns: int
    then_ns: int | None
    seen: bool
    count: int
    caused_ns: int
    kind: str
    means: str
    change: str
    source: str
    runtime: str | None
    note: str


class AdviseJson(TypedDict):
    """`zaplock advise --json`."""

    advice: list[AdviceJson]
    waits: int
    waited_ns: int
    unexplained_ns: int
    free_ns: int
    costs: Costs
    caveats: NotRequired[list[str]]


class ReplayRow(TypedDict):
    """What was waited and held; `worst_wait_ns` by kind of operation."""

    longest_exclusive_hold_ns: int
    longest_shared_hold_ns: int
    worst_wait_ns: dict[str, int]
    waited_ns: int


class RecordedRow(ReplayRow):
    """The recording itself."""

    kernel: str
    design: str
    note: str | None
    pid: int
    mm: str
    operations: int
    linked: int
    left_out: int
    lost_events: int
    caveats: NotRequired[list[str]]


class ReplayedRow(ReplayRow):
    """The same under a design, with another way of freeing."""

    design: str
    free_by: str
    decided_by: list[DesignChangeJson]


class ReplayErrorJson(TypedDict):
    """How well the replay under the recorded kernel does what the recording did."""

    operations: int
    recorded_wait_ns: int
    replayed_wait_ns: int
    sum: float
    typical: float
    worst_ns: int
    no_cpu_ns: int
    sound: bool


class UnknownHoldersJson(TypedDict):
    """Operations that waited for who was never seen."""

    operations: int
    wait_ns: int


class ReplayJson(TypedDict):
    """`zaplock replay --json`."""

    recorded: RecordedRow
    error: ReplayErrorJson
    unknown_holders: UnknownHoldersJson
    profile: str
    rows: list[ReplayedRow]


class DiffSideJson(TypedDict):
    """One of the two recordings."""

    kernel: str
    duration_ns: int
    waits: int
    waited_ns: int
    longest_wait_ns: int
    longest_exclusive_ns: int
    longest_shared_ns: int


class DiffJson(TypedDict):
    """`zaplock diff --json`."""

    verdict: str
    slice_ns: int | None
    slices: list[int]
    before: DiffSideJson
    after: DiffSideJson
    changes: list[MeasureChange]
    operations: list[Pair]
    doubts: list[str]


class ScaleJson(TypedDict):
    """`zaplock scale --json`: operations a second, of all threads together, by CPUs."""

    workload: str
    profile: str
    transfer_ns: int
    far_ns: int | None
    nodes: int
    cores: int | None
    smt_speed: float
    points: list[Point]
    measured: list[MeasuredPoint]


class SeenKernelJson(TypedDict):
    """Modes of the teardown's holds, their time, and the longest wait as a share of it."""

    modes: list[str]
    hold_ns: int
    waits: dict[str, list[str]]
    ratios: dict[str, float]


class AgreementJson(TypedDict):
    """One teardown on a real kernel beside the design that stands for it."""

    kernel: str
    design: str
    teardown: str
    queued_writer: bool
    bystanders: list[str]
    agrees: bool | None
    timed: bool
    seen: bool
    worst_difference: float
    measured: SeenKernelJson
    predicted: SeenKernelJson
    decided_by: list[DesignChangeJson]
    note: str | None


class HungTasksJson(TypedDict):
    """A kernel's hung-task messages beside the predicted ones."""

    kernel: str
    design: str
    agrees: bool
    measured: list[str]
    predicted: list[str]
    other_lines: list[str]
    in_between: list[str]


class FidelityJson(TypedDict):
    """`zaplock fidelity --json`; `agree` is None where something was not seen."""

    tolerance: float
    agree: bool | None
    rows: list[AgreementJson]
    hung_tasks: list[HungTasksJson]
    skipped: list[str]


class DivergenceJson(TypedDict):
    """A sequence after which kernel and model differ."""

    signature: str
    count: int
    operations: list[str]
    differences: list[str]


class OracleJson(TypedDict):
    """`zaplock oracle --json`."""

    seed: int
    operations: int
    sequences: int
    seconds: float
    divergences: list[DivergenceJson]
    kernel_faults: list[DivergenceJson]
    unrepeatable: list[DivergenceJson]
    lost: list[str]
    late: list[str]
    unsettled: dict[str, int]
    set_aside: int
    outcomes: dict[str, dict[str, int]]
    kinds: int


class ComparedSequencesJson(TypedDict):
    """`zaplock oracle --locks --json` and `--committed`."""

    operations: int
    lock_operations: int
    differing: list[str]


class ProgramVerdictJson(TypedDict):
    """`zaplock oracle --strace FILE --json`: of several files the counts of each, by name."""

    calls: int
    agreeing: int
    differing: list[str]
    refused: int
    reasons: dict[str, int]
    maps: int
    differing_maps: list[str]
    unknown_borders: int
    maps_not_compared: list[str]


class ThreadDivergenceJson(TypedDict):
    """A program of threads whose outcome no interleaving gives; beside the nearest that one has."""

    program: str
    told: str
    repeated: int
    differences: list[str]


class SeenOutcomeJson(TypedDict):
    """An outcome of threads: in how many runs it came, and how the model allows it."""

    outcome: str
    times: int
    answer: str
    differences: list[str]


class ReplayedThreadsJson(TypedDict):
    """`zaplock oracle --threads --replay FILE --json`."""

    program: str
    why: str
    runs: int
    outcomes: list[SeenOutcomeJson]
    broken_rules: list[str]


class OracleThreadsJson(TypedDict):
    """`zaplock oracle --threads --json`."""

    seed: int
    programs: int
    runs: int
    operations: int
    outcomes: dict[str, int]
    explored: int
    outcomes_of_explored: int
    seen_of_explored: int
    divergences: list[ThreadDivergenceJson]
    set_aside: list[str]
    dropped: int
    not_known: list[str]
    lost: list[str]


class SeededFaultJson(TypedDict):
    """`zaplock oracle --self-test --json`: a list of these."""

    fault: str
    rule: str
    operations: int
    seconds: float
    found_as: str | None


class HuntedMutantJson(TypedDict):
    """`zaplock oracle --threads --self-test --json`: a list of these."""

    mutation: str
    programs: int
    seconds: float
    found_as: str | None


class FleetReportJson(TypedDict):
    """`zaplock fleet report --json`: tables are lists of rows."""

    store: str
    days: list[str]
    hosts: int
    units: int
    waits: int
    waited_ns: int
    recordings: int
    causes: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    by_unit: list[dict[str, Any]]
    by_kernel: list[dict[str, Any]]
    by_operation: list[dict[str, Any]]
    odd: list[dict[str, Any]]
    lengths: list[dict[str, Any]]
    per_day: list[dict[str, Any]]
    changes: list[dict[str, Any]] | None
    caveats: list[str]


class FailedReplayJson(TypedDict):
    """A recording that could not be replayed, and why."""

    recording: str
    why: str


class FleetReplayJson(TypedDict):
    """`zaplock fleet replay --json`."""

    hosts: int
    caused_ns: int
    recordings: int
    replays: int
    sums: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    failed: list[FailedReplayJson]


class FleetAdviceJson(TypedDict):
    """`zaplock fleet advise --json`: a list of these."""

    what: str
    how: str
    unit: str
    hosts: int
    spares_ns: int | None
    at_most_ns: int


class FleetSimulatedJson(TypedDict):
    """`zaplock fleet simulate --json`: how much was written."""

    hosts: int
    waits: int
    recordings: int
    parts: int


DOCUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "advise": (AdviseJson,),
    "calibrate": (ProfileJson, ProfileCheckJson, UnitsJson),
    "check": (CheckVerdictJson, list[CheckVerdictJson], list[CellJson], list[MutantJson],
              ScenariosJson, ReplayedTokenJson, TimedTokenJson, ExploredJson, dict[str, list[str]]),
    "compare": (CompareJson, list[CompareJson]),
    "designs": (list[DesignRowJson], DesignJson, DesignPairJson),
    "diff": (DiffJson,),
    "doctor": (DoctorJson,),
    "fidelity": (FidelityJson,),
    "fleet": (FleetReportJson, FleetReplayJson, list[FleetAdviceJson], FleetSimulatedJson,
              list[dict[str, Any]]),
    "import": (ImportJson,),
    "measure": (MeasureJson, RaceJson, list[DebianKernel]),
    "oracle": (OracleJson, OracleThreadsJson, ReplayedThreadsJson, ComparedSequencesJson,
               ProgramVerdictJson,
               dict[str, dict[str, int]], list[SeededFaultJson],
               list[HuntedMutantJson]),
    "record": (RecordJson,),
    "replay": (ReplayJson,),
    "report": (ReportJson,),
    "scale": (ScaleJson,),
    "why": (WhyJson,),
}  # fmt: skip
"""The documents of each verb with `--json`."""


def schema(verb: str) -> dict[str, Any]:
    """Return the JSON schema (2020-12) of what a verb prints with `--json`."""
    found, parts = msgspec.json.schema_components(DOCUMENTS[verb], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:zaplock:{verb}:{VERSION}",
        "title": f"zaplock {verb} --json, version {VERSION}",
        "description": DESCRIPTION,
        **(found[0] if len(found) == 1 else {"anyOf": list(found)}),
        **({"$defs": parts} if parts else {}),
    }
