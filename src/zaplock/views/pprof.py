"""The stacks of a recording as a pprof profile (github.com/google/pprof, profile.proto).

`go tool pprof`, Pyroscope, Grafana and speedscope read it. Its four kinds of value are the roots of
the folded text (`stacks`), which must not be added up: how long others were made to wait, how long
was waited, how long the lock was held exclusively and shared. Each sample has the labels `process`,
`thread` and `tid`.

The schema is made here, field by field, for protobuf's own encoder: there is no package that brings
its classes. Needs `protobuf` (`pip install zaplock[pprof]`).
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from zaplock import outputs
from zaplock.extras import needed
from zaplock.trace.stacks import CallStack
from zaplock.trace.summary import Summary
from zaplock.views.stacks import ROOTS, placed, require_stacks, stack_times

_INT64, _UINT64, _BOOL, _STRING, _MESSAGE = 3, 4, 8, 9, 11
"""The types of fields that the schema uses (google/protobuf/descriptor.proto)."""

_SCHEMA: dict[str, tuple[tuple[int, str, int | str, bool], ...]] = {
    "ValueType": ((1, "type", _INT64, False), (2, "unit", _INT64, False)),
    "Label": (
        (1, "key", _INT64, False),
        (2, "str", _INT64, False),
        (3, "num", _INT64, False),
        (4, "num_unit", _INT64, False),
    ),
    "Sample": (
        (1, "location_id", _UINT64, True),
        (2, "value", _INT64, True),
        (3, "label", "Label", True),
    ),
    "Mapping": (
        (1, "id", _UINT64, False),
        (5, "filename", _INT64, False),
        (7, "has_functions", _BOOL, False),
    ),
    "Line": ((1, "function_id", _UINT64, False), (2, "line", _INT64, False)),
    "Location": (
        (1, "id", _UINT64, False),
        (2, "mapping_id", _UINT64, False),
        (4, "line", "Line", True),
    ),
    "Function": (
        (1, "id", _UINT64, False),
        (2, "name", _INT64, False),
        (3, "system_name", _INT64, False),
        (4, "filename", _INT64, False),
    ),
    "Profile": (
        (1, "sample_type", "ValueType", True),
        (2, "sample", "Sample", True),
        (3, "mapping", "Mapping", True),
        (4, "location", "Location", True),
        (5, "function", "Function", True),
        (6, "string_table", _STRING, True),
        (10, "duration_nanos", _INT64, False),
        (13, "comment", _INT64, True),
        (14, "default_sample_type", _INT64, False),
    ),
}
"""Number, name, type (of a message its name) and whether repeated, of what is written here."""


def write_pprof(summary: Summary, path: Path) -> Path:
    """Write the profile, compressed; raise UserError without stacks, protobuf or a place."""
    require_stacks(summary.analysis)
    content: bytes = _Profile(summary).finished().SerializeToString(deterministic=True)
    with outputs.writing(path) as file:
        file.write(gzip.compress(content, mtime=0))
    return path


@cache
def message_class() -> Any:
    """Return the class of `Profile`; raise UserError where protobuf is not installed."""
    with needed("a pprof profile", "pprof"):
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    file = descriptor_pb2.FileDescriptorProto(
        name="zaplock/profile.proto", package="zaplock.pprof", syntax="proto3"
    )
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, field, kind, repeated in fields:
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = _MESSAGE, f".zaplock.pprof.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("zaplock.pprof.Profile"))


class _Profile:
    """A profile in the making: texts, functions and files are kept once."""

    def __init__(self, summary: Summary) -> None:
        self._profile = message_class()()
        self._texts: dict[str, int] = {}
        self._mappings: dict[str, int] = {}
        self._locations: dict[tuple[str, str], int] = {}
        self._text("")
        analysis = summary.analysis
        for root in ROOTS:
            unit = self._text("nanoseconds")
            self._profile.sample_type.add(type=self._text(_kind(root)), unit=unit)
        self._profile.default_sample_type = self._text(_kind(ROOTS[0]))
        self._profile.duration_nanos = analysis.duration_ns
        for said in (f"mmap_lock, Linux {analysis.kernel}, by zaplock", *analysis.caveats):
            self._profile.comment.append(self._text(said))
        self._add(summary)

    def finished(self) -> Any:
        """Return the message."""
        self._profile.string_table.extend(self._texts)
        return self._profile

    def _add(self, summary: Summary) -> None:
        sums: dict[tuple[str, str, int, CallStack], list[int]] = defaultdict(lambda: [0] * 4)
        for one in stack_times(summary):
            key = (one.process, one.comm, one.tid, one.stack)
            sums[key][ROOTS.index(one.root)] += one.span_ns
        for (process, comm, tid, stack), values in sums.items():
            sample = self._profile.sample.add(value=values)
            sample.location_id.extend(self._location(*frame) for frame in placed(stack))
            sample.label.add(key=self._text("process"), str=self._text(process))
            sample.label.add(key=self._text("thread"), str=self._text(comm))
            sample.label.add(key=self._text("tid"), num=tid)

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _mapping(self, file: str) -> int:
        if file not in self._mappings:
            number = self._mappings[file] = len(self._mappings) + 1
            self._profile.mapping.add(id=number, filename=self._text(file), has_functions=True)
        return self._mappings[file]

    def _location(self, function: str, file: str) -> int:
        if (function, file) not in self._locations:
            number = self._locations[function, file] = len(self._locations) + 1
            name, at = self._text(function), self._text(file)
            self._profile.function.add(id=number, name=name, system_name=name, filename=at)
            mapping = self._mapping(file) if file else 0
            self._profile.location.add(id=number, mapping_id=mapping).line.add(function_id=number)
        return self._locations[function, file]


def _kind(root: str) -> str:
    """Make of a root what can be typed: pprof -sample_index=held_shared."""
    return root.replace(" ", "_")
