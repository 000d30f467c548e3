"""Nobody leads what zaplock writes elsewhere: planted links, swapped directories, half files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zaplock import outputs
from zaplock.errors import UserError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
STRANGER = 65534


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outputs.write(page, "old")

    def write_half() -> None:
        with outputs.writing(page) as file:
            file.write(b"half of the n")
            raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_half()
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "page.html").symlink_to(precious)
    with pytest.raises(UserError, match=r"page\.html is a symbolic link"):
        outputs.write(tmp_path / "page.html", "theirs")
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("kind", ["directory", "fifo", "device"])
def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / "odd"
    if kind == "directory":
        odd.mkdir()
    elif kind == "fifo":
        os.mkfifo(odd)
    else:
        odd = Path("/dev/null")
    before = odd.lstat()
    with pytest.raises(UserError, match="only a plain file is written over"):
        outputs.write(odd, "x")
    with pytest.raises(UserError, match="only a plain file is written over"):
        outputs.require_writable(odd)
    assert odd.lstat().st_mode == before.st_mode


def test_a_link_on_the_way_is_followed_if_it_is_ours(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "short").symlink_to("real")
    (tmp_path / "far").symlink_to(tmp_path / "short" / ".." / "real")
    outputs.write(tmp_path / "short" / "a", "1")
    outputs.write(tmp_path / "far" / "b", "2")
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["a", "b"]
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(UserError, match="can't be written"):
        outputs.write(tmp_path / "round" / "a", "1")


@needs_root
def test_a_strangers_link_on_the_way_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link = tmp_path / "out"
    link.symlink_to("etc")
    os.lchown(link, STRANGER, STRANGER)
    with pytest.raises(UserError, match=rf"symbolic link of user {STRANGER}"):
        outputs.write(link / "shadow", "x")
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_directory_swapped_while_we_write_does_not_move_the_file(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "etc").mkdir()
    with outputs.writing(tmp_path / "out" / "page") as file:
        file.write(b"ours")
        (tmp_path / "out").rename(tmp_path / "moved")
        (tmp_path / "out").symlink_to("etc")
    assert (tmp_path / "moved" / "page").read_bytes() == b"ours"
    assert list((tmp_path / "etc").iterdir()) == []


@pytest.mark.parametrize("path", ["/nonexistent/x", "", "/proc/version/x", "a\0b"])
def test_a_place_that_is_none_is_one_line(path: str) -> None:
    with pytest.raises(UserError) as caught:
        outputs.write(path, "x")
    assert "\n" not in str(caught.value)
