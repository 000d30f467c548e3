"""Names are bytes from strangers: how they are decoded, and how they are shown.

Any local user may call a process, a thread, a file, a mount or a mapping anything at all: bytes
that are no UTF-8, escape sequences that write to a terminal's clipboard, characters that turn the
direction of a line round, a line break and a false line after it. So a name is decoded here, once,
where it comes in, and from then on it is plain: whatever can't be printed stands as the escape
that Python's `repr` would use.

    >>> name_of(b"db\\xff\\x1b]0;x\\x07")
    'db\\\\xff\\\\x1b]0;x\\\\x07'

A backslash of a name's own is left alone, so that a plain name stays plain however often it passes
here. What is printed goes through the same rule once more (`cli._screen`), and pages and tables
have rules of their own on top: markup is escaped, cells that a spreadsheet would take for a formula
are quoted (`cell`).
"""

from __future__ import annotations

import os
import re
import shlex

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""The last four are the wide forms of the first, which some spreadsheets take for them."""


def name_of(raw: bytes) -> str:
    """Decode a name as UTF-8; show what is none, and what can't be printed, as escapes."""
    return visible(raw.decode("utf-8", "surrogateescape"))


def visible(text: str, keep: str = "") -> str:
    """Replace every character that can't be printed by its escape, but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def readable(message: str) -> str:
    """Make a message visible, and of words that are longer than any name show the beginning.

    >>> readable(f"size '{'9' * 5000}' is too large")
    "size '99999999999999999999999999999... (5002 characters) is too large"
    """
    return _TOO_LONG.sub(_beginning, visible(message))


_TOO_LONG = re.compile(r"[^\s/]{300,}")
"""More than a part of a path may have (NAME_MAX, 255), with what stands around it."""


def _beginning(word: re.Match[str]) -> str:
    return f"{word[0][:30]}... ({len(word[0])} characters)"


def shell_word(word: str) -> str:
    r"""Quote a word for a shell, such that what is printed of it can be typed.

    >>> shell_word("the db's.zaplock"), shell_word("a\nb\udcff")
    ('\'the db\'"\'"\'s.zaplock\'', "$'a\\nb\\xff'")
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_typed, word)) + "'"


def _typed(char: str) -> str:
    """Escape a character as bash reads it, to which two digits are one byte and no character."""
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    return f"\\u{ord(char):04x}" if 0x80 <= ord(char) < 0x100 else _escape(char)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if char in _SHORT:
        return _SHORT[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cell(text: str) -> str:
    """Quote a cell of a CSV that a spreadsheet would take for a formula, with an apostrophe."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a file of /proc or /sys in which others' names stand; bytes that are no UTF-8 stay.

    They come as lone surrogates: pass a name that is cut out of the text on to `visible`, or a path
    to the kernel as it is.
    """
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
