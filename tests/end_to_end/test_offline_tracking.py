"""While MLflow is away the work goes on; the next run delivers what was noted, once."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from storage.store import Store
from tests.end_to_end.command import RECIPE, PrefectApi, WarmGraft, environment, only
from tests.end_to_end.tracking_server import MlflowServer

STEPS = ("index_pretext", "index_cluster", "train_pretext", "extract_cluster", "cluster_features")


def runs_by_name(client: MlflowClient) -> dict[str, list[Run]]:
    """All runs that MLflow has, of every experiment."""
    found: dict[str, list[Run]] = {}
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(experiments):
        found.setdefault(run.info.run_name, []).append(run)
    return found


def waiting(home: Path) -> list[Path]:
    """Folders with something to send: of pipelines, and of steps."""
    return [path for folder in ("pipelines", "store/work") for path in (home / folder).iterdir()]


def test_what_an_outage_kept_back_is_delivered_once(
    tmp_path: Path, warm: WarmGraft, prefect: PrefectApi, mlflow_server: MlflowServer
) -> None:
    home = tmp_path / "home"
    env = environment(home, prefect_api_url=prefect.url, tracking_uri=mlflow_server.uri, checkpoint_seconds=0)
    mlflow_server.stop()
    # Flow runs are named for the recipe's file: this name is of this test alone.
    recipe = shutil.copy(RECIPE, tmp_path / "offline.yaml")

    offline = warm("run", recipe, *only(STEPS), env=env)
    assert offline.code == 0, offline.stderr
    assert sorted([*offline.computed, *offline.reused]) == sorted(STEPS)
    assert f"MLflow at {mlflow_server.uri} must take what is sent" in offline.stderr
    assert "are sent by" in offline.stderr
    assert "Traceback" not in offline.stderr and "UserWarning" not in offline.stderr
    (flow_run,) = prefect.flow_runs("offline")
    assert "storage.courier" in {log["name"] for log in prefect.of_flow_run("logs", flow_run)}
    # One pipeline, and every step but the index that two datasets share.
    assert len(waiting(home)) == 1 + len(STEPS) - 1

    still_away = warm("run", recipe, *only(STEPS), env=env)
    assert (still_away.code, still_away.computed) == (0, [])
    assert len(waiting(home)) == len(STEPS)

    mlflow_server.start()
    # Nothing is to be computed: it delivers all the same.
    delivered = warm("run", recipe, *only(STEPS), env=env)
    assert (delivered.code, delivered.stderr) == (0, "")
    assert (delivered.computed, delivered.reused) == ([], [])
    assert waiting(home) == []

    client = MlflowClient(mlflow_server.uri)
    runs = runs_by_name(client)
    assert {name: [run.info.status for run in found] for name, found in runs.items()} == {
        name: ["FINISHED"] for name in ("smoke", *STEPS) if name != "index_cluster"
    }
    (parent,), (training,) = runs["smoke"], runs["train_pretext"]
    assert training.data.tags["mlflow.parentRunId"] == parent.info.run_id
    made = {step: runs["index_pretext" if step == "index_cluster" else step][0].info.run_id for step in STEPS}
    assert {step: parent.data.tags[f"step.{step}.run_id"] for step in STEPS} == made
    marker = Store(home / "store").marker(training.data.tags["graft.key"])
    assert training.data.tags["graft.digest"] == marker.digest
    losses = client.get_metric_history(training.info.run_id, "loss/main")
    assert [loss.step for loss in losses] == [1, 2, 3, 4]
    # Measured when they were, not when they were sent.
    assert all(training.info.start_time <= loss.timestamp <= training.info.end_time for loss in losses)

    again = warm("run", recipe, *only(STEPS), env=env)
    assert again.code == 0
    assert {name: len(found) for name, found in runs_by_name(client).items()} == dict.fromkeys(runs, 1)
