"""Protocols as plain functions: what a task that is alone need not pay for.

A protocol is an `async def` so that an engine may stop at every step. The sequential engine never
does, and then a third of its time goes into making steps and coroutines and into coming back
through all of them at each step. So a protocol's own source is compiled once more with every
`await f(...)` turned into a call: of a step's body with the machine and the task before its
arguments, of another protocol's plain form, or of whatever makes steps, which are then taken. It is
the same source, line by line, and names are looked up where the protocol looks them up, so what is
replaced in a module is replaced here too.

A protocol that awaits within `try` or `with` stays as it is (the engine's steps raise outside of
it, a call would raise inside), as one does that is a closure, or whose source is not what it was
compiled from. The awaiting form is the witness: tests run both and compare. Compiling takes as long
as some 20,000 runs save, so it begins after as many.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
from collections.abc import Callable, Coroutine
from types import CodeType, CoroutineType, FunctionType
from typing import Any

from zaplock.model.machine import Machine
from zaplock.model.step import MarkStep, StepKind, Task

Plain = Callable[..., Any]
"""(machine, task, *arguments) -> what the awaited would have given."""
Take = Callable[[Machine, Task, Any], Any]
"""Take one step, or run a protocol, and return its result."""

WORTH_AFTER = 20_000
_MACHINE, _TASK, _PLAIN, _TAKE, _KIND = "_machine_", "_task_", "_plain_", "_take_", "_kind_"
_NOT_AROUND_AWAITS = (ast.Try, ast.TryStar, ast.With)
_NOT_AT_ALL = (ast.AsyncWith, ast.AsyncFor, ast.Yield, ast.YieldFrom)


class PlainForms(dict[Any, Plain]):
    """What to call in the place of awaiting a call, by what would have been called.

    `runs_left`: so many protocols are run as they are before the first one is compiled.
    """

    def __init__(self, take: Take) -> None:
        """Make forms as they are asked for; `take` serves whatever has none."""
        super().__init__()
        self[MarkStep] = _passed_over
        self.runs_left = WORTH_AFTER
        self._take = take
        self._by_code: dict[CodeType, Plain | None] = {}
        self._sources: dict[str, _Source] = {}

    def __missing__(self, called: Any) -> Plain:
        if type(called) is StepKind:
            return called.run
        if isinstance(called, FunctionType) and inspect.iscoroutinefunction(called):
            plain = self._by_code.get(called.__code__) or self._compiled(called)
            if plain is not None:
                self[called] = plain
                return plain
        take = self._take

        def made_and_taken(machine: Machine, task: Task, *args: Any, **kwargs: Any) -> Any:
            return take(machine, task, called(*args, **kwargs))

        if isinstance(called, FunctionType) and "<locals>" not in called.__qualname__:
            self[called] = made_and_taken
        return made_and_taken

    def call_of(self, program: Coroutine[Any, Any, Any]) -> tuple[Plain, dict[str, Any]] | None:
        """Return the plain form of a protocol that has not begun, and its arguments by name."""
        if self.runs_left or type(program) is not CoroutineType:
            self.runs_left = max(self.runs_left - 1, 0)
            return None
        code = program.cr_code
        try:
            plain = self._by_code[code]
        except KeyError:
            plain = self._by_code[code] = self._of_code(program)
        frame = program.cr_frame
        if plain is None or frame is None or program.cr_suspended:
            return None
        return plain, frame.f_locals

    def _of_code(self, program: CoroutineType[Any, Any, Any]) -> Plain | None:
        """Find the function that a protocol is of, if it is one of a module."""
        frame = program.cr_frame
        found = frame.f_globals.get(program.__name__) if frame else None
        if isinstance(found, FunctionType) and found.__code__ is program.cr_code:
            return self._compiled(found)
        return None

    def _compiled(self, function: FunctionType) -> Plain | None:
        code = function.__code__
        self._by_code[code] = None
        if code.co_freevars or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
            return None
        source = self._sources.get(code.co_filename)
        if source is None:
            source = self._sources[code.co_filename] = _Source(code.co_filename)
        node = source.of(code)
        if node is None or not _may_be_plain(node):
            return None
        plain = self._by_code[code] = _function(node, function, self, self._take)
        return plain


class _Source:
    """The protocols that a file has."""

    def __init__(self, filename: str) -> None:
        try:
            tree = ast.parse("".join(linecache.getlines(filename)), filename)
        except (SyntaxError, ValueError):  # it was changed since
            tree = ast.Module([], [])
        self._nodes = {
            (node.name, min([node.lineno, *(one.lineno for one in node.decorator_list)])): node
            for node in ast.walk(tree)
            if isinstance(node, ast.AsyncFunctionDef)
        }

    def of(self, code: CodeType) -> ast.AsyncFunctionDef | None:
        """Return the source of a function, None if what the file says now is something else."""
        node = self._nodes.get((code.co_name, code.co_firstlineno))
        if node is None:
            return None
        flags = code.co_flags & __future__.annotations.compiler_flag
        module = compile(ast.Module([node], []), code.co_filename, "exec", flags, True)
        return node if code in module.co_consts else None


def _passed_over(_machine: Machine, _task: Task, *_args: Any) -> None:
    """Take a note to the engine."""


def _may_be_plain(node: ast.AsyncFunctionDef) -> bool:
    """Tell whether calls may take the places of a protocol's awaits."""
    for statement in node.body:
        for inner in ast.walk(statement):
            if isinstance(inner, _NOT_AT_ALL):
                return False
            if isinstance(inner, _NOT_AROUND_AWAITS) and any(
                isinstance(part, ast.Await) for part in ast.walk(inner)
            ):
                return False
    return True


def _function(
    node: ast.AsyncFunctionDef, function: FunctionType, forms: PlainForms, take: Take
) -> Plain:
    """Compile a protocol's source with calls in the place of its awaits."""
    calls = _Calls(function.__globals__)
    arguments = node.args
    plain = ast.FunctionDef(
        name=node.name,
        args=ast.arguments(
            posonlyargs=[],
            args=[
                *(ast.arg(name) for name in (_MACHINE, _TASK)),
                *(ast.arg(one.arg) for one in (*arguments.posonlyargs, *arguments.args)),
            ],
            kwonlyargs=[
                *(ast.arg(one.arg) for one in arguments.kwonlyargs),
                *(ast.arg(name) for name in (_PLAIN, _TAKE, _KIND)),
            ],
            kw_defaults=[None] * (len(arguments.kwonlyargs) + 3),
            defaults=[],
        ),
        body=[calls.visit(statement) for statement in node.body],
        decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.Module([ast.copy_location(plain, node)], []))
    space: dict[str, Any] = {}
    filename, flags = function.__code__.co_filename, __future__.annotations.compiler_flag
    exec(compile(module, filename, "exec", flags, dont_inherit=True), space)
    made = FunctionType(
        space[node.name].__code__, function.__globals__, node.name, function.__defaults__
    )
    made.__kwdefaults__ = {
        **(function.__kwdefaults__ or {}), _PLAIN: forms, _TAKE: take, _KIND: StepKind,
    }  # fmt: skip
    return made


class _Calls(ast.NodeTransformer):
    """Turn `await f(a)` into a call of f's plain form, and `await x` into taking x."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node  # a function within: whoever awaits it runs it as it is

    def visit_Await(self, node: ast.Await) -> ast.expr:
        self.generic_visit(node)
        awaited = node.value
        alone: list[ast.expr] = [_name(_MACHINE), _name(_TASK)]
        if not isinstance(awaited, ast.Call):
            return ast.copy_location(ast.Call(_name(_TAKE), [*alone, awaited], []), node)
        call = ast.Call(self._plain(awaited.func), [*alone, *awaited.args], awaited.keywords)
        return ast.copy_location(call, node)

    def _plain(self, called: ast.expr) -> ast.expr:
        """Name the plain form: of what is a step now, the body that the step has when it is run."""
        form: ast.expr = ast.Subscript(_name(_PLAIN), called, ast.Load())
        if isinstance(called, ast.Name) and type(self._names.get(called.id)) is StepKind:
            is_step = ast.Compare(ast.Call(_name("type"), [called], []), [ast.Is()], [_name(_KIND)])
            return ast.IfExp(is_step, ast.Attribute(called, "run", ast.Load()), form)
        return form


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())
