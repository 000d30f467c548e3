"""One piece of advice: what stalls others, how long, what to do, and how long it would be then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zaplock.advise.advice_by_kind import Kind, Means
from zaplock.advise.costs import Costs
from zaplock.advise.runtimes import Runtime


@dataclass(frozen=True, slots=True)
class Advice:
    """Something worth changing.

    `what` names the call or mapping, `kind` what can be done about such calls, `length` its bytes.
    `now_ns` is the worst stall of others by it: seen (`seen` True) or expected if it is called;
    `then_ns` the one after the change, None where this kernel can't tell. `caused_ns` is the sum of
    all waits that a recording blames on it. `runtime` is whose program it is, where that is known.
    """

    what: str
    kind: Kind
    length: int
    now_ns: int
    then_ns: int | None
    seen: bool
    count: int = 1
    caused_ns: int = 0
    note: str = ""
    runtime: Runtime | None = None

    @property
    def means(self) -> Means:
        """How the stall is cured."""
        return Means.SETTING if self._setting and not self._besides else self.kind.means

    @property
    def change(self) -> str:
        """What to do, in the words of the program's own settings where it has one for that."""
        if not self._setting:
            return self.kind.change
        own = f"{self.runtime.name}: {self._setting}" if self.runtime else ""
        return own + self.kind.change if self._besides else own

    @property
    def source(self) -> str:
        """Where the setting is documented, "" for advice of zaplock's own."""
        return self.runtime.source if self.runtime and self._setting else ""

    @property
    def _setting(self) -> str:
        return self.runtime.settings.get(self.kind.topic, "") if self.runtime else ""

    @property
    def _besides(self) -> bool:
        """Whether the setting is for some of the calls only: it ends where the rest's begins."""
        return self._setting.endswith(": ")

    @property
    def gain_ns(self) -> int:
        """What the change takes off the worst stall."""
        return self.now_ns - (self.then_ns or 0)

    @property
    def worth_it(self) -> bool:
        """Whether the change takes off half of the stall or more, as far as can be told.

        What others really waited for is always told.
        """
        return self.seen or not self.gains_little

    @property
    def gains_little(self) -> bool:
        """Whether more than half of the stall would remain; False where that isn't known."""
        return self.then_ns is not None and 2 * self.then_ns > self.now_ns

    def to_json(self) -> dict[str, Any]:
        """Return the advice as JSON values."""
        names = ("what", "length", "now_ns", "then_ns", "seen", "count", "caused_ns")
        return {
            **{name: getattr(self, name) for name in names},
            "kind": self.kind.name,
            "means": self.means.value,
            "change": self.change,
            "source": self.source,
            "runtime": self.runtime.name if self.runtime else None,
            "note": self.note,
        }


def left(kind: Kind, costs: Costs) -> int | None:
    """Return the stall that remains after the change, in nanoseconds; None where it isn't known."""
    return costs.fixed(kind.left) if kind.left else None
