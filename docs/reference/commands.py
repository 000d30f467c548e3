"""A hook of MkDocs: the help of every verb, as the command line prints it, in commands.md."""

from __future__ import annotations

import argparse
import os
import pkgutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).parents[2] / "src")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Append the verbs to their page."""
    if page.file.src_uri != "reference/commands.md":
        return markdown
    if SOURCE not in sys.path:
        sys.path.insert(0, SOURCE)
    from zaplock import cli

    os.environ["COLUMNS"] = "100"
    verbs = sorted(one.name for one in pkgutil.iter_modules(cli.__path__) if one.name[0] != "_")
    return "\n".join([markdown, *(_section(verb) for verb in verbs)])


def _section(verb: str) -> str:
    module = import_module(f"zaplock.cli.{verb}")
    parser = argparse.ArgumentParser(prog=f"zaplock {verb}", description=module.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.configure(parser)
    return f"\n## {verb}\n\n```text\n{parser.format_help()}```\n"
