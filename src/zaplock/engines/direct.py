"""Protocols as plain functions: what a task that is alone need not pay for.

A protocol is an `async def` so that an engine may stop at every step. The sequential engine never
does, and then a third of its time goes into making steps and coroutines and into coming back
through all of them at each step. So a protocol's own source is compiled once more with every
`await f(...)` turned into a call: of a step's body with the machine and the task before its
arguments, of another protocol's plain form, or of whatever makes steps, which are then taken. It is
the same source, line by line, and names are looked up where the protocol looks them up, so what is
replaced in a module is replaced here too: what a name meant when its caller was compiled is called
at once where it still means that, anything else is asked for.

A protocol that awaits within `try` or `with` stays as it is (the engine's steps raise outside of
it, a call would raise inside), as one does whose source is not what it was compiled from. One that
is a closure has a plain form over the same variables. The awaiting form is the witness: tests run
both and compare. Compiling takes as long as some 10,000 runs save, so it begins after as many, or
at once where more are to come.
"""

from __future__ import annotations
import __future__

import ast
import linecache
import warnings
from collections.abc import Callable, Coroutine, Iterator
from copy import deepcopy
from inspect import CO_COROUTINE, CO_NESTED, CO_VARARGS, CO_VARKEYWORDS
from types import CellType, CodeType, CoroutineType, FunctionType
from typing import Any

from zaplock.model.machine import Machine
from zaplock.model.step import TAKEN_ALONE, MarkStep, StepKind, Task

Plain = Callable[..., Any]
"""(machine, task, *arguments) -> what the awaited would have given."""
Take = Callable[[Machine, Task, Any], Any]
"""Take one step, or run a protocol, and return its result."""

WORTH_AFTER = 10_000
_MACHINE, _TASK = "_machine_", "_task_"
_NOT_AROUND_AWAITS = (ast.Try, ast.TryStar, ast.With, ast.GeneratorExp)
_NOT_AT_ALL = (ast.AsyncWith, ast.AsyncFor, ast.Yield, ast.YieldFrom)


class _Form:
    """The plain form of what makes steps: `run` it as a step's body. It is made at the first."""

    __slots__ = ("run",)

    run: Plain

    def __init__(self, forms: PlainForms, called: Any) -> None:
        def first(machine: Machine, task: Task, *args: Any, **kwargs: Any) -> Any:
            self.run = forms[called]
            return self.run(machine, task, *args, **kwargs)

        self.run = first


class PlainForms(dict[Any, Plain]):
    """What to call in the place of awaiting a call, by what would have been called.

    `runs_left`: so many protocols are run as they are before the first one is compiled.
    """

    def __init__(self, take: Take) -> None:
        """Make forms as they are asked for; `take` serves whatever has none."""
        super().__init__()
        self[MarkStep] = _passed_over
        self.runs_left = WORTH_AFTER
        self.take = take
        self.form_now: Callable[[Any], Plain] = self.__getitem__
        self._forms: dict[Any, _Form] = {}
        self._codes: dict[CodeType, CodeType | None] = {}
        self._begun: dict[tuple[CodeType, int], Plain | None] = {}
        self._sources: dict[str, _Source] = {}

    def __missing__(self, called: Any) -> Plain:
        if type(called) is StepKind:
            return called.run
        if (alone := TAKEN_ALONE.get(called)) is not None:
            self[called] = alone
            return alone
        take = self.take
        lasts = isinstance(called, FunctionType) and not called.__code__.co_flags & CO_NESTED
        if isinstance(called, FunctionType) and called.__code__.co_flags & CO_COROUTINE:
            code, closure = called.__code__, called.__closure__
            plain = self._plain(code, called.__globals__, closure)
            if plain is not None:
                plain.__defaults__ = called.__defaults__
                plain.__kwdefaults__ = called.__kwdefaults__
                if lasts:
                    self[called] = plain
                return plain

        def made_and_taken(machine: Machine, task: Task, *args: Any, **kwargs: Any) -> Any:
            return take(machine, task, called(*args, **kwargs))

        if lasts:
            self[called] = made_and_taken
        return made_and_taken

    def form_of(self, called: Any) -> Any:
        """Return what has the plain form as its `run`, for as long as nothing is replaced; or None.

        Of a step that is the step, whose body may change.
        """
        if type(called) is StepKind:
            return called
        is_function = isinstance(called, FunctionType) and not called.__code__.co_flags & CO_NESTED
        if not is_function and called is not MarkStep and not _is_alone(called):
            return None
        if called not in self._forms:
            self._forms[called] = _Form(self, called)
        return self._forms[called]

    def call_of(self, program: Coroutine[Any, Any, Any]) -> tuple[Plain, dict[str, Any]] | None:
        """Return the plain form of a protocol that has not begun, and its arguments by name."""
        if self.runs_left or type(program) is not CoroutineType:
            self.runs_left = max(self.runs_left - 1, 0)
            return None
        code, frame = program.cr_code, program.cr_frame
        if frame is None or program.cr_suspended or code.co_freevars:
            return None
        # A file that was loaded again may have functions that are the same, and other names.
        key = code, id(frame.f_globals)
        try:
            plain = self._begun[key]
        except KeyError:
            plain = self._begun[key] = self._plain(code, frame.f_globals)
        return None if plain is None else (plain, dict(frame.f_locals))

    def _plain(
        self,
        code: CodeType,
        names: dict[str, Any],
        closure: tuple[CellType, ...] | None = None,
    ) -> FunctionType | None:
        """Make the plain form of a function, without its defaults."""
        if code not in self._codes:
            self._codes[code] = self._compiled(code, names)
        compiled = self._codes[code]
        if compiled is None:
            return None
        return FunctionType(compiled, names, closure=closure)

    def _compiled(self, code: CodeType, names: dict[str, Any]) -> CodeType | None:
        if code.co_flags & (CO_VARARGS | CO_VARKEYWORDS):
            return None
        source = self._sources.get(code.co_filename)
        if source is None:
            source = self._sources[code.co_filename] = _Source(code.co_filename)
        node = source.of(code)
        if node is None or not _may_be_plain(node):
            return None
        plain = _plain_code(node, code, _Calls(names, self))
        return plain if plain.co_freevars == code.co_freevars else None


class _Source:
    """The protocols that a file has, also those within its functions."""

    def __init__(self, filename: str) -> None:
        try:
            tree = ast.parse("".join(linecache.getlines(filename)), filename)
        except (SyntaxError, ValueError):  # it was changed since
            tree = ast.Module([], [])
        # Compiled by itself, a call of a function of an imported module would be one of a method.
        self._imports = [
            node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        self._body = tree.body

    def of(self, code: CodeType) -> ast.AsyncFunctionDef | None:
        """Return the source of a function, None if what the file says now is something else."""
        name, line = code.co_name, code.co_firstlineno
        outermost = next((one for one in self._body if (one.end_lineno or 0) >= line), ast.Pass())
        for node in ast.walk(outermost):
            if (
                isinstance(node, ast.AsyncFunctionDef)
                and node.name == name
                and line == min([node.lineno, *(one.lineno for one in node.decorator_list)])
            ):
                flags = code.co_flags & __future__.annotations.compiler_flag
                tree = ast.Module([*self._imports, outermost], [])
                module = compile(tree, code.co_filename, "exec", flags, dont_inherit=True)
                return node if code in _codes_in(module) else None
        return None


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    """Name the functions that are compiled in some code, also those within others."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes_in(inner)


def _passed_over(_machine: Machine, _task: Task, *_args: Any) -> None:
    """Take a note to the engine."""


def _may_be_plain(node: ast.AsyncFunctionDef) -> bool:
    """Tell whether calls may take the places of a protocol's awaits."""
    for statement in node.body:
        for inner in ast.walk(statement):
            if isinstance(inner, _NOT_AT_ALL) or getattr(inner, "is_async", False):
                return False
            if isinstance(inner, _NOT_AROUND_AWAITS) and any(
                isinstance(part, ast.Await) for part in ast.walk(inner)
            ):
                return False
    return True


def _is_alone(called: Any) -> bool:
    """Tell whether it is known how a task that is alone takes what is made so."""
    return isinstance(called, FunctionType) and called in TAKEN_ALONE


def _plain_code(node: ast.AsyncFunctionDef, code: CodeType, calls: _Calls) -> CodeType:
    """Compile a protocol's source with calls in the place of its awaits."""
    node = deepcopy(node)
    arguments = node.args
    plain = ast.FunctionDef(
        name=node.name,
        args=ast.arguments(
            posonlyargs=[],
            args=[
                *(ast.arg(name) for name in (_MACHINE, _TASK)),
                *(ast.arg(one.arg) for one in (*arguments.posonlyargs, *arguments.args)),
            ],
            kwonlyargs=[ast.arg(one.arg) for one in arguments.kwonlyargs],
            kw_defaults=[None] * len(arguments.kwonlyargs),
            defaults=[],
        ),
        body=[calls.visit(statement) for statement in node.body],
        decorator_list=[],
    )
    around = ast.FunctionDef(  # whose variables those of a closure are
        name="around",
        args=ast.arguments(
            [], [ast.arg(name) for name in code.co_freevars], None, [], [], None, []
        ),
        body=[ast.copy_location(plain, node)],
        decorator_list=[],
    )
    tree = ast.fix_missing_locations(ast.Module([around if code.co_freevars else plain], []))
    flags = __future__.annotations.compiler_flag
    with warnings.catch_warnings():  # of the strings that are called and compared
        warnings.simplefilter("ignore", SyntaxWarning)
        module = compile(tree, code.co_filename, "exec", flags, dont_inherit=True)
    return calls.filled(next(one for one in _codes_in(module) if one.co_name == node.name))


class _Calls(ast.NodeTransformer):
    """Turn `await f(a)` into a call of f's plain form, and `await x` into taking x.

    What is called is a constant of the code; while it is compiled, a string stands for each.
    """

    def __init__(self, names: dict[str, Any], forms: PlainForms) -> None:
        self._names, self._forms = names, forms
        self._constants: dict[str, Any] = {}

    def filled(self, code: CodeType) -> CodeType:
        """Put what the strings stand for in their places."""
        return code.replace(
            co_consts=tuple(
                self.filled(one)
                if isinstance(one, CodeType)
                else self._constants.get(one, one)
                if isinstance(one, str)
                else one
                for one in code.co_consts
            )
        )

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return node  # a function within: whoever awaits it runs it as it is

    def visit_Await(self, node: ast.Await) -> ast.expr:
        self.generic_visit(node)
        awaited = node.value
        alone: list[ast.expr] = [_name(_MACHINE), _name(_TASK)]
        if not isinstance(awaited, ast.Call):
            take = self._constant(self._forms.take)
            return ast.copy_location(ast.Call(take, [*alone, awaited], []), node)
        call = ast.Call(self._plain(awaited.func), [*alone, *awaited.args], awaited.keywords)
        return ast.copy_location(call, node)

    def _plain(self, called: ast.expr) -> ast.expr:
        """Name the plain form: at once where the name still means what it means now."""
        asked: ast.expr = ast.Call(self._constant(self._forms.form_now), [called], [])
        meant = self._names.get(called.id) if isinstance(called, ast.Name) else None
        form = self._forms.form_of(meant)
        if form is None:
            return asked
        is_meant = ast.Compare(called, [ast.Is()], [self._constant(meant)])
        return ast.IfExp(is_meant, ast.Attribute(self._constant(form), "run", ast.Load()), asked)

    def _constant(self, value: Any) -> ast.Constant:
        stands = f"\0{id(value)}"
        self._constants[stands] = value
        return ast.Constant(stands)


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())
