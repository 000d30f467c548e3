"""The one table of all verbs: no figure in it is ever cut, whatever the terminal's width.

A table that is too wide folds its heads and its words; then it leaves out columns, those of the
highest rank first, and says which; then it turns to a list, a line for each cell. In a file or a
pipe it is as wide as it needs to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from zaplock.untrusted_names import visible
from zaplock.views.fold_lines import fold, longest_word

GAP = 2
"""Blanks between two columns."""

LONGEST_RULE = 160
"""Below the heads of a table in a file, whose last column may be as wide as a paragraph."""

READABLE = 18
"""Words are not folded to less, where they have more to say."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its head, whether it holds figures, and when it may be left out.

    Columns of the highest rank go first; those of rank 0 stay.
    """

    name: str
    is_figure: bool = False
    rank: int = 0


def beyond(count: int) -> str:
    """Say below a table that there are `count` more rows, if there are."""
    return f"... and {count:,} more (--top)" if count > 0 else ""


def words(name: str, rank: int = 0) -> Column:
    """Make a column of words: to the left, folded where the table is narrow."""
    return Column(name, rank=rank)


def figure(name: str, rank: int = 0) -> Column:
    """Make a column of figures: to the right, never folded."""
    return Column(name, is_figure=True, rank=rank)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: a title, columns, rows of as many cells; None is a gap between rows.

    Without rows nothing is drawn, no title either.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[str] | None]
    title: str = ""
    more: str = ""
    """What is said below the rows, such as how many there are beyond."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rule = "-" if options.ascii_only else "─"
        yield from self.lines(options.max_width, rule)

    def lines(self, width: int, rule: str = "─") -> Iterator[Text]:
        """Draw the table for a width in cells, a line at a time."""
        if not any(self.rows):
            return
        if self.title:
            yield from (_plain(line, "bold") for line in fold(self.title, width, hanging=0))
        shown = self._that_fit(width)
        if shown is None:
            yield from self._list(width)
        else:
            yield from self._table(shown, width, rule)
        if self.more:
            yield from (_plain(line) for line in fold(self.more, width))

    def that_fit_whole(self, width: int, *, gap: int) -> list[int] | None:
        """Choose the columns that have room with nothing folded; None where too few have."""
        return self._chosen(width, gap, [self._most(at) for at in range(len(self.columns))])

    def _that_fit(self, width: int) -> list[int] | None:
        """Choose the columns that there is room for; None where a list is better."""
        return self._chosen(width, GAP, [self._least(at) for at in range(len(self.columns))])

    def _chosen(self, width: int, gap: int, needs: Sequence[int]) -> list[int] | None:
        """Leave out columns, those of the highest rank first, until the others have room."""
        shown = list(range(len(self.columns)))
        while sum(needs[at] for at in shown) + gap * (len(shown) - 1) > width:
            rank = max(self.columns[at].rank for at in shown)
            if not rank:
                return None
            last = max(at for at in shown if self.columns[at].rank == rank)
            shown.remove(last)
        return shown

    def _cells(self, at: int) -> list[str]:
        return [visible(row[at]) for row in self.rows if row is not None]

    def _least(self, at: int) -> int:
        """Return how narrow a column can be: figures are never folded, words not to shreds."""
        head = longest_word(self.columns[at].name)
        if self.columns[at].is_figure:
            return max(head, *map(cell_len, self._cells(at)))
        room = min(READABLE, self._most(at))
        return max(head, room, *map(longest_word, self._cells(at)))

    def _most(self, at: int) -> int:
        return max(cell_len(text) for text in (self.columns[at].name, *self._cells(at)))

    def _widths(self, shown: list[int], width: int) -> list[int]:
        """Share out the room: what each needs at least, and of the rest what each lacks."""
        least = [self._least(at) for at in shown]
        lacks = [self._most(at) - has for at, has in zip(shown, least)]
        spare = min(width - sum(least) - GAP * (len(shown) - 1), sum(lacks))
        whole = max(1, sum(lacks))
        return [has + spare * lack // whole for has, lack in zip(least, lacks)]

    def _table(self, shown: list[int], width: int, rule: str) -> Iterator[Text]:
        widths = self._widths(shown, width)
        head = [self.columns[at].name for at in shown]
        if any(head):
            yield from self._row(shown, widths, head, "bold", bottom=True)
            whole = sum(widths) + GAP * (len(widths) - 1)
            yield Text(rule * min(whole, LONGEST_RULE), "dim")
        for row in self.rows:
            if row is None:
                yield Text()
            else:
                yield from self._row(shown, widths, [visible(row[at]) for at in shown])
        if len(shown) < len(self.columns):
            names = (self.columns[at].name for at in range(len(self.columns)) if at not in shown)
            note = f"(a wider terminal has also: {', '.join(names)})"
            yield from (_plain(line, "dim") for line in fold(note, width))

    def _row(
        self,
        shown: list[int],
        widths: list[int],
        cells: Sequence[str],
        style: str = "",
        *,
        bottom: bool = False,
    ) -> Iterator[Text]:
        """Draw a row over as many lines as its longest cell needs; a head stands on its rule."""
        parts = [fold(cell, wide, hanging=0) for cell, wide in zip(cells, widths)]
        height = max(map(len, parts))
        for part in parts:
            blank = [""] * (height - len(part))
            part[:] = blank + part if bottom else part + blank
        for k in range(height):
            line = (" " * GAP).join(
                _aligned(part[k], wide, right=self.columns[at].is_figure)
                for part, wide, at in zip(parts, widths, shown)
            )
            yield _plain(line.rstrip(), style)

    def _list(self, width: int) -> Iterator[Text]:
        """Draw a line for each cell, below the row's first words."""
        names = max(longest_word(column.name) for column in self.columns)
        room = max(cell_len(column.name) for column in self.columns)
        room = max(min(room, width // 2 - GAP), names)
        for row in self.rows:
            if row is None:
                yield Text()
                continue
            head = next((at for at, cell in enumerate(row) if cell), 0)
            yield from (_plain(line, "bold") for line in fold(visible(row[head]), width))
            for at, cell in enumerate(row):
                if at != head and cell:
                    yield from self._item(self.columns[at].name, visible(cell), room, width)

    def _item(self, name: str, cell: str, room: int, width: int) -> Iterator[Text]:
        names = fold(name, room, hanging=0)
        left = width - room - 2 * GAP
        if longest_word(cell) > left:
            yield _plain(f"{'':{GAP}}{name}")
            below = f"{'':{2 * GAP}}{cell}"
            yield from (_plain(line) for line in fold(below, width, hanging=0))
            return
        cells = fold(cell, left, hanging=0)
        for k in range(max(len(names), len(cells))):
            before = names[k] if k < len(names) else ""
            after = cells[k] if k < len(cells) else ""
            yield _plain(f"{'':{GAP}}{_aligned(before, room)}{'':{GAP}}{after}".rstrip())


def _plain(line: str, style: str = "") -> Text:
    """Make a line that `rich` leaves as it is."""
    return Text(line, style, no_wrap=True, overflow="ignore")


def _aligned(text: str, width: int, *, right: bool = False) -> str:
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank
