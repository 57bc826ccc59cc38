"""A real SQLite store and a real MLflow server, and a desk that compares outboxes with what these hold."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.folder import Folder
from storage.outbox import Outbox, RunRecord
from storage.tracking import Tracking

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


class Server:
    """A MLflow server that can go away and come back."""

    def __init__(self, folder: Path, *, database: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.tracking = Tracking(self.uri, artifact_location=None, init_lock=folder / "unused")
        self._folder = folder
        # Making a database takes a server seconds.
        shutil.copy(database, folder / "server.db")
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=os.environ | QUIET,
                cwd=self._folder,
                start_new_session=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while not self._answers():
            assert time.monotonic() < deadline, (self._folder / "server.log").read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class Desk:
    """Writes outboxes into a folder, and reads back what a MLflow holds of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str = "train", **changes: Any) -> Outbox:
        outbox = Outbox(Folder(self._folder / name))
        fields = {"uid": uuid.uuid4().hex, "name": name, "experiment": "graft", "start_time": 1_000}
        outbox.open(RunRecord.model_validate(fields | changes))
        return outbox

    def log_steps(self, outbox: Outbox, *steps: int) -> None:
        """Two rows and one checkpoint a step."""
        for step in steps:
            outbox.log({"loss": 1 / (step + 3), "rate": float("nan")}, step=step)
            outbox.release(outbox.commit())

    def client(self, tracking: Tracking) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking.uri)

    def run_of(self, tracking: Tracking, outbox: Outbox) -> Any:
        """The one run of an outbox, found by its tag alone."""
        record = outbox.record()
        assert record is not None
        client = self.client(tracking)
        experiment = client.get_experiment_by_name(record.experiment)
        runs = client.search_runs([experiment.experiment_id], f"tags.`graft.run_uid` = '{record.uid}'")
        assert len(runs) == 1
        return runs[0]

    def assert_each_row_once(self, tracking: Tracking, outbox: Outbox, *, steps: list[int]) -> None:
        """MLflow's history holds the released rows, each once, with its step and time and every digit."""
        run_id = self.run_of(tracking, outbox).info.run_id
        kept = [row for _, rows in outbox.rows(after=0) for row in rows]
        for key in ("loss", "rate"):
            there = self.client(tracking).get_metric_history(run_id, key)
            assert sorted((row.step, row.timestamp, repr(row.value)) for row in there) == sorted(
                (row.step, row.timestamp, repr(row.value)) for row in kept if row.key == key
            )
            assert sorted(row.step for row in there) == steps


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def local(folder: Path) -> Tracking:
    return Tracking(
        f"sqlite:///{folder}/mlflow.db",
        artifact_location=str(folder / "files"),
        init_lock=folder / "mlflow.lock",
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Tracking:
    """A SQLite store that nobody has made yet."""
    return local(tmp_path / "home")


@pytest.fixture(scope="session")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return local(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def launched(sqlite: Tracking, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server takes seconds to come up; tests that need none run meanwhile."""
    sqlite.deliver(Desk(tmp_path_factory.mktemp("first")).open())
    database = Path(sqlite.uri.removeprefix("sqlite:///"))
    server = Server(tmp_path_factory.mktemp("server"), database=database)
    server.launch()
    yield server
    server.stop()


@pytest.fixture
def server(launched: Server) -> Server:
    launched.wait()
    return launched


@pytest.fixture(scope="module", params=["sqlite", "server"])
def tracking(request: pytest.FixtureRequest, sqlite: Tracking, launched: Server) -> Tracking:
    """The same promises hold for both."""
    if request.param == "sqlite":
        return sqlite
    launched.wait()
    return launched.tracking
