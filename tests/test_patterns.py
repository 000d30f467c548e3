"""Every regular expression in zaplock takes time in proportion to the text that it is given.

Many read what strangers write: names, traces, files of /proc. The attacks are made from the
expression itself: each of its parts, and some parts in a row, again and again, behind what it wants
before them and with an end that it doesn't want. Only CPU time is measured.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import pytest

from zaplock.advise import readers, runtimes

SOURCE = Path(__file__).parent.parent / "src"
LONG = 40_000
MOST_S = 0.2
"""Of CPU time for so many characters: a linear expression takes a millisecond, a quadratic one
some seconds."""
STUCK_S = 0.25
"""Of CPU time, after which an attack is broken off."""
USES = ("match", "fullmatch", "search", "split", "sub", "findall", "finditer")
CANDIDATES = "a1 \t\n.,:;=_-+/\\*?!<>()[]{}'\"|#%&@^~$`\0é"
ENDS = ("", "\n\0")


class Pattern(NamedTuple):
    """An expression, where it stands, and by which functions it is used."""

    where: str
    text: str | bytes
    flags: int
    uses: tuple[str, ...]


UNTOLD: dict[str, list[str]] = {
    "advise/readers.py: pattern": [pattern for pattern, _ in readers.READERS],
    "advise/runtimes.py: runtime.process": [one.process for one in runtimes.RUNTIMES],
    "advise/runtimes.py: runtime.library": [one.library for one in runtimes.RUNTIMES],
    "programs/text.py: f'\\\\b{name}=([^,}}\\\\s]+)'": [r"\bsize=([^,}\s]+)"],
    "measure/guest/debian.py: f'{re.escape(version)}(?![\\\\d])'": [r"6\.1(?![\d])"],
}
"""What stands in a variable where it is used, or has one in it."""


@functools.cache
def sources() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}


def module_of(path: Path) -> ModuleType:
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return importlib.import_module(name.removesuffix(".__init__"))


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, str]]:
    """Give the calls of functions of `re`; with the name of the variable, where there is one."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_of_re(node.value):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            names[node.value] = ast.unparse(target)
        if isinstance(node, ast.Call) and is_of_re(node):
            yield node, names.get(node, "")


def is_of_re(node: ast.expr | None) -> bool:
    """Tell whether it calls a function of `re`; quick, as it is asked of every call there is."""
    return isinstance(node, ast.Call) and is_flag(node.func)


@functools.cache
def uses() -> dict[str, set[str]]:
    """Say which methods are called of a variable of that name, anywhere."""
    found: dict[str, set[str]] = {}
    for tree in sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in USES:
                found.setdefault(ast.unparse(node.value).rpartition(".")[2], set()).add(node.attr)
    return found


def patterns() -> Iterator[Pattern]:
    for path, tree in sources().items():
        for call, name in calls(tree):
            used = ast.unparse(call.func).removeprefix("re.")
            if used not in (*USES, "compile"):
                continue
            where = f"{path.relative_to(SOURCE / 'zaplock')}: {ast.unparse(call.args[0])}"
            functions = (used,) if used in USES else tuple(sorted(uses().get(name, {"search"})))
            arguments = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
            flags = sum(getattr(re, one.attr) for one in arguments if is_flag(one))
            for text in UNTOLD.get(where) or [evaluated(path, call.args[0])]:
                yield Pattern(where, text, flags, functions)


def is_flag(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(begin(node)) == "re"


def begin(node: ast.expr) -> ast.expr:
    """Return what stands before the first dot."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node


def evaluated(path: Path, node: ast.expr) -> str | bytes:
    code = compile(ast.Expression(node), str(path), "eval")
    found = eval(code, dict(vars(module_of(path))))
    assert isinstance(found, str | bytes)
    return found


# ---- attacks


def accepts(kinds: Sequence[tuple[Any, Any]], char: str) -> bool:
    """Say whether a class of characters has one in it."""
    negated = kinds[0][0] is sre.NEGATE
    return negated != any(is_one(op, av, char) for op, av in kinds[negated:])


def is_one(op: Any, av: Any, char: str) -> bool:
    if op is sre.CATEGORY:
        return in_category(av, char)
    first, last = av if op is sre.RANGE else (av, av)
    return bool(first <= ord(char) <= last)


def in_category(category: Any, char: str) -> bool:
    name = str(category).removeprefix("CATEGORY_")
    kind = {"DIGIT": str.isdigit, "SPACE": str.isspace, "WORD": lambda c: c.isalnum() or c == "_"}
    return name.startswith("NOT_") != kind[name.removeprefix("NOT_")](char)


def samples(op: Any, av: Any) -> list[str]:
    """Give some texts that a part of an expression matches; none for what matches no text."""
    if op in (sre.LITERAL, sre.NOT_LITERAL):
        return [chr(av)] if op is sre.LITERAL else [c for c in CANDIDATES if ord(c) != av][:1]
    if op is sre.ANY:
        return ["a"]
    if op is sre.IN:
        ranged = [chr(value[0]) for kind, value in av if kind is sre.RANGE]
        named = [chr(value) for kind, value in av if kind is sre.LITERAL]
        return [c for c in (*ranged, *named, *CANDIDATES) if accepts(av, c)][:3]
    if op is sre.BRANCH:
        return [whole(one) for one in av[1]]
    if op is sre.SUBPATTERN:
        return every(av[3])
    if op is sre.ATOMIC_GROUP:
        return every(av)
    if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return [one * max(1, av[0]) for one in every(av[2])]
    return []


def every(parts: Any) -> list[str]:
    return samples(*parts[0]) if len(parts) == 1 else [whole(parts)]


def whole(parts: Any) -> str:
    return "".join(next(iter(samples(*part)), "") for part in parts)


def inside(parts: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Give what may come again and again in an expression, and what must come before it."""
    for place, (op, av) in enumerate(parts):
        if op is sre.LITERAL and place and parts[place - 1][0] is sre.LITERAL:
            continue  # a word is attacked where it begins
        here = before + whole(parts[:place])
        yield "", here
        yield from ((here, one) for one in samples(op, av))
        for beyond in (place + 2, place + 3):
            yield here, whole(parts[place:beyond])
        for deeper in within(op, av):
            yield from inside(deeper, here)


def within(op: Any, av: Any) -> list[Any]:
    if op is sre.BRANCH:
        return list(av[1])
    if op in (sre.SUBPATTERN, sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        return [av[-1]]
    return [av] if op is sre.ATOMIC_GROUP else []


def attacks(pattern: Pattern) -> Iterator[str]:
    parts = _parser.parse(pattern.text, pattern.flags)
    seen = {(before, again) for before, again in inside(list(parts)) if again}
    for before, again in sorted(seen):
        for end in ENDS:
            yield before + again * (LONG // len(again)) + end


def slowest(pattern: Pattern) -> tuple[float, str]:
    """Attack an expression; return the longest CPU time, and with what."""
    compiled = re.compile(pattern.text, pattern.flags)
    worst = (0.0, "")
    for attack in attacks(pattern):
        text: Any = attack.encode() if isinstance(pattern.text, bytes) else attack
        for use in pattern.uses:
            signal.setitimer(signal.ITIMER_VIRTUAL, STUCK_S)  # `re` looks for signals now and then
            began = time.thread_time()
            found = getattr(compiled, use)(*([text[:0]] if use == "sub" else []), text)
            if use == "finditer":
                list(found)
            worst = max(worst, (time.thread_time() - began, f"{use} {attack[:60]!r}"))
            if worst[0] > MOST_S:
                return worst
    return worst


def stop(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def told(pattern: Pattern) -> str:
    """Say what is wrong with an expression, "" where nothing is."""
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        took, how = slowest(pattern)
    except TimeoutError:
        took, how = STUCK_S, "a text"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return f"{pattern.where}: {took:.1f} s for {how}" if took > MOST_S else ""


def test_every_expression_is_linear() -> None:
    found = list(patterns())
    assert len(found) > 100
    slow = [said for pattern in found if (said := told(pattern))]
    assert not slow, "\n".join(slow)


@pytest.mark.parametrize(
    ("text", "use"),
    [
        (r"(a+)+b", "match"),
        (r"\s*\s*x", "match"),
        (r"a+b", "search"),
        (r"(?:ab|\w)*!", "fullmatch"),
        (r"(\w+\s?)*;", "match"),
        (r"#.*;", "search"),
    ],
)
def test_one_that_is_not_would_be_seen(text: str, use: str) -> None:
    assert told(Pattern("", text, 0, (use,)))
