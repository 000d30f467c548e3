"""What the real trace-cmd writes becomes a recording."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.trace import recording_file
from zaplock.trace.analysis import analyse


@pytest.mark.root
def test_a_real_trace_dat_tells_names_and_the_kernel(tmp_path: Path) -> None:
    """trace-cmd's recorder wants tracers that not every kernel has; its extract does without."""
    tool, traces = shutil.which("trace-cmd"), Path("/sys/kernel/tracing/instances")
    if tool is None or os.geteuid() != 0 or not traces.exists():
        pytest.skip("needs trace-cmd (apt-get install trace-cmd), root and tracefs")
    name = f"zaplock-test-{os.getpid()}"
    instance, data = traces / name, tmp_path / "trace.dat"
    instance.mkdir()
    # A name with a line's end in it, which somebody may have, hides those behind it from trace-cmd:
    # a new table of names has none.
    size = Path("/sys/kernel/tracing/saved_cmdlines_size")
    size.write_text(size.read_text())
    try:
        for event in ("mmap_lock", "syscalls/sys_enter_munmap", "syscalls/sys_exit_munmap"):
            (instance / "events" / event / "enable").write_text("1")
        (instance / "set_event_pid").write_text(str(os.getpid()))
        (instance / "tracing_on").write_text("1")
        for _ in range(5):  # a task's name is kept, as a rule, when it is switched away from
            mmap.mmap(-1, 8 << 20).close()
            time.sleep(0.01)
        (instance / "tracing_on").write_text("0")
        subprocess.run([tool, "extract", "-B", name, "-o", data], check=True, capture_output=True)
    finally:
        if instance.exists():
            instance.rmdir()
    output = tmp_path / "out.zaplock"
    assert main(["import", str(data), "-o", str(output)]) == 0
    recording = recording_file.read(output)
    events, manifest = recording.events, recording.manifest
    assert manifest.kernel == os.uname().release
    assert events.tasks[os.getpid()].comm == Path("/proc/self/comm").read_text().strip()
    munmap = analyse(events, manifest.kernel).calls
    assert 8 << 20 in munmap.length.tolist()
