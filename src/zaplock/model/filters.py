"""Put each step of a protocol through a rule, which may watch it, change it or leave it out.

So an observer, another kind of lock and a seeded fault are each a few lines on the protocols as
they are.
"""

from __future__ import annotations

import types
from collections.abc import Generator
from typing import Any

from zaplock.model.step import Step

Steps = Generator[Step[Any], Any, Any]


class Rule:
    """From each step of a protocol to what is really done in its place; `at_end` when it ends.

    It returns what the protocol gets, and has a memory for one run of one task.
    """

    def __call__(self, step: Step[Any]) -> Steps:
        return (yield step)

    def at_end(self) -> Steps:
        """Do what is left to do."""
        yield from ()


@types.coroutine
def filtered(inner: Any, rule: Rule) -> Steps:
    """Run a protocol with each of its steps put through a rule."""
    result: Any = None
    while True:
        try:
            step = inner.send(result)
        except StopIteration as end:
            yield from rule.at_end()
            return end.value
        result = yield from rule(step)
