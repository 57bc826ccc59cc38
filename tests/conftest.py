"""What all tests share: a skip that is no gpu test's is a failure in CI, and no test touches the user's home."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.object_store import ObjectServer
from tests.rank_forks import RankForks


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped; in CI only tests marked gpu may be: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test does lands in the home of the person who runs it."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "graft-home"))


@pytest.fixture(scope="session")
def launched_object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    server = ObjectServer(tmp_path_factory.mktemp("object-store") / "moto.log")
    yield server
    server.stop()


@pytest.fixture
def object_server(launched_object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """A real object store, which this process's variables name."""
    launched_object_server.wait()
    launched_object_server.requests.clear()
    for name, value in launched_object_server.variables().items():
        monkeypatch.setenv(name, value)
    return launched_object_server


@pytest.fixture(scope="session")
def rank_forks() -> Iterator[RankForks]:
    """Runs functions on several ranks without waiting for imports."""
    forks = RankForks()
    yield forks
    forks.close()
