"""A real MLflow server that can be away and come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.command import answers, environment, eventually


class MlflowServer:
    """A server on a port of its own, which stays its own while the server is away."""

    def __init__(self, folder: Path, port: int) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers; nothing happens when it runs."""
        if self._process is not None:
            return
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        with (self._folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment(self._folder) | quiet, stdout=log, stderr=log, start_new_session=True
            )
        eventually(lambda: answers(self.uri), what="an answer of MLflow")

    def stop(self) -> None:
        """Stop it with all its processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
