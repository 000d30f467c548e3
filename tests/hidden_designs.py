"""Random designs that keep state where a checker does not look, and what is true of them.

Each design is the source of two small tasks on the machine of `toys`. One way to hide state is
drawn from `WAYS`; a step (or a protocol) writes it, another goes by it. The truth comes from no
search and no trie: every order of the steps is run from a world made anew.
"""

from __future__ import annotations

import linecache
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zaplock.engines.checking.configuration import Configuration, TaskProgram
from zaplock.model.step import Step, Task
from zaplock.model.violations import Invariant, Violation

HEAD = """
import datetime, itertools, os, random, time, uuid
from collections import Counter, deque
from dataclasses import dataclass
from typing import NamedTuple
from toys import Toy, add, load, store
from zaplock.model import rwsem
from zaplock.model.step import step
from zaplock.model.store import Cells
from zaplock.model.violations import Invariant, Violation
"""


@dataclass(frozen=True)
class Way:
    """One way to hide state: what stands in the module, how it is written and how it is read.

    build: what the machine gets in the beginning. random: the truth depends on chance, so the
    design has to be refused.
    """

    module: str
    write: str
    read: str
    build: str = "pass"
    random: bool = False


BOX = "class Box:\n    value = 0\n"
KINDS = """
class Queued(NamedTuple):
    n: int

class Running(NamedTuple):
    n: int

def told(value):
    return {bool: 0, float: 2, int: 1, Queued: 3, Running: 4, tuple: 5}[type(value)]

ALIKE = [1, True, 1.0]
TUPLES = [Queued(1), Running(1), (1,), (True,)]
"""
WAYS: dict[str, Way] = {
    "a global": Way("flag = 0", "global flag; flag = VALUE", "flag"),
    "a global by name": Way("flag = 0", "globals()['flag'] = VALUE", "flag"),
    "a global dict": Way("kept = {}", "kept['v'] = VALUE", "kept.get('v', 0)"),
    "a global list": Way("kept = [0]", "kept.append(VALUE)", "kept[-1]"),
    "a global set": Way("kept = set()", "kept.add(VALUE)", "len(kept)"),
    "a deque": Way("kept = deque([0], 1)", "kept.append(VALUE)", "kept[0]"),
    "a counter": Way("kept = Counter()", "kept['v'] += VALUE", "kept['v']"),
    "an object": Way(BOX + "box = Box()", "box.value = VALUE", "box.value"),
    "an object with slots": Way(
        "class Box:\n    __slots__ = ('value',)\nbox = Box(); box.value = 0",
        "box.value = VALUE",
        "box.value",
    ),
    "an object in a dict": Way(
        BOX + "boxes = {'a': [Box()]}", "boxes['a'][0].value = VALUE", "boxes['a'][0].value"
    ),
    "a class": Way(BOX, "Box.value = VALUE", "Box.value"),
    "a class method": Way(
        "class Box:\n    kept = []\n    @classmethod\n    def put(cls, v):\n"
        "        cls.kept.append(v)",
        "Box.put(VALUE)",
        "len(Box.kept)",
    ),
    "a function": Way("def box():\n    pass\nbox.value = 0", "box.value = VALUE", "box.value"),
    "a default": Way(
        "def box(new=None, kept=[0]):\n    if new is not None:\n        kept[0] = new\n"
        "    return kept[0]",
        "box(VALUE)",
        "box()",
    ),
    "a keyword default": Way(
        "def box(new=None, *, kept={}):\n    if new is not None:\n        kept[0] = new\n"
        "    return kept.get(0, 0)",
        "box(VALUE)",
        "box()",
    ),
    "a closure": Way(
        "def make():\n    kept = [0]\n    return kept.append, lambda: kept[-1]\nput, get = make()",
        "put(VALUE)",
        "get()",
    ),
    "a nonlocal": Way(
        "def make():\n    kept = 0\n    def put(v):\n        nonlocal kept\n        kept = v\n"
        "    return put, lambda: kept\nput, get = make()",
        "put(VALUE)",
        "get()",
    ),
    "an iterator": Way("ticks = iter(range(99))", "next(ticks)", "next(ticks)"),
    "a count": Way("ticks = itertools.count()", "next(ticks)", "next(ticks)"),
    "a generator": Way("ticks = (n for n in range(99))", "next(ticks)", "next(ticks)"),
    "an attribute of the machine": Way("", "m.flag = VALUE", "getattr(m, 'flag', 0)"),
    "the machine's dict": Way("", "vars(m)['flag'] = VALUE", "m.__dict__.get('flag', 0)"),
    "the machine's dict itself": Way("", "m.__dict__['flag'] = VALUE", "getattr(m, 'flag', 0)"),
    "a list of the machine": Way("", "m.kept[0] = VALUE", "m.kept[0]", "m.kept = [0]"),
    "an attribute of an mm": Way("", "m.mm(1).mm = VALUE", "m.mm(1).mm - 1"),
    "an attribute of the task": Way("", "task.cpu = VALUE", "task.cpu - task.tid"),
    "the class of the machine": Way(  # a class of this world's own: it is not made anew in the next
        "class Toy(Toy):\n    pass", "Toy.flag = VALUE", "getattr(Toy, 'flag', 0)"
    ),
    "an object in a cell": Way(
        BOX, "m.things['o'].value = VALUE", "m.things['o'].value", "m.things.put('o', Box())"
    ),
    "a list in a cell": Way(
        "", "m.things['o'][0] = VALUE", "m.things['o'][0]", "m.things.put('o', [0])"
    ),
    "a dict in a frozen object": Way(
        "@dataclass(frozen=True)\nclass Box:\n    kept: dict\n",
        "m.things['o'].kept[0] = VALUE",
        "m.things['o'].kept.get(0, 0)",
        "m.things.put('o', Box({}))",
    ),
    "a dict in a tuple": Way(
        "", "m.things['o'][0][0] = VALUE", "m.things['o'][0].get(0, 0)", "m.things.put('o', ({},))"
    ),
    "values alike": Way(
        KINDS, "m.things.put('o', ALIKE[VALUE % 3])", "told(m.things['o'])", "m.things.put('o', 1)"
    ),
    "tuples alike": Way(
        KINDS,
        "m.things.put('o', TUPLES[VALUE])",
        "told(m.things['o']) + (type(m.things['o'][0]) is bool)",
        "m.things.put('o', Queued(1))",
    ),
    "values alike in a cell that was left": Way(
        KINDS,
        "m.things.put('o', ALIKE[VALUE % 3]) if 'o' in m.things else m.things.put('o', True)",
        "told(m.things.drop('o')) if 'o' in m.things else 7",
        "m.things.put('o', 1)",
    ),
    "keys alike": Way(
        KINDS,
        "m.things.put(ALIKE[VALUE % 3], 0)",
        "sum(told(m.things.drop(k)) for k in list(m.things))",
    ),
    "a member of an enum": Way(
        "import enum\nclass Colour(enum.Enum):\n    RED = 1\nRED = Colour.RED\nRED.kept = [0]",
        "RED.kept[0] = VALUE",
        "RED.kept[0]",
    ),
    "an attribute by name": Way(
        "def box():\n    pass", "setattr(box, 'v', VALUE)", "getattr(box, 'v', 0)"
    ),
    "a function of a library": Way(  # which lasts, and is not made anew with the next world
        "from zaplock.model.vma import find_vma",
        "pass",
        "setattr(find_vma, 'hidden', 1) or 1",
        random=True,
    ),
    "a module of a library": Way(
        "from zaplock.model import flags",
        "pass",
        "flags.__dict__.setdefault('hidden', 1)",
        random=True,
    ),
    "a cache": Way(
        "from functools import lru_cache\n@lru_cache\ndef box():\n    return [0]",
        "box().append(VALUE)",
        "box()[-1]",
        random=True,
    ),
    "a context variable": Way(
        "from contextvars import ContextVar\nbox = ContextVar('box', default=0)",
        "box.set(VALUE)",
        "box.get()",
        random=True,
    ),
    "a function by type": Way(
        "from functools import singledispatch\n@singledispatch\ndef box(n):\n    return 0",
        "box.register(int, lambda n: VALUE)",
        "box(1)",
    ),
    "an object that says it is constant": Way(
        "class Box:\n    is_constant = True\n    value = 0\nbox = Box()",
        "box.value = VALUE",
        "box.value",
    ),
    "random": Way("", "pass", "random.randrange(2)", random=True),
    "random by name": Way("from random import choice", "pass", "choice([0, 1, 2])", random=True),
    "a random generator": Way("rng = random.Random(5)", "pass", "rng.randrange(3)", random=True),
    "a fresh generator": Way("", "pass", "random.Random().randrange(3)", random=True),
    "a clock": Way("", "pass", "time.perf_counter_ns() // 100 % 2", random=True),
    "a clock by name": Way(
        "from time import time_ns", "pass", "time_ns() // 1000 % 2", random=True
    ),
    "the date": Way("", "pass", "datetime.datetime.now().microsecond % 2", random=True),
    "the system's randomness": Way("", "pass", "os.urandom(1)[0] % 2", random=True),
    "an identifier": Way("", "pass", "uuid.uuid4().int % 2", random=True),
    "an address": Way("", "pass", "id(object()) // 16 % 2", random=True),
    "a hash": Way("", "pass", "hash('page') % 2", random=True),
    "an import in a step": Way("", "pass", "__import__('random').randrange(2)", random=True),
    "set order": Way("", "pass", "next(iter({'a', 'b', 'c'})) == 'a'", random=True),
    "set order of a global": Way(
        "NAMES = {'a', 'b', 'c'}", "pass", "list(NAMES).index('a')", random=True
    ),
    "set order in a loop": Way("", "pass", "[n for n in set('abc')].index('a')", random=True),
    "set order of a helper": Way(
        "def first():\n    names = {'x', 'y', 'z'}\n    for name in names:\n        return name",
        "pass",
        "first() == 'x'",
        random=True,
    ),
}

EXTRA = ("captured", "argument", "forgotten step", "forgotten lock", "forgotten protocol",
         "forgotten step in a step", "result alike", "random in a protocol", "hidden in a protocol",
         "late captured")  # fmt: skip


@dataclass(frozen=True)
class Design:
    """A drawn design: its source, and whether chance has a say in it."""

    way: str
    source: str
    must_be_refused: bool

    def world(self, name: str = "design") -> dict[str, Any]:
        """Make everything anew."""
        names: dict[str, Any] = {"__name__": __name__}
        exec(compile(self.source, f"<{name}>", "exec"), names)
        return names

    def configuration(self, number: int) -> Configuration:
        """Make what the engines are given; the source can be read by line."""
        name = f"design {number}"
        lines = self.source.splitlines(keepends=True)
        linecache.cache[f"<{name}>"] = (len(self.source), None, lines, f"<{name}>")
        return _configuration(self.world(name))

    def is_broken(self) -> bool:
        """Run every order of the steps, each in a new world."""
        compiled = compile(self.source, "<truth>", "exec")
        return any(_breaks(compiled, order) for order in _orders(compiled))


def _configuration(world: dict[str, Any]) -> Configuration:
    programs = tuple(TaskProgram(Task(i + 1, 1), world[name]) for i, name in enumerate("AB"))
    return Configuration(world["build"], programs, at_end=(world["at_end"],))


def _orders(compiled: Any) -> Iterator[list[int]]:
    """List the orders, each found by running it: what comes next depends on what went before."""
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        ready = _ready_after(compiled, prefix)
        if ready is None or not ready:
            yield prefix
        else:
            todo += [[*prefix, index] for index in ready]


def _run(compiled: Any, order: list[int]) -> tuple[bool, list[int], Any]:
    """Return (is broken, who can go on, the machine and results) after an order."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(compiled, names)
    configuration = _configuration(names)
    machine = configuration.build()
    live = [program.start() for program in configuration.programs]
    tasks = [program.task for program in configuration.programs]
    results: list[Any] = [None, None]
    at: list[Step[Any] | None] = [None, None]
    try:
        for index in (0, 1):
            at[index] = live[index].send(None)
        for index in order:
            step = at[index]
            assert step is not None
            result = step.run(machine, tasks[index], *step.args)
            try:
                at[index] = live[index].send(result)
            except StopIteration as end:
                at[index], results[index] = None, end.value
        ready = [index for index in (0, 1) if at[index] is not None]
        if not ready:
            for check in configuration.at_end:
                check(machine, tuple(results))
        return False, ready, machine
    except Exception:  # a Violation, or another error that an order of the steps brings about
        return True, [], None
    finally:
        for one in live:
            one.close()


def _ready_after(compiled: Any, order: list[int]) -> list[int] | None:
    broken, ready, _ = _run(compiled, order)
    return None if broken else ready


def _breaks(compiled: Any, order: list[int]) -> bool:
    return _run(compiled, order)[0]


def draw(seed: int) -> Design:
    """Draw a design."""
    rng = random.Random(seed)
    way = rng.choice([*WAYS, *EXTRA])
    wanted = rng.choice(["==", "!=", ">="])
    limit = rng.randrange(0, 6)
    bad = f"x {wanted} {limit}"
    one = WAYS.get(way) or rng.choice([w for w in WAYS.values() if not w.random])
    bodies = _bodies(rng, way, one)
    source = "\n".join([HEAD, one.module, _STEPS.format(
        write=one.write.replace("VALUE", str(rng.randrange(1, 4))), read=one.read, build=one.build,
        bad=bad,
    ), *bodies])  # fmt: skip
    return Design(way, source, one.random or way.startswith(("forgotten", "random")))


_STEPS = """
@step
def write_hidden(m, task):
    {write}

@step
def read_hidden(m, task):
    return int({read})

@step
def go_by_hidden(m, task):
    m.counters.put("x", m.counters["x"] + int({read}))

@step
def check_hidden(m, task, limit):
    if int({read}) == limit:
        raise Violation(Invariant.BOOKS_BALANCE, "hidden")

def build():
    m = Toy()
    m.things = Cells(m.store, "things")
    {build}
    return m

def at_end(m, results):
    x = m.counters["x"]
    if {bad}:
        raise Violation(Invariant.BOOKS_BALANCE, "x")
"""


def _bodies(rng: random.Random, way: str, one: Way) -> list[str]:
    if way in EXTRA:
        special = _special(rng, way)
        plain = _plain(rng, ["await add('x', 1)", "await store('x', 2)", "await add('y', 1)"])
        pair = [special, plain] if rng.random() < 0.5 else [plain, special]
    else:
        reads = ["await go_by_hidden()", f"await check_hidden({rng.randrange(4)})",
                 "if await read_hidden():\n        await add('x', 1)"]  # fmt: skip
        writes = ["await write_hidden()"] if not one.random else ["await add('y', 1)"]
        first = _plain(rng, [rng.choice(reads), *writes, "await add('x', 1)"])
        second = _plain(rng, [rng.choice(reads), *writes, "await add('y', 1)"], rng.choice(reads))
        pair = [first, second]
    return [f"async def {name}():\n    {body}\n" for name, body in zip("AB", pair)]


def _plain(rng: random.Random, lines: list[str], always: str = "") -> str:
    drawn = [rng.choice(lines) for _ in range(rng.randrange(1, 4))]
    if always:
        drawn.insert(rng.randrange(len(drawn) + 1), always)
    return "\n    ".join(drawn)


_LOOK = """@step
    def look(m, task):
        m.counters.put("x", m.counters["x"] + value)
    """


def _special(rng: random.Random, way: str) -> str:
    return {
        "captured": f"value = 0\n    {_LOOK}\n    await look()\n    value = {rng.randrange(3)}\n"
                    "    await add('y', 1)",
        "late captured": f"value = 0\n    {_LOOK}\n    await load('x')\n    await look()\n"
                         "    value = await load('x')\n    await look()",
        "argument": "kept = [0]\n    @step\n    def look(m, task, kept):\n"
                    "        m.counters.put('x', m.counters['x'] + len(kept))\n"
                    "    await look(kept)\n"
                    "    kept.append(1)\n    await add('y', 1)",
        "forgotten step": "add('x', 1)\n    await add('y', 1)",
        "forgotten lock": "rwsem.down_read(('a', 0))\n    await add('y', 1)",
        "forgotten protocol": "async def more():\n        await add('x', 1)\n    more()\n"
                              "    await add('y', 1)",
        "forgotten step in a step": "@step\n    def twice(m, task):\n        add('x', 1)\n"
                                    "    await twice()",
        "result alike": "@step\n    def told(m, task):\n        x = m.counters['x']\n"
                        "        return (x > 0) if x < 2 else (1,) if x < 3 else (True,)\n"
                        "    found = await told()\n"
                        "    if found is True or (type(found) is tuple and found[0] is True):\n"
                        "        await add('x', 3)",
        "random in a protocol": "if random.random() < 0.5:\n        await add('x', 1)\n"
                                "    await add('y', 1)",
        "hidden in a protocol": "kept = A.__dict__.setdefault('kept', [])\n    kept.append(1)\n"
                                "    await add('x', len(kept))",
    }[way]  # fmt: skip


def outcome(seed: int) -> str:
    """Check a design: "" if all is well, or what is wrong with what the checker says of it."""
    from zaplock.engines.checking.exhaustive import explore
    from zaplock.errors import ProtocolError

    design = draw(seed)
    try:
        verdict = explore(design.configuration(seed))
    except ProtocolError:
        return ""
    finally:
        linecache.cache.pop(f"<design {seed}>", None)
    if verdict.answer == "failed":
        return ""  # the code raises: told, and no verdict
    if design.must_be_refused:
        return f"seed {seed}, {design.way}: {verdict.answer}, though it has to be refused"
    truth = design.is_broken()
    if (verdict.answer == "broken") != truth:
        return f"seed {seed}, {design.way}: {verdict.answer}, but broken is {truth}"
    return ""


def rules_of(violations: tuple[Violation, ...]) -> set[Invariant]:
    """Name the rules that were broken."""
    return {one.invariant for one in violations}
