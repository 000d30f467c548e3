"""Designs with one protecting step taken away or moved: what a checker has to find broken.

A mutation is either another rule of the design (a field of the record), or a filter on the steps
that its tasks take: it may leave one out, answer for it, put one before or after another. So every
mutation is one line on the protocols as they are; no protocol is written twice.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from zaplock.designs import load
from zaplock.designs.own_files import is_function, is_reference, named_in_file
from zaplock.designs.rules_read import observed_design
from zaplock.errors import ProtocolError, UserError, no_such, or_meant, what_there_is
from zaplock.model.filters import Rule, Steps, filtered
from zaplock.model.flags import MADV_DONTNEED
from zaplock.model.rwsem import LockStep, downgrade_write, up_read, up_write
from zaplock.model.step import STEP_NAMES, Step
from zaplock.protocols.design import Cx, Design, Protocol
from zaplock.protocols.madvise import madvise
from zaplock.protocols.own_state import lock_classes

_FILE: Final = re.compile(r".+\.py:\w++", re.DOTALL)
_DESIGN: Final = re.compile(r"(?:linux-|rfc-)[^/:]*+")
_MUTATION: Final = re.compile(r"[\w-]++")
_END_OF_FILE: Final = re.compile(r"\.py:\w++(?=/)")


@dataclass(frozen=True)
class Mutation:
    """One thing done wrong.

    breaks: scenarios that show it. changes: fields of the design, from the design as it was. rule:
    a filter. where: which designs it can be made in, by their rules (default: all). equivalent: why
    it breaks nothing, where it is no mutation at all; a mutation that is one in some designs only
    stands twice, with different `where`. only: the operations of a scenario that are filtered, ()
    for all.

    Raises UserError where a field is none of what it has to be.
    """

    name: str
    summary: str
    where: Callable[[Design], bool] = lambda _design: True
    breaks: tuple[str, ...] = ()
    changes: Callable[[Design], dict[str, Any]] | None = None
    rule: Callable[[], Rule] | None = None
    equivalent: str = ""
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _MUTATION.fullmatch(self.name):
            raise UserError(f"mutation {self.name!r}: its name has to be letters, digits, - and _")
        for field in ("where", "changes", "rule"):
            value = getattr(self, field)
            if not callable(value) and (value is not None or field == "where"):
                raise UserError(f"mutation {self.name!r}: {field} is {value!r} and can't be called")
        for field in ("breaks", "only"):
            value = getattr(self, field)
            is_list = isinstance(value, (tuple, list))
            if not is_list or not all(isinstance(one, str) for one in value):
                raise UserError(
                    f"mutation {self.name!r}: {field} is {value!r}; give names in a tuple: (..., )"
                )
            object.__setattr__(self, field, tuple(value))


@dataclass(frozen=True)
class Mutant(Design):
    """A design with a mutation in it.

    rule: what its tasks run under, in the operations `only`. changed: the fields that are others.
    """

    rule: Callable[[], Rule] | None = None
    only: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def filters(self, operation: str) -> bool:
        """Return whether the steps of an operation, "" for any, go through the rule."""
        return self.rule is not None and (not operation or not self.only or operation in self.only)

    def new_rule(self) -> Rule:
        """Return the rule for one run of one operation."""
        assert self.rule is not None
        return self.rule()


def mutate(design: Design, mutation: Mutation) -> Mutant:
    """Return the design with the mutation in it; it is named DESIGN/MUTATION."""
    changes = mutation.changes(design) if mutation.changes else {}
    name = f"{design.name}/{mutation.name}"
    made = replace(design, name=name, summary=mutation.summary, **changes)
    rule = mutation.rule
    if rule is not None and not isinstance(rule(), Rule):
        raise UserError(f"mutation {mutation.name!r}: its `rule` makes {rule()!r}, no Rule")
    fields = {key: getattr(made, key) for key in Design.__dataclass_fields__}
    changed = tuple(key for key in changes if fields[key] != getattr(design, key))
    return Mutant(**fields, rule=rule, only=mutation.only, changed=changed)


class Acts:
    """Whether a filter has done anything else than the steps that it was given, in any run.

    It is about a whole search and no state of it, so nothing looks at it meanwhile.
    """

    __slots__ = ("seen",)
    is_constant = True

    def __init__(self) -> None:
        self.seen = False


class _Noting(Rule):
    """Run another rule, and note when it does anything."""

    def __init__(self, rule: Rule, acts: Acts) -> None:
        self.rule = rule
        self.acts = acts

    def __call__(self, step: Step[Any]) -> Steps:
        inner = self._started(self.rule(step))
        result, done = None, False
        while True:
            try:
                made = inner.send(result)
            except StopIteration as end:
                if not done or end.value is not result:
                    self.acts.seen = True
                return end.value
            if done or made is not step:
                self.acts.seen = True
            result, done = (yield made), True

    def at_end(self) -> Steps:
        inner = self._started(self.rule.at_end())
        result = None
        while True:
            try:
                made = inner.send(result)
            except StopIteration as end:
                return end.value
            self.acts.seen = True
            result = yield made

    def _started(self, steps: Any) -> Steps:
        if not isinstance(steps, Generator):
            raise ProtocolError(
                f"the rule {type(self.rule).__name__} gave {steps!r} and no steps: `yield` what is "
                "to be done, `return (yield step)` for the step as it is"
            )
        return steps


def as_mutated(
    design: Design, protocol: Protocol, operation: str = "", acts: Acts | None = None
) -> Protocol:
    """Let a protocol run as its design does it: a mutant's through its filter.

    operation: whose it is, for a mutant that filters some only. acts: is told when that does
    anything.
    """
    if isinstance(design, Mutant) and design.filters(operation):
        rule = design.new_rule()
        return filtered(protocol, rule if acts is None else _Noting(rule, acts))
    return protocol


def require_known_names(design: Design, operations: Iterable[str]) -> None:
    """Raise UserError where a mutant's filter names a step, a lock, an operation that isn't there.

    It would change nothing, and the verdict be that of the design as it was. operations: those that
    the tasks of a scenario could do.
    """
    mutated = observed_design(design)
    for name in mutated.only if isinstance(mutated, Mutant) else ():
        if name not in operations:
            raise UserError(
                f"{design.name}: `only` names the operation {name!r}, and there is none of that "
                f"name{or_meant(name, operations)}"
            )
    rule = mutated.new_rule() if isinstance(mutated, Mutant) and mutated.rule else None
    if isinstance(rule, SkipLock) and rule.lock not in lock_classes():
        raise no_such("class of locks", rule.lock, sorted(lock_classes()))
    ours = rule is not None and type(rule).__module__ == __name__
    names = [getattr(rule, field, None) for field in ("name", "after")] if ours else []
    for name in filter(None, names):
        if not (name in STEP_NAMES or is_function(name) or _is_ours(name)):
            raise UserError(
                f"{design.name}: there is no step {name!r}{or_meant(name, sorted(STEP_NAMES))}"
            )


def _is_ours(name: str) -> bool:
    """Return whether a module of zaplock has a function of that name: a wait's, a lock's."""
    modules = [one for key, one in sys.modules.items() if key.startswith("zaplock.")]
    return any(hasattr(one, name) for one in modules)


def filter_of(design: Design) -> tuple[Callable[[], Rule], tuple[str, ...]] | None:
    """Return what filters a design's tasks, and in which operations; None for none."""
    if isinstance(design, Mutant) and design.rule is not None:
        return design.rule, design.only
    return None


def mutations_of(design: Design) -> dict[str, Mutation]:
    """Return the mutations that can be made in a design, by name."""
    from zaplock.check.shipped_mutations import MUTATIONS

    return {one.name: one for one in MUTATIONS if one.where(design)}


def split_mutant(name: str) -> tuple[str, str] | None:
    """Return (design, mutation) of "DESIGN/MUTATION", None where a name is of another form.

    Either may be FILE.py:NAME, with slashes of its own; a file that is there is a design's.
    """
    if is_reference(name) and Path(name.rpartition(":")[0]).is_file():
        return None
    design, _, mutation = name.rpartition("/")
    if not _MUTATION.fullmatch(mutation):  # a file's
        end = _END_OF_FILE.search(name)
        design, _, mutation = name.partition("/")
        if end and end.start():
            design, mutation = name[: end.end()], name[end.end() + 1 :]
        if not _FILE.fullmatch(mutation):
            return None
    known = _FILE.fullmatch(design) or _DESIGN.fullmatch(design)
    return (design, mutation) if known else None


def mutant(name: str) -> Design | None:
    """Return the mutant "DESIGN/MUTATION", or None where a name is of another form."""
    parts = split_mutant(name)
    if parts is None:
        return None
    design = load(parts[0])
    return mutate(design, mutation_named(parts[1], design))


def mutation_named(name: str, design: Design) -> Mutation:
    """Return a shipped mutation of a design, or a user's own by FILE.py:NAME."""
    if is_reference(name):
        own = named_in_file(name, Mutation, "a Mutation")
        try:
            can_be_made = own.where(design)
            mutated = mutate(design, own)
        except Exception as error:
            raise UserError(
                f"mutation {name!r} fails with {type(error).__name__}: {error}"
            ) from error
        if not can_be_made:
            raise UserError(f"mutation {name!r} can't be made in {design.name}: its `where` says")
        if own.rule is None and not mutated.changed:
            raise UserError(f"mutation {name!r} changes nothing; give it `changes` or a `rule`")
        return own
    known = mutations_of(design)
    if name not in known:
        there_is = what_there_is(name, known, listed="'zaplock check --list'")
        raise UserError(f"no mutation {name!a} of {design.name}{or_meant(name, known)}; {there_is}")
    return known[name]


# Filters


def is_lock(
    step: Step[Any], action: str, lock: str = "mmap_lock", write: bool | None = None
) -> bool:
    """Return whether a step is that operation on that lock."""
    return (
        isinstance(step, LockStep)
        and step.action == action
        and step.lock[0] == lock
        and (write is None or step.write == write)
    )


class Skip(Rule):
    """Leave out every step of a name and answer for it; `inside` names what must come before."""

    def __init__(self, name: str, result: Any = None, nth: int | None = None) -> None:
        self.name = name
        self.result = result
        self.nth = nth
        self.seen = 0

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == self.name:
            self.seen += 1
            if self.nth is None or self.seen == self.nth:
                return self.result
        return (yield step)


class SkipWithoutMemory(Rule):
    """Leave out the steps of a name once an allocation has failed: what undoes the rest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = False

    def __call__(self, step: Step[Any]) -> Steps:
        if self.failed and step.name == self.name:
            return None
        result = yield step
        self.failed = self.failed or (step.name == "allocation_fails" and result)
        return result


class SkipLock(Rule):
    """Never take a lock, and so never give it back."""

    def __init__(self, lock: str, write: bool) -> None:
        self.lock = lock
        self.write = write

    def __call__(self, step: Step[Any]) -> Steps:
        if isinstance(step, LockStep) and step.lock[0] == self.lock and step.write == self.write:
            return 0
        return (yield step)


class DowngradeBefore(Rule):
    """Downgrade before the first step of a name instead of where it belongs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.writes: LockStep | None = None
        self.downgraded = False

    def __call__(self, step: Step[Any]) -> Steps:
        if is_lock(step, "down", write=True):
            assert isinstance(step, LockStep)
            self.writes = step
        if step.name == self.name and self.writes is not None and not self.downgraded:
            yield downgrade_write(self.writes.lock)
            self.downgraded = True
        if self.downgraded and is_lock(step, "downgrade"):
            return 0
        if self.downgraded and is_lock(step, "up", write=True):
            assert isinstance(step, LockStep)
            return (yield up_read(step.lock))
        return (yield step)


class Postpone(Rule):
    """Do a step only after the next one of another name (or at the end); it is answered at once."""

    def __init__(self, name: str, after: str, result: Any = None) -> None:
        self.name = name
        self.after = after
        self.result = result
        self.waiting: list[Step[Any]] = []

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == self.name:
            self.waiting.append(step)
            return self.result
        result = yield step
        if step.name == self.after:
            yield from self.at_end()
        return result

    def at_end(self) -> Steps:
        while self.waiting:
            yield self.waiting.pop(0)


class WrongUnlock(Rule):
    """Unlock in the other mode."""

    def __init__(self, write: bool) -> None:
        self.write = write

    def __call__(self, step: Step[Any]) -> Steps:
        if is_lock(step, "up", write=self.write):
            assert isinstance(step, LockStep)
            return (yield up_read(step.lock) if self.write else up_write(step.lock))
        return (yield step)


class UnlockLast(Rule):
    """From the first step of a name on, give the mmap_lock back only when the operation has ended.

    So what an unmap leaves for after the unlock comes before it.
    """

    def __init__(self, after: str) -> None:
        self.after = after
        self.applies = False
        self.unlock: Step[Any] | None = None

    def __call__(self, step: Step[Any]) -> Steps:
        self.applies = self.applies or step.name == self.after
        if self.applies and is_lock(step, "up"):
            self.unlock = step
            return 0
        return (yield step)

    def at_end(self) -> Steps:
        if self.unlock is not None:
            yield self.unlock


class SkipWrite(Rule):
    """Leave out the second write of a counter: the one that puts it back after an error."""

    def __init__(self, counter: str) -> None:
        self.counter = counter
        self.seen = 0

    def __call__(self, step: Step[Any]) -> Steps:
        if step.name == "write_counter" and step.args[1] == self.counter:
            self.seen += 1
            if self.seen > 1:
                return None
        return (yield step)


def zaps_first(design: Design) -> dict[str, Any]:
    """An earlier idea of the RFC: zap under read while the VMAs can be found, then unmap."""

    async def zap_first_munmap(cx: Cx, start: int, length: int) -> int:
        await madvise(cx, start, length, MADV_DONTNEED)
        return await design.munmap(cx, start, length)

    return {"munmap": zap_first_munmap}
