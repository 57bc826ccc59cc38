"""Real processes that want one artifact: it is made once, and who lost the lease writes nothing more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Artifact
from storage.read_cache import ReadCache
from storage.store import Store
from tests.object_store import ObjectServer

PROGRAM = Path(__file__).with_name("contender.py")
ROOT = Path(__file__).parents[2]
PROCESSES = 6
UNITS = [0, 1, 2]


class Rows(Artifact):
    kind = "Rows"


class Arena:
    """A folder in which processes contend for what lies in a store."""

    def __init__(self, folder: Path, server: ObjectServer | None) -> None:
        self.folder = folder
        self._server = server
        self._where = server.new_bucket() if server else str(folder / "home" / "store")
        self.store = Store(self._where, cache=ReadCache(folder / "cache", limit_bytes=10**6))
        self._processes: list[subprocess.Popen[str]] = []
        (folder / "computed").mkdir()

    def start(self, *, lease_seconds: float = 60.0, stop: str = "none") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(self.folder), str(lease_seconds), stop],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "GRAFT_HOME": str(self.folder / "home"),
                "GRAFT_STORE": self._where,
            },
        )
        self._processes.append(process)
        return process

    def start_and_stop(self, *, lease_seconds: float, stop: str) -> subprocess.Popen[str]:
        """A process that is in the middle of its work, and waits there."""
        process = self.start(lease_seconds=lease_seconds, stop=stop)
        deadline = time.monotonic() + 60
        while not (self.folder / "stopped").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        return process

    def answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        answer: dict[str, Any] = json.loads(output)
        return answer

    def computed(self) -> list[int]:
        """The units that were computed, whoever did it."""
        return sorted(int(path.name.split("-")[0]) for path in (self.folder / "computed").iterdir())

    def require_intact(self, answer: dict[str, Any]) -> Rows:
        artifact = self.store.find(Rows, answer["key"])
        assert artifact is not None and artifact.digest == answer["digest"]
        artifact.verify(deep=True)
        assert [artifact.folder.read(f"{unit}.txt") for unit in UNITS] == [f"row {unit}".encode() for unit in UNITS]
        names = [name for name in self.store.folder.files() if name.startswith(("artifacts/", "work/"))]
        kept = ["marker.json", *(f"0/{unit}.txt" for unit in UNITS)]
        assert sorted(names) == sorted(f"artifacts/{artifact.key}/{name}" for name in kept), "something was left"
        return artifact

    def written(self) -> Any:
        """What changes when anything below `artifacts` is written, though it be with equal bytes."""
        if self._server is None:
            return {path: path.stat().st_mtime_ns for path in (self.store.root / "artifacts").rglob("*")}
        return [path for path in self._server.asked("PUT") if "/artifacts/" in path]

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture(params=["local", "objects"])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    place = Arena(tmp_path, request.getfixturevalue("object_server") if request.param == "objects" else None)
    yield place
    place.close()


def test_processes_that_want_one_artifact_make_it_once(arena: Arena) -> None:
    processes = [arena.start() for _ in range(PROCESSES)]
    answers = [arena.answer(process) for process in processes]
    assert [answer.get("error") for answer in answers] == [None] * PROCESSES
    assert arena.computed() == UNITS
    assert len({answer["digest"] for answer in answers}) == 1
    assert sorted(answer["reused"] for answer in answers) == [False] + [True] * (PROCESSES - 1)
    arena.require_intact(answers[0])


@pytest.mark.parametrize("stop", ["before-unit-1", "before-commit"])
def test_a_paused_holder_that_lost_its_lease_neither_writes_nor_commits(arena: Arena, stop: str) -> None:
    paused = arena.start_and_stop(lease_seconds=1.0, stop=stop)
    paused.send_signal(signal.SIGSTOP)
    try:
        taker = arena.answer(arena.start(lease_seconds=1.0))
        assert taker.get("error") is None and taker["reused"] is False
        # What the paused one had committed was not computed again.
        assert arena.computed() == UNITS
        artifact = arena.require_intact(taker)
        written = arena.written()
        (arena.folder / "go").touch()
    finally:
        paused.send_signal(signal.SIGCONT)
    late = arena.answer(paused)
    assert late["error"] == "LeaseLost" and "Run the same command again" in late["message"]
    after = arena.require_intact(taker)
    assert after.marker == artifact.marker
    assert arena.written() == written
    assert arena.answer(arena.start())["reused"] is True


def test_a_killed_holder_is_taken_over_at_once(arena: Arena) -> None:
    killed = arena.start_and_stop(lease_seconds=600.0, stop="before-unit-1")
    waiting = arena.start(lease_seconds=600.0)
    time.sleep(0.5)
    assert waiting.poll() is None, "it waits while the holder lives"
    killed.kill()
    killed.wait()
    began = time.monotonic()
    answer = arena.answer(waiting)
    assert time.monotonic() - began < 30
    assert answer["reused"] is False and arena.computed() == UNITS, "the committed unit was not computed again"
    arena.require_intact(answer)
