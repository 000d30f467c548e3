"""Comparing from Python: results that draw and explain themselves, and a lab of one's own."""

from pathlib import Path

import pytest

import zaplock
from zaplock import notebook
from zaplock.errors import UserError
from zaplock.model.step import SleepStep
from zaplock.protocols.locking import syscall

GIB = 1 << 30


@pytest.fixture(scope="module")
def result() -> notebook.ComparisonResult:
    return zaplock.compare("8G", designs=["linux-4.9", "rfc-v6", "linux-6.18"])


def test_a_result_has_its_table_as_a_frame(result: notebook.ComparisonResult) -> None:
    frame = result.frame
    assert frame.height == 9
    assert frame["design"].to_list()[:3] == ["linux-4.9", "rfc-v6", "linux-6.18"]
    assert frame["mmap_stall_ns"].null_count() == 3, "no mmap in the first block"
    worst = frame.filter(frame["bystanders"] == "fault,proc")["fault_stall_ns"].to_list()
    assert worst[0] > 100 * max(worst[1:])


def test_a_result_shows_itself_in_a_notebook(result: notebook.ComparisonResult) -> None:
    page = result._repr_html_()
    assert page.count("<table>") == page.count("</table>") == 3
    assert page.count("<tr>") == page.count("</tr>") == 12
    for line in result.sentences:
        assert line in page
    picture = result.plot()
    assert picture is not None
    assert picture._repr_svg_().startswith("<svg")


def test_a_result_is_drawn_to_a_file(result: notebook.ComparisonResult, tmp_path: Path) -> None:
    assert result.plot(tmp_path / "who.svg") is None
    assert "linux-4.9" in (tmp_path / "who.svg").read_text()
    with pytest.raises(UserError, match=r"must end in \.svg"):
        result.plot(tmp_path / "who.gif")


def test_what_cannot_be_is_refused_in_scripts_too() -> None:
    for arguments in ({"size": "80Q"}, {"designs": ["linux-2.4"]}, {"profile": "laptop"}):
        with pytest.raises(UserError):
            zaplock.compare(**arguments)


def test_a_program_of_ones_own_runs_beside_bystanders() -> None:
    lab = zaplock.Lab("linux-4.9", cpus=4)
    heap = lab.map("4G")

    async def free_in_chunks(cx) -> int:
        for at in range(heap, heap + 4 * GIB, GIB // 8):
            await syscall(cx, "munmap", cx.design.munmap(cx, at, GIB // 8), at, GIB // 8)
            await SleepStep(1_000_000)
        return 32

    lab.thread("allocator", free_in_chunks)
    lab.bystander("proc", period_ns=500_000)
    seen = lab.run()
    assert seen.results["allocator"] == 32
    # A chunk is an eighth of a GiB: some 4 ms, and nobody waits longer than for one of them.
    assert 2_000_000 < seen.stalls["proc"].max_ns < 8_000_000
    assert (seen.holds["mode"] == "exclusive").sum() == 32
    assert seen.waits.height > 0


def test_a_foreign_process_has_an_address_space_of_its_own() -> None:
    lab = zaplock.Lab("rfc-v6")
    heap = lab.map("1M")
    lab.thread("db", lambda cx: cx.design.munmap(cx, heap, 1 << 20))
    lab.thread("ps", lambda cx: cx.design.proc_cmdline(cx, 1), foreign=True)
    seen = lab.run()
    tasks = {task.comm: task for task in seen.events.tasks.values()}
    assert tasks["db"].pid == tasks["db"].tid
    assert tasks["ps"].pid == tasks["ps"].tid
    assert set(seen.events["mm"][seen.events["kind"] <= 2].tolist()) == {1}


def test_a_lab_says_what_is_missing() -> None:
    lab = zaplock.Lab()
    with pytest.raises(UserError, match="call map\\(\\) first"):
        lab.bystander("fault")
    lab.map("1M")
    with pytest.raises(UserError, match="no bystander 'cat'"):
        lab.bystander("cat")
    with pytest.raises(UserError, match="has its mapping"):
        lab.map("1M")
    lab.bystander("fault")
    with pytest.raises(UserError, match="two threads named 'fault'"):
        lab.bystander("fault")
    assert lab.run().duration_ns < 1_000_000, "nobody is there whom bystanders could stand beside"


@pytest.mark.parametrize("length", ["1G", 4096.0, None, 1 << 64])
def test_what_is_no_number_is_refused_before_the_call_and_the_next_one_goes_on(
    length: object,
) -> None:
    """It broke off inside, and the lock stayed held: each call after it was a deadlock."""
    space = zaplock.AddressSpace("rfc-v6")
    for call in (space.mmap, lambda one: space.munmap(0, one), lambda one: space.read(one)):
        with pytest.raises(UserError):
            call(length)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="Invalid argument"):
        space.munmap(-4096, 4096)  # an address beyond all that a process can have
    heap = space.mmap(4096, populate=True)
    space.munmap(heap, 4096)
    space.check()
    with pytest.raises(UserError, match="5 is no design"):
        zaplock.AddressSpace(5)  # type: ignore[arg-type]


def test_a_cell_that_was_mended_is_run_again() -> None:
    """A program that fails where it is given adds no thread."""
    lab = zaplock.Lab("rfc-v6")
    heap = lab.map("1M")
    with pytest.raises(ZeroDivisionError):
        lab.thread("db", lambda cx: cx.design.munmap(cx, heap, 1 // 0))
    with pytest.raises(AttributeError):
        lab.thread("db", lambda _cx: 5)  # type: ignore[arg-type, return-value]
    lab.thread("db", lambda cx: cx.design.munmap(cx, heap, 1 << 20))
    assert lab.run().results["db"] == 0


def test_designs_may_be_one_text() -> None:
    found = zaplock.compare("4K", designs="linux-4.9,rfc-v6", bystanders=[[]])
    assert found.frame["design"].to_list() == ["linux-4.9", "rfc-v6"]
