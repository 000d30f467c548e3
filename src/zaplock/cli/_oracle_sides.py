"""What `zaplock oracle` lays side by side: sides, scope, what themes ask of a machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING

from zaplock.errors import UserError, no_such
from zaplock.untrusted_names import shell_word

if TYPE_CHECKING:
    from zaplock.oracle.campaign import Bench, SideMaker
    from zaplock.oracle.scope import Scope

CHANGES_MACHINE = (
    "hugetlb", "gigantic", "hugetlbfs", "shmem-huge", "shmem-advise", "shmem-sizes", "swap", "ksm",
    "group",
)  # fmt: skip
"""Themes that a machine is lent something for as long as they run."""


def other_side(args: argparse.Namespace) -> SideMaker:
    """Return what is laid beside this kernel: the model of it, or the kernel once more."""
    from zaplock.oracle import campaign

    if args.against_itself:
        return campaign.against_itself
    from zaplock.oracle.modelside import model_side

    return model_side


def scope_of(args: argparse.Namespace) -> Scope:
    """Return what both sides cover, of the themes that are asked for; UserError for one unknown."""
    from dataclasses import replace

    from zaplock.oracle.scope import EVERYTHING
    from zaplock.oracle.themes import THEMES

    scope = EVERYTHING
    if not args.against_itself:
        from zaplock.oracle.modelside import COVERED

        scope = COVERED
    for theme in args.theme or ():
        if theme not in THEMES:
            raise no_such("theme", theme, THEMES, listed="'zaplock oracle --help'")
    return replace(scope, themes=tuple(args.theme)) if args.theme else scope


@contextmanager
def lent(themes: Collection[str]) -> Iterator[None]:
    """Let the machine have what some themes need for as long as the block runs.

    Raises UserError on a machine that can't run them.
    """
    from zaplock.oracle.huge_mounts import pages_and_mounts
    from zaplock.oracle.huge_pool import huge_pages, pages_of_both_sizes
    from zaplock.oracle.ksm import ksmd
    from zaplock.oracle.memory_group import memory_group
    from zaplock.oracle.shmem_setting import advised_shared_memory
    from zaplock.oracle.swap_file import swap_file
    from zaplock.oracle.tmpfs_mounts import tmpfs_mounts

    for check in checks_of_themes(themes):
        check()
    lenders: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "hugetlb": huge_pages, "gigantic": pages_of_both_sizes,
        "hugetlbfs": pages_and_mounts, "shmem-huge": tmpfs_mounts,
        "shmem-advise": advised_shared_memory, "swap": swap_file, "ksm": ksmd,
        "group": memory_group,
    }  # fmt: skip
    with ExitStack() as stack:
        for theme, lend in lenders.items():
            if theme in themes:
                stack.enter_context(lend())
        yield


def checks_of_themes(themes: Collection[str]) -> list[Callable[[], None]]:
    """List what raises UserError on a machine that some themes can't run on."""
    from functools import partial

    from zaplock.oracle.bare_process import check_io_uring, check_no_swap, check_root
    from zaplock.oracle.ksm import check_ksm
    from zaplock.oracle.memory_group import check_group

    checks: dict[str, Callable[[], None]] = {
        "pageout": check_no_swap,
        "shm": partial(check_root, "shm", "a namespace of its own for System V shared memory"),
        "uring": check_io_uring,
        "ksm": check_ksm,
        "group": check_group,
        "shmem-sizes": _only_in_guests,
    }
    return [check for theme, check in checks.items() if theme in themes]


def _only_in_guests() -> None:
    raise UserError(
        "the theme shmem-sizes changes what every process's shared memory is made of: give it a "
        "guest of 6.11 or newer, --kernel debian:6.12"
    )


@contextmanager
def bench_of(args: argparse.Namespace, themes: Collection[str]) -> Iterator[Bench]:
    """Give both sides: this kernel, or a guest's that has what themes need, and the model of it."""
    from dataclasses import replace

    from zaplock.oracle.campaign import Bench

    if args.kernel:
        from zaplock.oracle.guest_side import GuestModel, booted

        with booted(args.kernel, themes) as side:
            yield Bench(lambda real: GuestModel(side), real=side)
        return
    bench = Bench(other_side(args), replace(scope_of(args), themes=tuple(themes)))
    try:
        yield bench
    finally:
        bench.close()


def sides_text(args: argparse.Namespace) -> str:
    """Return the options that say what is laid beside what, each behind a blank."""
    kernel = f" --kernel {shell_word(args.kernel)}" if args.kernel else ""
    return f"{kernel} --against-itself" if args.against_itself else kernel
