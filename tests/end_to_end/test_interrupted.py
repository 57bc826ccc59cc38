"""Ctrl-C, and the SIGTERM of a scheduler, keep a checkpoint; the same command goes on from it to the same bytes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from storage.folder import Folder
from storage.store import Store
from tests.end_to_end.command import (
    ALONE,
    RECIPE,
    PrefectApi,
    WarmGraft,
    environment,
    eventually,
)

# Small steps, and enough of them that a signal comes in the midst.
EPOCHS = 20
STEPS = 9 * EPOCHS
SETTINGS = ("--set", f"train_pretext.epochs={EPOCHS}", "--set", "train_pretext.batch_size=8")
LONG = ("--only", "train_pretext", *SETTINGS)


@pytest.fixture(scope="module")
def uninterrupted(smoke_home: Path, tmp_path_factory: pytest.TempPathFactory, warm: WarmGraft) -> tuple[str, str]:
    """Key and content digest of the long training's result."""
    home = Path(shutil.copytree(smoke_home, tmp_path_factory.mktemp("uninterrupted") / "home"))
    before = set(Store(home / "store").complete())
    result = warm("run", RECIPE, *LONG, ALONE, env=environment(home))
    assert (result.code, result.training_steps) == (0, STEPS)
    (key,) = set(Store(home / "store").complete()) - before
    return key, Store(home / "store").marker(key).digest


def mlflow_runs(home: Path) -> dict[str, Run]:
    """The newest run of each name."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(experiments, order_by=["attributes.start_time ASC"])}


def checkpoint_step(work: Folder) -> int:
    """How many steps are in a checkpoint."""
    checkpoint = torch.load(work.path / "state" / "checkpoint.pt", weights_only=True)
    return int(checkpoint["state"]["step"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_goes_on_where_it_stopped(
    home: Path,
    tmp_path: Path,
    uninterrupted: tuple[str, str],
    warm: WarmGraft,
    prefect: PrefectApi,
    number: signal.Signals,
) -> None:
    key, digest = uninterrupted
    # Flow runs are named for the recipe's file: this name is of this test alone.
    recipe = shutil.copy(RECIPE, tmp_path / f"{number.name.lower()}.yaml")
    # Only the interruption writes a checkpoint.
    env = environment(home, prefect_api_url=prefect.url, checkpoint_seconds=1000)
    store = Store(home / "store")

    command = warm.start("run", recipe, *LONG, env=env)
    eventually(lambda: prefect.progress(number.name.lower(), "train_pretext"), what="training")
    assert not (store.work_folder(key) / "state").exists("checkpoint.pt")
    command.send_signal(number)
    stopped = command.finish()

    assert stopped.code == 128 + number
    assert "Traceback" not in stopped.stderr
    kept = checkpoint_step(store.work_folder(key))
    assert 0 < kept < STEPS
    runs = mlflow_runs(home)
    assert {name: run.info.status for name, run in runs.items()} == {"smoke": "KILLED", "train_pretext": "KILLED"}
    (flow_run,) = prefect.flow_runs(number.name.lower())
    assert flow_run["state_type"] == "CRASHED"
    status = warm("status", recipe, *SETTINGS, env=env)
    assert f"partial  {100 * kept / STEPS:.0f} %" in status.stdout

    resumed = warm("run", recipe, *LONG, env=env)
    assert (resumed.code, resumed.stderr) == (0, "")
    assert resumed.training_steps == STEPS - kept
    assert store.marker(key).digest == digest
    after = mlflow_runs(home)
    assert after["train_pretext"].info.run_id == runs["train_pretext"].info.run_id
    assert {name: run.info.status for name, run in after.items()} == {"smoke": "FINISHED", "train_pretext": "FINISHED"}
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    losses = client.get_metric_history(after["train_pretext"].info.run_id, "loss/main")
    assert [loss.step for loss in losses] == list(range(1, STEPS + 1))
