"""What the doctor says of machines, stores and servers that are not well, and that it hides what is secret."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.doctor import examine as module
from flows.doctor import machine
from flows.doctor.examine import examine
from flows.doctor.exposure import exposure
from flows.doctor.finding import Finding, ok
from flows.doctor.kept import begun, leases, outboxes, store
from flows.doctor.machine import disk, gpu, packages
from flows.doctor.servers import mlflow
from flows.pipeline import tracking
from storage.folder import Folder
from storage.lease import FileLease
from storage.outbox import Outbox, RunRecord
from tasks.runtime import Runtime

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def states(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in findings}


def one(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(home=tmp_path / "home")


def test_what_is_installed_here_is_what_is_required(runtime: Runtime) -> None:
    assert states(packages(runtime)) == {"python": "ok", "packages": "ok"}


def test_packages_that_are_missing_or_of_another_version(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy<1", "zarr>=3", "no-such-package>=1", "boto3>=99; extra == 'servers'"]
    monkeypatch.setattr(machine, "requires", lambda name: needed)
    found = {finding.what: finding for finding in packages(runtime)}
    assert {name: finding.state for name, finding in found.items()} == {
        "python": "ok",
        "numpy": "broken",
        "no-such-package": "broken",
    }
    assert "<1 is required" in found["numpy"].found and "pip install" in found["numpy"].remedy


@WITHOUT_GPU
def test_a_gpu_that_torch_cannot_use(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert one(gpu(runtime)).state == "ok"
    wanted = Runtime(home=tmp_path, device="cuda")
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "none")
    assert one(gpu(wanted)).state == "broken" and "GRAFT_DEVICE=cuda" in one(gpu(wanted)).found
    (tmp_path / "driver").write_text("NVRM version: 1.0")
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "driver")
    assert one(gpu(runtime)).state == "broken" and "there is a driver, and torch" in one(gpu(runtime)).found


@pytest.mark.parametrize(("gib", "state"), [(0.5, "broken"), (5, "look"), (50, "ok")])
def test_little_space(runtime: Runtime, gib: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": gib * 2**30})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda place: usage if place.exists() else pytest.fail())
    assert set(states(disk(runtime)).values()) == {state}


def test_a_store_that_works_is_left_as_it_was(runtime: Runtime) -> None:
    assert one(store(runtime)).state == "ok"
    assert list(runtime.store_root.iterdir()) == []


def test_a_store_that_is_no_folder(runtime: Runtime) -> None:
    runtime.home.mkdir()
    runtime.store_root.write_text("a file")
    found = one(store(runtime))
    assert found.state == "broken" and str(runtime.store_root) in found.found


HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from storage.folder import Folder
from storage.lease import FileLease
FileLease(Folder(Path(sys.argv[1])), sys.argv[2]).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_told_from_what_goes_on(runtime: Runtime) -> None:
    place = runtime.store_root / "leases"
    assert {one(check(runtime)).state for check in (leases, begun, outboxes)} == {"ok"}
    record = {"experiment": "e", "start_time": 1}
    for key in ("dead", "living"):
        Outbox(Folder(runtime.store_root / "work" / key / "outbox")).open(
            RunRecord(uid=key, name=f"{key}_step", **record)
        )
    Outbox(Folder(runtime.home / "pipelines" / "stale")).open(RunRecord(uid="stale", name="recipe", **record))
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(place), "dead"], check=False)
    with FileLease(Folder(place), "living"):
        found = one(leases(runtime))
        assert (found.state, "1 of processes that are gone: dead" in found.found) == ("look", True)
        found = one(begun(runtime))
        assert (found.state, "1 steps" in found.found, "dead_step" in found.found) == ("look", True, True)
        found = one(outboxes(runtime))
        assert found.state == "look"
        assert "2 runs are not sent in full: dead_step of e, recipe of e" in found.found
    # Looking takes nothing over.
    assert (place / "dead.json").exists()
    known = tracking(runtime)
    for folder in (runtime.store_root / "work" / "dead" / "outbox", runtime.home / "pipelines" / "stale"):
        known.deliver(Outbox(Folder(folder)))
    assert "1 runs are not sent in full: living_step of e" in one(outboxes(runtime)).found


def test_a_mlflow_that_is_away_or_no_database(tmp_path: Path) -> None:
    away = one(mlflow(Runtime(home=tmp_path, tracking_uri="http://ann:s3cret@127.0.0.1:9")))
    assert (away.state, away.found) == ("broken", "http://127.0.0.1:9 does not answer")
    assert one(mlflow(Runtime(home=tmp_path))).state == "ok"
    (tmp_path / "mlflow.db").write_text("no database")
    assert one(mlflow(Runtime(home=tmp_path))).state == "broken"


class Guarded(ThreadingHTTPServer):
    """A server that lets in everybody, or nobody without a password."""

    status = 200


class Handler(BaseHTTPRequestHandler):
    server: Guarded

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def server(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with Guarded((request.param, 0), Handler) as guarded:
        threading.Thread(target=guarded.serve_forever, daemon=True).start()
        yield guarded
        guarded.shutdown()


@pytest.mark.parametrize("status", [200, 401])
def test_a_server_that_other_machines_reach(server: Guarded, status: int, tmp_path: Path) -> None:
    server.status = status
    url = f"http://127.0.0.1:{server.server_port}"
    found = list(exposure(Runtime(home=tmp_path, prefect_api_url=f"{url}/api", tracking_uri=url)))
    if server.server_address[0] == "127.0.0.1":
        assert [finding.state for finding in found] == ["ok"]
        return
    assert [(finding.what, finding.state) for finding in found] == [("Prefect", "look"), ("MLflow", "look")]
    expected = "asks for no password" if status == 200 else "its password crosses the wire readable"
    assert all(expected in finding.found for finding in found)


def test_a_password_in_an_address_is_told_and_not_shown(tmp_path: Path) -> None:
    found = list(exposure(Runtime(home=tmp_path, tracking_uri="http://ann:s3cret@127.0.0.1:9")))
    assert [finding.state for finding in found] == ["look"]
    assert "holds a password" in found[0].found and "s3cret" not in str(found) and "ann" not in str(found)


def test_a_check_that_fails_or_hangs_stops_no_other(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def raises(_: Runtime) -> Iterator[Finding]:
        yield ok("first", "")
        raise RuntimeError("at http://ann:s3cret@host")

    def hangs(_: Runtime) -> Iterator[Finding]:
        go_on.wait()
        yield ok("never", "")

    def works(_: Runtime) -> Iterator[Finding]:
        yield ok("last", "")

    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    secret = Runtime(home=tmp_path, tracking_uri="http://ann:s3cret@host")
    found = list(examine(secret, checks=(raises, hangs, works)))
    go_on.set()
    assert [(finding.what, finding.state) for finding in found] == [
        ("first", "ok"),
        ("raises", "broken"),
        ("hangs", "broken"),
        ("last", "ok"),
    ]
    assert "s3cret" not in str(found)
