"""The store behind an S3 server: what a folder gives, down to the bytes of the report.

pip install 'moto[s3,server]' s3fs; pytest -s bench/test_object_storage.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from zaplock.executors import Here
from zaplock.fleet.report import report
from zaplock.fleet.simulate import days_of, simulate_fleet
from zaplock.fleet_store.store import FleetStore

server = pytest.importorskip("moto.server", reason="needs moto[s3,server]")
s3fs = pytest.importorskip("s3fs", reason="needs s3fs")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of a server of this process, on loopback."""
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    told = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "any",
            "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("hosts")
    yield "s3://hosts/fleet"
    running.stop()


def test_a_bucket_is_a_folder_elsewhere(bucket: str, tmp_path: Path) -> None:
    """Simulated, listed, reported, a recording fetched."""
    reports = []
    for where in (bucket, str(tmp_path / "fleet")):
        made = simulate_fleet(where, 4, days_of(1), Here(), variants=1)
        reports.append(json.dumps(report(where, Here()).to_json()).replace(where, "STORE"))
    assert reports[0] == reports[1]
    store = FleetStore(bucket)
    entries = store.recordings().objects
    fetched = store.fetch(entries[0], tmp_path / "one")
    assert fetched.is_dir()
    print(f"\n  {made}, {len(entries)} recordings, the same report")
