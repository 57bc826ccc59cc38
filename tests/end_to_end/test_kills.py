"""Killed at any write and run again, every stage ends with the bytes of a run that never stopped."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.store import Store

RECIPE = Path(__file__).parents[2] / "configs" / "smoke.yaml"
SEED = 2018

# One step for every stage.
STEPS = {
    "index_dataset": "index_pretext",
    "train_pretext": "train_pretext",
    "extract_features": "extract_cluster",
    "cluster_features": "cluster_features",
    "assign_labels": "assign_labels",
    "train_student": "train_student",
    "probe_features": "probe_photographs_student",
    "finetune_encoder": "finetune_photographs_student",
    "write_report": "write_report",
}
PHASES = (
    "before the first commit",
    "inside a write",
    "between two commits",
    "after the last write, before the marker",
    "after the marker, before MLflow's end",
)


class Door:
    """The process that runs steps and dies where it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("door.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        )

    def run(self, home: Path, *, only: list[str], kill: dict[str, Any] | None = None) -> tuple[int, list[list[str]]]:
        """Run steps; gives the exit status and the events (kind, name) that were completed."""
        assert self._process.stdin and self._process.stdout
        command = {
            "recipe": str(RECIPE),
            "home": str(home),
            "tracking": f"sqlite:///{home / 'mlflow.db'}",
            "only": only,
            "kill": kill,
            "log": str(self._folder / "events.jsonl"),
        }
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["status"], answer["events"]

    def close(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    process = Door(tmp_path_factory.mktemp("door"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow without runs: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    database = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture(scope="module")
def uninterrupted(door: Door, empty_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which every step ran without a kill. MLflow forgets it, or the others would find its artifacts."""
    home = tmp_path_factory.mktemp("uninterrupted")
    shutil.copy(empty_mlflow, home)
    status, _ = door.run(home, only=[])
    assert status == 0
    shutil.copy(empty_mlflow, home)
    return home


def step_key(home: Path, step: str) -> str:
    key: str = json.loads((home / "recipes" / "smoke.json").read_text())[step]
    return key


def home_without(uninterrupted: Path, step: str, place: Path) -> Path:
    """A copy of the home in which this step is not done, and MLflow does not know it."""
    shutil.copytree(uninterrupted, place, dirs_exist_ok=True)
    shutil.rmtree(place / "store" / "artifacts" / step_key(uninterrupted, step))
    return place


def kill_point(phase: str, events: list[list[str]], chance: random.Random) -> dict[str, Any] | None:
    """Which write to die at, of those that the step makes when nothing happens; None if there is none of the phase."""
    writes = [kind for kind, _ in events if kind != "step"]
    marker = writes.index("marker")
    commits = [number for number, kind in enumerate(writes[:marker]) if kind in ("ledger", "checkpoint")]
    # A stage that keeps its work in one go has no ledger: its units are its files.
    commits = commits or list(range(marker))
    if phase == "before the first commit":
        return {"event": chance.randint(0, commits[0]), "when": "before"}
    if phase == "inside a write":
        return {"event": chance.randrange(marker), "when": "inside"}
    if phase == "between two commits":
        if len(commits) < 2:
            return None
        return {"event": chance.choice(commits[:-1]), "when": "after"}
    if phase == "after the last write, before the marker":
        return {"event": marker, "when": "before"}
    return {"event": marker, "when": "after"}


def committed(events: list[list[str]]) -> set[str]:
    return {name for kind, name in events if kind == "ledger"}


def mlflow_runs(database: Path, key: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, f"tags.`graft.key` = '{key}'"))


def test_a_killed_run_goes_on_and_ends_with_equal_bytes(
    door: Door, uninterrupted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(SEED)
    table: dict[tuple[str, str], str] = {}
    for stage, step in STEPS.items():
        key = step_key(uninterrupted, step)
        expected = Store(uninterrupted / "store").marker(key).digest
        status, clean = door.run(home_without(uninterrupted, step, tmp_path / f"{stage}-clean"), only=[step])
        assert status == 0
        for number, phase in enumerate(PHASES):
            kill = kill_point(phase, clean, chance)
            if kill is None:
                continue
            home = home_without(uninterrupted, step, tmp_path / f"{stage}-{number}")
            status, before = door.run(home, only=[step], kill=kill)
            assert status == -signal.SIGKILL, (stage, phase)
            status, after = door.run(home, only=[step])
            assert status == 0, (stage, phase)
            assert Store(home / "store").marker(key).digest == expected, (stage, phase)
            assert not committed(before) & committed(after), (stage, phase, "a committed unit was done again")
            assert steps(before, up_to_checkpoint=True) + steps(after) == steps(clean), (stage, phase, "steps")
            assert not list((home / "store" / "work").iterdir()), (stage, phase, "scratch was left")
            table[stage, phase] = f"{kill['when']} {kill['event']}"
            shutil.rmtree(home)
    with capsys.disabled():
        print_table(table)
    empty = [(stage, phase) for stage in STEPS for phase in PHASES if (stage, phase) not in table]
    assert not empty, f"no kill happened in {empty}"


def steps(events: list[list[str]], *, up_to_checkpoint: bool = False) -> int:
    """Training steps done; or those of them that a checkpoint kept."""
    kinds = [kind for kind, _ in events]
    if up_to_checkpoint:
        last = max((place for place, kind in enumerate(kinds) if kind == "checkpoint"), default=0)
        kinds = kinds[:last]
    return kinds.count("step")


def print_table(table: dict[tuple[str, str], str]) -> None:
    width = max(map(len, STEPS))
    lines = ["", " " * width + "  " + "  ".join(f"({number})" for number in range(1, len(PHASES) + 1))]
    for stage in STEPS:
        cells = "  ".join("ok " if (stage, phase) in table else "-- " for phase in PHASES)
        lines.append(f"{stage:<{width}}  {cells}")
    lines += [f"({number}) killed {phase}" for number, phase in enumerate(PHASES, start=1)]
    sys.stdout.write("\n".join(lines) + "\n")


def test_the_step_killed_after_its_marker_is_finished_in_mlflow(
    door: Door, uninterrupted: Path, tmp_path: Path
) -> None:
    step = "assign_labels"
    home = home_without(uninterrupted, step, tmp_path / "home")
    _, clean = door.run(home_without(uninterrupted, step, tmp_path / "clean"), only=[step])
    kill = kill_point(PHASES[-1], clean, random.Random(SEED))
    door.run(home, only=[step], kill=kill)
    door.run(home, only=[step])
    runs = mlflow_runs(home / "mlflow.db", step_key(uninterrupted, step))
    assert [run.info.status for run in runs] == ["FINISHED"]
