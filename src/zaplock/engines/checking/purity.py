"""What a user's steps and protocols may look at: found out before and watched while they run.

The checker runs a step once for each combination of the cells that it reads, and a protocol once
for each sequence of results. So neither may look at anything else that changes. Code that comes
with zaplock is kept that way by its tests; everybody else's code is read here:

* a look at a clock, a random generator, the process or its environment is refused, and so is one at
  the order of a set, writing a global and reaching around the language (`globals`, `eval`);
* whatever it can reach by name (globals, defaults, captured variables, attributes of classes,
  modules and functions) is depicted before it runs and compared afterwards.

Functions are found from the tasks and promises that the engine is given, by the names that their
code uses, and once more from the frames of running protocols and from the steps that they make.
"""

from __future__ import annotations

import builtins
import dis
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from enum import Enum
from functools import _lru_cache_wrapper, cache, partial
from pathlib import Path
from typing import Any, Final

from zaplock.engines.checking.depicting import Undepictable, depict
from zaplock.engines.checking.locks_named import LocksNamed
from zaplock.engines.checking.set_order import look_at_set_order
from zaplock.errors import ProtocolError
from zaplock.model.step import Step, StepKind, WaitStep

PURE: Final = frozenset({
    "__future__", "_abc", "_bisect", "_collections", "_collections_abc", "_functools", "_heapq",
    "_operator", "_struct", "_typing", "abc", "array", "ast", "base64", "binascii", "bisect",
    "builtins", "cmath", "collections", "colorsys", "contextlib", "copy", "copyreg", "dataclasses",
    "difflib", "dis", "enum", "errno", "fractions", "functools", "graphlib", "hashlib", "heapq",
    "html", "itertools", "json", "keyword", "math", "numbers", "operator", "pprint", "re",
    "reprlib", "string", "struct", "textwrap", "token", "types", "typing", "unicodedata", "zlib",
})  # fmt: skip
"""What of Python's own modules goes by its arguments and keeps no state."""
FORBIDDEN: Final = frozenset({"numpy.random", "numpy.random.mtrand"})
"""What of other libraries draws at random."""
FORBIDDEN_BUILTINS: Final = frozenset({
    "id", "hash", "input", "open", "globals", "locals", "vars", "eval", "exec", "__import__",
    "breakpoint", "object", "setattr", "delattr",
})  # fmt: skip
FORBIDDEN_ATTRIBUTES: Final = frozenset({
    "__builtins__", "__closure__", "__code__", "__defaults__", "__delattr__", "__dict__",
    "__globals__", "__kwdefaults__", "__setattr__",
})  # fmt: skip
"""What reaches around the language, but where an object is made."""
MAKERS: Final = ("__init__", "__new__", "__post_init__", "__setattr__", "__delattr__")

_OF_DATACLASSES: Final = "__create_fn__.<locals>."
"""What the methods that `dataclasses` writes for a class are called."""

_HOME: Final = str(Path(__file__).parents[2])
_LIBRARIES: Final = tuple({
    sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
})  # fmt: skip


@cache
def looks_beyond(module: str) -> bool:
    """Return whether a module looks beyond the program, or keeps state that nobody can depict."""
    first = module.partition(".")[0]
    return module in FORBIDDEN or (first in sys.stdlib_module_names and first not in PURE)


@cache
def is_users(file: str) -> bool:
    """Return whether a source file is neither zaplock's nor a library's."""
    return not file.startswith((_HOME, *_LIBRARIES, "<frozen"))


def is_users_module(name: str) -> bool:
    """Return whether a module is neither zaplock's nor a library's."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    return module is None or name == "__main__" or (file is not None and is_users(file))


class Surroundings:
    """Everything beside results and cells that the code of a system can see."""

    def __init__(self) -> None:
        self._met: set[int] = set()
        self._kept: list[object] = []
        # What to look at again: how to name it, how to get at it, and what it looked like.
        self._looks: list[tuple[str, Callable[[], Any], Any]] = []
        self._codes: set[types.CodeType] = set()
        self.has_users_code = False
        self.covered: set[types.CodeType] = set()
        self._observing = False
        self.locks = LocksNamed()

    def add(self, value: Any, name: str) -> None:
        """Read what `value` consists of, as far as it is code of a user's, and depict the rest."""
        if isinstance(value, Step):
            self.add(value.run, name)
            if isinstance(value, WaitStep):
                self.add(value.ready, name)
            return
        if id(value) in self._met:
            return
        self._met.add(id(value))
        self._kept.append(value)
        if isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self.add(value.__func__, name)
            self.add(value.__self__, name)
        elif isinstance(value, StepKind):
            self.add(value.run, name)
        elif isinstance(value, partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.add(part, name)
        elif isinstance(value, type):
            self._class(value)
        elif hasattr(value, "__wrapped__"):
            self.add(value.__wrapped__, name)
        else:
            self._object(value, name)

    def add_observer(self, value: Any) -> None:
        """Read what looks at states and is neither a step nor a protocol."""
        self._observing = True
        self.add(value, "a promise")
        self._observing = False

    def add_frames(self, live: Any) -> None:
        """Read the code of a suspended protocol and of those that it awaits."""
        at = live
        while at is not None:
            frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None)
            if frame is None:
                return
            code = frame.f_code
            if code not in self._codes:
                self._codes.add(code)
                if is_users(code.co_filename):
                    held = frame.f_locals
                    captured = {n: held[n] for n in code.co_freevars if n in held}
                    self._read(code, frame.f_globals, captured)
                    for name, value in captured.items():
                        self.add(value, name)
            at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None)

    def compare(self) -> None:
        """Look again; raises ProtocolError where something has changed."""
        for name, get, before in self._looks:
            now = _depict(name, get)
            if now != before:
                raise ProtocolError(
                    f"{name} has changed while the checker ran (now {_brief(get())}): it is "
                    "no cell, so the checker can't see it and no verdict would mean anything; keep "
                    "it in a cell of the machine"
                )

    def _function(self, function: types.FunctionType) -> None:
        code = function.__code__
        captured = _captured(function)
        for name, value in captured.items():
            self.add(value, name)
        if not is_users(code.co_filename) or code.co_qualname.startswith(_OF_DATACLASSES):
            if not code.co_filename.startswith(_HOME):  # what a library has made for the user
                for name, value in captured.items():
                    self._look(f"{name}, which {function.__qualname__} captures",
                               _Cell(function, name), value)  # fmt: skip
            return
        label = f"{function.__qualname__} ({_where(code)})"
        for name, value in captured.items():
            self._look(f"{name}, which {label} captures", _Cell(function, name), value)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.add(value, label)
        if function.__defaults__ or function.__kwdefaults__:
            defaults = _Defaults(function)
            self._look(f"a default of {label}", defaults, defaults())
        self._look(f"an attribute of {label}", lambda: vars(function), vars(function))
        if code not in self._codes or captured:
            self._codes.add(code)
            self._read(code, function.__globals__, captured)

    def _read(self, code: types.CodeType, names: dict[str, Any], captured: dict[str, Any]) -> None:
        """Read code of a user's and follow every name in it."""
        self.has_users_code = True
        if not self._observing:
            self.covered.add(code)
        refuse_forbidden(code, names, captured)
        used = {name: names[name] for name in globals_in(code) if name in names}
        look_at_set_order(code, {**used, **captured})
        for name in used:
            self._global(name, names, code)

    def _global(self, name: str, names: dict[str, Any], code: types.CodeType) -> None:
        value = names[name]
        if isinstance(value, types.ModuleType):
            self._module(value, code)
            return
        self.add(value, name)
        if not _is_code(value):
            self._look(f"the global {name} of {names.get('__name__')}", partial(names.get, name),
                       value)  # fmt: skip

    def _module(self, module: types.ModuleType, code: types.CodeType) -> None:
        if not is_users_module(module.__name__):
            return
        for name in names_in(code):
            if hasattr(module, name):
                self._global(name, vars(module), code)

    def _class(self, kind: type) -> None:
        if not is_users_module(kind.__module__):
            return
        for name, value in list(vars(kind).items()):
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if isinstance(value, property):
                for part in (value.fget, value.fset):
                    self.add(part, name)
            elif _is_code(value):
                self.add(value, name)
        self._look(f"an attribute of the class {kind.__qualname__}", lambda: _data_of(kind),
                   _data_of(kind))  # fmt: skip

    def _object(self, value: Any, name: str) -> None:
        if isinstance(value, (list, tuple, set, frozenset)):
            for part in value:
                self.add(part, name)
        elif isinstance(value, dict):
            for part in value.values():
                self.add(part, name)
        elif not isinstance(value, (int, str, bytes, float, types.NoneType, types.ModuleType)):
            self.add(type(value), name)
            for part in _parts(value):
                self.add(part, name)

    def _look(self, name: str, get: Callable[[], Any], value: Any) -> None:
        if isinstance(value, (int, str, bytes, float, types.NoneType)) and not isinstance(
            get, (_Cell, partial)
        ):
            return
        self._looks.append((name, get, _depict(name, get)))


class _Cell:
    """A captured variable."""

    def __init__(self, function: types.FunctionType, name: str) -> None:
        self.cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]

    def __call__(self) -> Any:
        try:
            return self.cell.cell_contents
        except ValueError:
            return None


class _Defaults:
    """The defaults of a function."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function

    def __call__(self) -> Any:
        return self.function.__defaults__, self.function.__kwdefaults__


def _captured(function: types.FunctionType) -> dict[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue
    return found


def _parts(value: Any) -> list[Any]:
    """List what an object of a user's class, or a frozen record of zaplock's, consists of."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    if parameters is not None:
        return [getattr(value, name) for name in value.__dataclass_fields__]
    is_open = is_users_module(type(value).__module__) and hasattr(value, "__dict__")
    return list(vars(value).values()) if is_open else []


def _data_of(kind: type) -> dict[str, Any]:
    if issubclass(kind, Enum):
        return {str(member): dict(vars(member)) for member in kind} | {"class": sorted(vars(kind))}
    hidden = ("__dict__", "__weakref__", "__doc__", "__annotations__", "__dataclass_fields__",
              "__slotnames__")  # fmt: skip
    descriptors = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return {
        name: value
        for name, value in vars(kind).items()
        if name not in hidden and not _is_code(value) and not isinstance(value, descriptors)
    }


def _is_code(value: Any) -> bool:
    return isinstance(
        value,
        (types.FunctionType, types.BuiltinFunctionType, StepKind, type, staticmethod, classmethod,
         property, types.MethodType, types.MethodDescriptorType, types.WrapperDescriptorType),
    ) or hasattr(value, "__wrapped__")  # fmt: skip


def _depict(name: str, get: Callable[[], Any]) -> Any:
    try:
        return depict(get())
    except Undepictable as error:
        raise ProtocolError(
            f"{name} reaches a {error}, whose state the checker can't see: give it to the protocol "
            f"as numbers, strings and tuples"
        ) from None


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _where(code: types.CodeType) -> str:
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


@cache
def globals_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the globals and built-ins that code uses, and functions inside it, in order."""
    found = [
        str(one.argval)
        for inner in _codes_in(code)
        for one in dis.get_instructions(inner)
        if one.opname in _OF_GLOBALS
    ]
    return tuple(dict.fromkeys(found))


_OF_GLOBALS: Final = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def names_in(code: types.CodeType) -> Iterator[str]:
    """List the names that code uses, those of attributes and of functions inside it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


# What is refused


def refuse_forbidden(code: types.CodeType, names: dict[str, Any], captured: dict[str, Any]) -> None:
    """Raise ProtocolError where code asks a clock or the like, or writes a global."""
    for inner in _codes_in(code):
        problem = _problem(inner)
        if problem:
            raise ProtocolError(f"{code.co_qualname} ({_where(code)}) {problem}")
    used = globals_in(code)
    built_in = {name: getattr(builtins, name, None) for name in used if name not in names}
    reached = {name: names[name] for name in used if name in names} | captured
    parts = _parts_of_modules(code, reached)
    for name, found in (*built_in.items(), *reached.items(), *parts):
        source = _forbidden_source(name, found, name not in built_in)
        if source:
            raise ProtocolError(
                f"{code.co_qualname} ({_where(code)}) uses {source}: a step and a protocol may "
                "look at nothing but cells, arguments and results; give it what it needs as an "
                "argument"
            )


def _parts_of_modules(code: types.CodeType, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """List what code reaches by way of modules, such as np.random, with its dotted name."""
    for inner in _codes_in(code):
        name, found = "", None
        for one in dis.get_instructions(inner):
            if one.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                name, found = str(one.argval), names.get(str(one.argval))
            elif one.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(found, types.ModuleType):
                name, found = f"{name}.{one.argval}", getattr(found, str(one.argval), None)
                yield name, found
            elif one.opname not in ("CACHE", "EXTENDED_ARG"):
                found = None


def _forbidden_source(name: str, found: Any, is_global: bool) -> str:
    if found is None:
        return ""
    if isinstance(found, _lru_cache_wrapper):
        return f"{name}, whose results are kept where the checker can't see them"
    if isinstance(found, types.ModuleType):
        return f"the module {found.__name__}" if looks_beyond(found.__name__) else ""
    if not is_global:
        is_one = name in FORBIDDEN_BUILTINS and found is getattr(builtins, name)
        return f"{name}()" if is_one and name != "object" else ""
    owner = getattr(found, "__self__", None)
    module = getattr(found, "__module__", None) or type(owner).__module__
    if callable(found) and isinstance(module, str) and looks_beyond(module):
        return f"{module}.{getattr(found, '__name__', name)}"
    if looks_beyond(type(found).__module__) and type(found).__module__ != "datetime":
        return f"{name}, a {type(found).__name__} of {type(found).__module__}"
    return ""


def _codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes_in(constant)


@cache
def _problem(code: types.CodeType) -> str:
    is_global = False
    for one in dis.get_instructions(code):
        if one.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            return (f"writes the global {one.argval}: the checker can't see it; keep it in a cell "
                    "of the machine")  # fmt: skip
        if one.opname == "IMPORT_NAME" and looks_beyond(str(one.argval)):
            return f"imports {one.argval}: a step and a protocol may look at nothing but cells"
        reaches = one.opname in _OF_ATTRIBUTES and one.argval in FORBIDDEN_ATTRIBUTES
        if reaches and code.co_name not in MAKERS:
            return f"reaches around the language by {one.argval}; {_CELLS}"
        if one.opname in ("STORE_ATTR", "DELETE_ATTR") and is_global:
            return f"writes the attribute {one.argval} of a global, unseen; {_CELLS}"
        is_global = one.opname == "LOAD_GLOBAL" or (is_global and one.opname in _ON_THE_WAY)
    return ""


_CELLS: Final = "keep what changes in a cell of the machine"
_OF_ATTRIBUTES: Final = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR")
_ON_THE_WAY: Final = ("LOAD_ATTR", "CACHE", "EXTENDED_ARG", "BINARY_SUBSCR", "LOAD_CONST")
"""What stands between a global and the attribute of a part of it."""
