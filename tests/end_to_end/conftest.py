"""What the tests of whole commands share. Workers of pytest-xdist share it as well."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.local_server import local_server
from tasks.runtime import Runtime
from tests.end_to_end.command import ALONE, RECIPE, PrefectApi, WarmGraft, environment
from tests.end_to_end.tracking_server import MlflowServer


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of this session."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmGraft]:
    """Runs `graft` commands without waiting for imports."""
    process = WarmGraft(tmp_path_factory.mktemp("warm"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def smoke_home(shared_folder: Path, warm: WarmGraft) -> Path:
    """A home in which the whole road was run, without MLflow. Tests copy it, or only read it."""
    home = shared_folder / "smoke"
    with (shared_folder / "smoke.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            result = warm("run", RECIPE, ALONE, env=environment(home))
            assert result.code == 0, result.stderr
            (home / "complete").touch()
    return home


@pytest.fixture
def home(smoke_home: Path, tmp_path: Path) -> Path:
    """A home of one's own in which the whole road was run."""
    return Path(shutil.copytree(smoke_home, tmp_path / "home"))


@pytest.fixture(scope="session")
def prefect(shared_folder: Path) -> Iterator[PrefectApi]:
    """A Prefect server for tests that are not about the server itself."""
    runtime = Runtime(home=shared_folder / "prefect-server")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in runtime.vendor_environment().items():
            patch.setenv(name, value)
        with local_server(runtime) as url:
            yield PrefectApi(url)


@pytest.fixture
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A MLflow server that is away until a test starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = MlflowServer(tmp_path_factory.mktemp("mlflow-server"), port)
    yield server
    server.stop()
