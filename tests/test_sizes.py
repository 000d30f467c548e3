"""Sizes and durations are read as people write them, and refused in one line."""

import pytest
from drawn import times
from hypothesis import given
from hypothesis import strategies as st

from zaplock.errors import UserError
from zaplock.units import (
    LARGEST,
    duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "length"),
    [("80G", 80 << 30), ("4K", 4096), ("1.5G", 3 << 29), ("8192", 8192), ("1t", 1 << 40),
     ("16 MiB", 16 << 20), ("2MB", 2 << 20), (" 4096 ", 4096), (".5G", 1 << 29)],
)  # fmt: skip
def test_a_size_is_read(text: str, length: int) -> None:
    assert parse_size(text) == length


@pytest.mark.parametrize(
    ("text", "rule"),
    [("-1", "number"), ("0", "zero"), ("0G", "zero"), ("80Q", "K, M, G or T"), ("1e30G", "number"),
     ("nan", "number"), ("inf", "number"), ("", "number"), ("G", "number"), ("4097", "multiple"),
     ("1.0001K", "multiple"), ("200T", "at most"), ("9" * 40, "number"), ("٣G", "number"),
     ("0x10", "number"), ("1_000G", "number")],
)  # fmt: skip
def test_a_bad_size_is_refused_in_one_line(text: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule) as caught:
        parse_size(text)
    assert "\n" not in str(caught.value)
    assert repr(text) in str(caught.value)


def test_a_huge_page_size_asks_for_whole_huge_pages() -> None:
    assert parse_size("4M", page=2 << 20) == 4 << 20
    with pytest.raises(UserError, match="multiple of the page size 2097152"):
        parse_size("3M", page=2 << 20)


@given(st.integers(1, LARGEST // 4096))
@times(100)
def test_every_number_of_pages_is_read_back(nr_pages: int) -> None:
    assert parse_size(str(nr_pages * 4096)) == nr_pages * 4096


def _read(text: str) -> int | str:
    try:
        return parse_size(text)
    except UserError as error:
        return str(error)


@given(st.text(max_size=12) | st.from_regex(r"[-+0-9.eE]{1,8}[KMGTQ]?", fullmatch=True))
@times(100)
def test_any_text_is_a_size_or_one_line(text: str) -> None:
    answer = _read(text)
    if isinstance(answer, str):
        assert len(answer.splitlines()) == 1
    else:
        assert 0 < answer <= LARGEST
        assert answer % 4096 == 0


@pytest.mark.parametrize(
    ("text", "span_ns"),
    [
        ("50ms", 50_000_000),
        ("1s", 10**9),
        ("3", 3 * 10**9),
        ("2.5us", 2500),
        ("8ns", 8),
        ("2m", 120 * 10**9),
    ],
)
def test_a_duration_is_read(text: str, span_ns: int) -> None:
    assert parse_duration(text) == span_ns


@pytest.mark.parametrize("text", ["-1s", "0s", "5x", "1e3s", "nan", "1d", "999999999999h", "0.1ns"])
def test_a_bad_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="duration"):
        parse_duration(text)


def test_figures_are_written_short() -> None:
    sizes = [format_size(length) for length in (80 << 30, 3 << 29, 4096, 512)]
    assert sizes == ["80G", "1.5G", "4K", "512"]
    spans = [duration(span_ns) for span_ns in (8, 8_000, 118_530, 2_485_684_000)]
    assert spans == ["8 ns", "8 us", "119 us", "2.49 s"]
