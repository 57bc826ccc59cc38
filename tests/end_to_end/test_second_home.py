"""A second machine, which sees only the tracking server and the artifacts, runs one step again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.store import Store
from tests.end_to_end.command import RECIPE, PrefectApi, WarmGraft, environment
from tests.end_to_end.tracking_server import MlflowServer

ABOVE = (
    "index_pretext",
    "index_cluster",
    "index_student",
    "train_pretext",
    "extract_cluster",
    "cluster_features",
    "extract_student",
    "assign_labels",
)
ONLY_STUDENT = ("--only", "train_student")


@pytest.mark.parametrize("tracking", ["sqlite", "server"])
def test_a_step_is_run_from_what_mlflow_knows(
    tmp_path: Path, warm: WarmGraft, prefect: PrefectApi, mlflow_server: MlflowServer, tracking: str
) -> None:
    if tracking == "server":
        mlflow_server.start()
        uri = mlflow_server.uri
    else:
        (tmp_path / "tracking").mkdir()
        uri = f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}"
    settings = {"tracking_uri": uri, "prefect_api_url": prefect.url}

    first = environment(tmp_path / "first", store=tmp_path / "artifacts", **settings)
    road = [word for step in (*ABOVE, "train_student") for word in ("--only", step)]
    made = warm("run", RECIPE, *road, env=first)
    assert (made.code, made.stderr) == (0, "")
    shared = Store(tmp_path / "artifacts")
    above = set(shared.complete())
    keys = json.loads((tmp_path / "first" / "recipes" / "smoke.json").read_text())
    (tmp_path / "first").rename(tmp_path / "gone")

    second = environment(tmp_path / "second", **settings)
    own = Store(tmp_path / "second" / "store")
    longer = warm("run", RECIPE, *ONLY_STUDENT, "--set", "train_student.epochs=3", env=second)
    assert (longer.code, longer.stderr) == (0, "")
    assert (longer.computed, longer.reused) == (["train_student"], [])
    (key,) = own.complete()
    marker, old = own.marker(key), shared.marker(keys["train_student"])
    assert (marker.config["epochs"], marker.inputs) == (3, old.inputs)

    # Bytes are equal, wherever they are made.
    forced = warm("run", RECIPE, *ONLY_STUDENT, "--force", "train_student", env=second)
    assert (forced.code, forced.computed) == (0, ["train_student"])
    assert set(own.complete()) == {key, keys["train_student"]}
    assert own.marker(keys["train_student"]).digest == old.digest
    assert set(shared.complete()) == above
