"""Refuse code that goes by the order of a set: another run, or another process, has another one.

A set may be filled, asked what is in it, compared, counted and sorted. It may not be walked, taken
from, returned or handed to a function that is not known to be free of order. This reads the source;
where there is none (code made by `exec`), a function that makes a set at all is refused.
"""

from __future__ import annotations

import ast
import dis
import linecache
import types
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from zaplock.errors import ProtocolError

FREE_OF_ORDER: Final = frozenset({
    "sorted", "len", "min", "max", "any", "all", "set", "frozenset", "bool", "isinstance",
})  # fmt: skip
METHODS: Final = frozenset({
    "add", "discard", "remove", "update", "clear", "copy", "union", "intersection", "difference",
    "symmetric_difference", "issubset", "issuperset", "isdisjoint", "intersection_update",
    "difference_update", "symmetric_difference_update",
})  # fmt: skip
MAKES_A_SET: Final = METHODS - {"add", "discard", "remove", "update", "clear"}
FREE_PLACES: Final = (
    ast.Compare, ast.BinOp, ast.UnaryOp, ast.AugAssign, ast.NamedExpr, ast.If, ast.While,
    ast.Assert, ast.Expr,
)  # fmt: skip
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def look_at_set_order(code: types.CodeType, names: dict[str, Any]) -> None:
    """Raise ProtocolError where a function goes by the order of a set."""
    sets = frozenset(name for name, value in names.items() if isinstance(value, (set, frozenset)))
    line = _line_by_order(code.co_filename, code.co_firstlineno, sets)
    if line is None:
        if _may_make_a_set(code):
            raise ProtocolError(
                f"{code.co_qualname} makes a set and has no source to see how its order is used; "
                "use a sorted tuple"
            )
        return
    if line:
        raise ProtocolError(
            f"{code.co_qualname} ({Path(code.co_filename).name}:{line}) goes by the order of a "
            "set, which differs from run to run; walk sorted(...) of it"
        )


@lru_cache(maxsize=4096)
def _line_by_order(file: str, first_line: int, sets: frozenset[str]) -> int | None:
    """Return the line that goes by order in what begins at a line; 0: there is none, None: no code.

    sets: the names from outside that are sets. A search reads its code anew; this is done once.
    """
    found = _functions(file).get(first_line)
    if found is None:
        return None
    lines = (_Reader(function, sets).problem() for function in found)
    return next((line for line in lines if line), 0)


@lru_cache(maxsize=256)
def _functions(file: str) -> dict[int, tuple[Function, ...]]:
    """Return the functions of a file by the line where they (or their decorators) begin."""
    source = "".join(linecache.getlines(file))
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return {}
    found: dict[int, tuple[Function, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, Function):
            first = node.lineno
            if not isinstance(node, ast.Lambda) and node.decorator_list:
                first = node.decorator_list[0].lineno
            found[first] = (*found.get(first, ()), node)
    return found


def _may_make_a_set(code: types.CodeType) -> bool:
    names = {"set", "frozenset"} & set(code.co_names)
    return bool(names) or any(one.opname.startswith(("BUILD_SET", "SET_"))
                              for one in dis.get_instructions(code))  # fmt: skip


class _Reader:
    """One function: which of its expressions are sets, and what is done with them."""

    def __init__(self, function: Function, sets: frozenset[str]) -> None:
        self.function = function
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(function):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
        self.sets: set[str] = set(sets - self._assigned())
        before = -1
        while before != len(self.sets):
            before = len(self.sets)
            self._learn()

    def _assigned(self) -> set[str]:
        stored = {n.id for n in ast.walk(self.function)
                  if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}  # fmt: skip
        return stored | {arg.arg for arg in ast.walk(self.function) if isinstance(arg, ast.arg)}

    def _learn(self) -> None:
        for node in ast.walk(self.function):
            if isinstance(node, ast.arg) and node.annotation is not None:
                if ast.unparse(node.annotation).startswith(("set", "frozenset")):
                    self.sets.add(node.arg)
            elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)) and node.value:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if self.is_set(node.value):
                    self.sets |= {t.id for t in targets if isinstance(t, ast.Name)}

    def is_set(self, node: ast.AST) -> bool:
        if isinstance(node, (ast.Set, ast.SetComp)):
            return True
        if isinstance(node, ast.Name):
            return node.id in self.sets
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                return node.func.id in ("set", "frozenset")
            called = node.func
            return (isinstance(called, ast.Attribute) and called.attr in MAKES_A_SET
                    and self.is_set(called.value))  # fmt: skip
        if isinstance(node, ast.BinOp):
            operators = (ast.BitOr, ast.BitAnd, ast.Sub, ast.BitXor)
            return isinstance(node.op, operators) and (
                self.is_set(node.left) or self.is_set(node.right)
            )
        if isinstance(node, ast.IfExp):
            return self.is_set(node.body) or self.is_set(node.orelse)
        if isinstance(node, ast.BoolOp):
            return any(self.is_set(value) for value in node.values)
        return isinstance(node, ast.NamedExpr) and self.is_set(node.value)

    def problem(self) -> int:
        """Return the line of the first use that goes by order, 0 if there is none."""
        for node in ast.walk(self.function):
            is_target = isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
            if not is_target and self.is_set(node) and not self._is_free(node):
                return int(getattr(node, "lineno", 0))
        return 0

    def _is_free(self, node: ast.AST) -> bool:
        parent = self.parents.get(node)
        if isinstance(parent, ast.Call):
            return node is not parent.func and _is_free_of_order(parent)
        if isinstance(parent, (ast.Assign, ast.AnnAssign)):
            targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
            return all(isinstance(target, ast.Name) for target in targets)
        if isinstance(parent, ast.Attribute):
            return parent.attr in METHODS and isinstance(self.parents.get(parent), ast.Call)
        if isinstance(parent, ast.comprehension):
            return self._is_free_walk(parent)
        if isinstance(parent, (ast.IfExp, ast.BoolOp)):
            return node is getattr(parent, "test", None) or self._is_free(parent)
        return isinstance(parent, FREE_PLACES)

    def _is_free_walk(self, walk: ast.comprehension) -> bool:
        whole = self.parents.get(walk)
        if isinstance(whole, ast.SetComp):
            return True
        around = self.parents.get(whole) if whole is not None else None
        return (isinstance(whole, ast.GeneratorExp) and isinstance(around, ast.Call)
                and _is_free_of_order(around))  # fmt: skip


def _is_free_of_order(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in METHODS
    return isinstance(call.func, ast.Name) and call.func.id in FREE_OF_ORDER
