"""What all tests share: a skip that is no gpu test's is a failure in CI, and no test touches the user's home."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

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
def rank_forks() -> Iterator[RankForks]:
    """Runs functions on several ranks without waiting for imports."""
    forks = RankForks()
    yield forks
    forks.close()
