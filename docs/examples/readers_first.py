"""A semaphore that lets readers in whenever readers hold it: writers starve, and it shows.

    zaplock check starvation --design docs/examples/readers_first.py:READERS_FIRST
    zaplock check overtaken-by-readers --design docs/examples/readers_first.py:READERS_FIRST

Two readers that overlap are enough: the lock is never free, so the writer is never next.
"""

from __future__ import annotations

from dataclasses import replace

from zaplock.author import SHIPPED

BASE = SHIPPED["linux-6.18"]

READERS_FIRST = replace(
    BASE,
    name="readers-first",
    summary="readers never wait for a writer that waits",
    rwsem=replace(BASE.rwsem, name="readers first", reader_steals="always"),
)
