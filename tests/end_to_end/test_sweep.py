"""`graft sweep` as its users run it: one combination that is there already, and one that cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

from mlflow import MlflowClient

from tests.end_to_end.command import RECIPE, PrefectApi, WarmGraft, environment

SET = ("--set", "cluster_features.num_clusters=5,80")


def test_one_that_fails_does_not_stop_the_others(home: Path, prefect: PrefectApi, warm: WarmGraft) -> None:
    # Flow runs are named for the recipe's file: this name is of this test alone.
    recipe = shutil.copy(RECIPE, home / "sweepable.yaml")
    env = environment(home, prefect_api_url=prefect.url)
    planned = warm("sweep", recipe, *SET, "--dry-run", env=env)
    assert planned.code == 0 and "2 runs of 56 steps: " in planned.stdout
    assert not prefect.flow_runs("sweep sweepable")

    swept = warm("sweep", recipe, *SET[:1], "cluster_features.num_clusters=80,5", env=env)
    assert swept.code == 1
    assert "1 of 2 combinations failed; cluster_features.num_clusters=80: num_clusters must be" in swept.stderr
    rows = [line.split() for line in swept.stdout.splitlines()]
    assert ["80", "failed"] in rows
    assert any(row[:3] == ["5", "student", "(teacher's"] and "to" in row for row in rows)

    (whole,) = prefect.flow_runs("sweep sweepable")
    parts = prefect.flow_runs("sweepable")
    assert (whole["state_name"], [part["state_name"] for part in parts]) == ("Failed", ["Failed", "Completed"])
    (table,) = [one for one in prefect.of_flow_run("artifacts", whole) if one["key"] == "sweep"]
    assert "student (teacher's clusters)" in table["data"] and "failed" in table["data"]

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`graft.sweep` LIKE 'sweepable-%'")
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    assert len({run.data.tags["graft.sweep"] for run in runs}) == 1
