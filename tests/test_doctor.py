"""The doctor tells what is there, and each missing thing with what mends it."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zaplock.cli import main
from zaplock.errors import UserError
from zaplock.recorder import doctor, instances_ahead
from zaplock.recorder.lock_events import without_any
from zaplock.recorder.tracefs import Instance, _why_not, opened

pytestmark = pytest.mark.root


def test_on_this_machine_zaplock_can_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["able"]
    names = {finding["name"]: finding for finding in told["findings"]}
    assert names["mmap_lock events"]["seen"] == "3 of 3"
    assert re.match(r"by tracepoints: \d+\.\d\d us for a lock", names["lock events"]["seen"])
    assert os.uname().release in names["kernel"]["seen"]
    for finding in told["findings"]:
        assert finding["ok"] or finding["mend"], finding


def test_the_table_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("kernel", "tracefs", "trace instance", "next: zaplock"))


def test_without_rights_each_missing_thing_has_its_command() -> None:
    script = """
import contextlib, io, os
from zaplock.cli import main
with contextlib.redirect_stdout(io.StringIO()):  # as root, so that everything is imported
    main(["doctor", "--json"])
os.setgid(65534); os.setuid(65534)
raise SystemExit(main(["doctor", "--json"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    missing = {one["name"]: one for one in json.loads(done.stdout)["findings"] if not one["ok"]}
    assert {"root", "tracefs"} <= set(missing)
    for finding in missing.values():
        assert "sudo zaplock" in finding["mend"], finding


def test_a_left_over_instance_is_seen_and_the_command_given_mends_it(tmp_path: Path) -> None:
    with opened() as tracefs:
        with Instance(tracefs, buffer_kb=64) as instance:
            owner = instance.name.rsplit("-", 2)[0]
        left = tracefs.path / "instances" / f"{owner}-1-0"  # another start time
        while not left.exists():  # the start of any zaplock takes it away
            left.mkdir()
            (finding,) = [one for one in doctor.examine() if one.name == "left-over instances"]
        assert not finding.ok
        assert left.name in finding.seen
        command = finding.mend.removeprefix("sudo zaplock ").replace("/tmp/", f"{tmp_path}/")
        assert main(command.split()) == 0
        assert not left.exists()


def test_an_old_kernel_is_told_what_to_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "release", lambda: "4.19.0-27-amd64")
    with pytest.raises(UserError, match=r"kernel: Linux 4.19.* boot Linux 5.11 or newer"):
        doctor.require("kernel")
    monkeypatch.undo()
    doctor.require("kernel")
    assert "look for a mount" in without_any("6.18.44")  # not to boot what it is newer than


def test_a_machine_with_little_memory_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances_ahead, "chosen_buffer_kb", lambda: 1024)
    (finding,) = [one for one in doctor.examine() if one.name == "buffers"]
    assert not finding.ok
    assert "--buffer" in finding.mend


def test_a_root_without_rights_records_and_is_not_told_of_sudo() -> None:
    """As in a container that was left few capabilities, but can open tracefs."""
    script = """
import ctypes, os, sys
for capability in (19, 21, 38):  # SYS_PTRACE, SYS_ADMIN, PERFMON: no child shall have them
    assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-P", "-m", "zaplock", "doctor", "--json"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    assert told["root"]["seen"] == "user 0, CAP_SYS_ADMIN missing"
    assert told["root"]["mend"].endswith("--cap-add SYS_ADMIN")
    assert told["ptrace"]["mend"].endswith("--cap-add SYS_PTRACE")


def test_a_root_who_may_not_mount_is_told_how_to_start_the_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denied = PermissionError(errno.EPERM, "no")
    assert _why_not(denied).endswith("--privileged, or --cap-add SYS_ADMIN")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _why_not(denied).endswith("with sudo")
