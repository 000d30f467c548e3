"""A hook of MkDocs: the list of the verbs in commands.md, and each verb's help on its own page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).parents[2] / "src")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Append the verbs to their list, and a verb's help to its page."""
    if SOURCE not in sys.path:
        sys.path.insert(0, SOURCE)
    from zaplock.cli import parser_of
    from zaplock.cli._overview import SUMMARIES

    path = Path(page.file.src_uri)
    if page.file.src_uri == "reference/commands.md":
        rows = [f"| [{verb}](../verbs/{verb}.md) | {said} |" for verb, said in SUMMARIES.items()]
        return "\n".join([markdown, "| verb | what it does |", "|---|---|", *rows, ""])
    if path.parent.name == "verbs":
        os.environ["COLUMNS"] = "100"
        parser = parser_of(path.stem)
        parser.formatter_class = argparse.RawDescriptionHelpFormatter  # zaplock's own needs rich
        return f"{markdown}\n## Options\n\n```text\n{parser.format_help()}```\n"
    return markdown
