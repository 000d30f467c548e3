"""What every page shares: nothing runs in it and nothing is loaded but what is the page's own.

Names of strangers are in all of them. Markup is escaped where it is written; should that ever fail,
the page's Content-Security-Policy names its own scripts by their hashes, and the browser runs no
other, loads nothing and sends nothing anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def policy(scripts: Sequence[str] = ()) -> str:
    """Return the value of the page's Content-Security-Policy: these scripts and no others.

    Styles stand in the page, some in attributes, so they are let in wherever they stand.
    """
    allowed = " ".join(f"'sha256-{_hash(script)}'" for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def safe_json(value: Any) -> str:
    """Write JSON that can stand inside a script element, whatever tasks are called."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def page(template: str, *, styles: Sequence[str], scripts: Sequence[str], **values: Any) -> str:
    """Lay out a page of `assets` as text: its styles and scripts stand in it, in this order."""
    read = [_asset(name) for name in scripts]
    style = "".join(_asset(name) for name in ("base.css", *styles))
    found = _environment().get_template(template)
    values = {"about": "", **values}
    return found.render(scripts=read, style=style, policy=policy(read), **values)


@cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_asset),
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    return (resources.files("zaplock.views") / "assets" / name).read_text("utf-8")
