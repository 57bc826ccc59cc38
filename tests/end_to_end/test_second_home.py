"""A second machine, which sees only the tracking server and the artifacts, runs one step again."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.read_cache import ReadCache
from storage.store import Store
from tests.end_to_end.command import RECIPE, ROAD, PrefectApi, WarmGraft, environment, keys_of_steps, only
from tests.end_to_end.tracking_server import MlflowServer
from tests.object_store import ObjectServer


@pytest.mark.parametrize(("tracking", "place", "forced"), [("sqlite", "folder", False), ("server", "objects", True)])
def test_a_step_is_run_from_what_mlflow_knows(
    tmp_path: Path,
    warm: WarmGraft,
    prefect: PrefectApi,
    mlflow_server: MlflowServer,
    object_server: ObjectServer,
    tracking: str,
    place: str,
    forced: bool,
) -> None:
    if tracking == "server":
        mlflow_server.start()
        uri = mlflow_server.uri
    else:
        (tmp_path / "tracking").mkdir()
        uri = f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}"
    settings = {"tracking_uri": uri, "prefect_api_url": prefect.url}

    where = f"{object_server.new_bucket()}/graft" if place == "objects" else tmp_path / "artifacts"
    first = environment(tmp_path / "first", store=where, **settings) | object_server.variables(door=False)
    made = warm("run", RECIPE, *only(ROAD), env=first)
    assert (made.code, made.stderr) == (0, "")
    keys = keys_of_steps(tmp_path / "first")
    shared = Store(where, cache=ReadCache(tmp_path / "cache", limit_bytes=10**9))
    before = set(shared.complete())
    old = shared.marker(keys["train_student"])
    (tmp_path / "first").rename(tmp_path / "gone")

    env = environment(tmp_path / "second", **settings) | object_server.variables(door=False)
    how = ("--force", "train_student") if forced else ("--set", "train_student.epochs=3")
    again = warm("run", RECIPE, "--only", "train_student", *how, env=env)
    assert (again.code, again.stderr) == (0, "")
    assert (again.computed, again.reused) == (["train_student"], [])
    own = Store(tmp_path / "second" / "store")
    (key,) = own.complete()
    new = own.marker(key)
    assert new.inputs == old.inputs
    assert new.config["epochs"] == (2 if forced else 3)
    # Bytes are equal, wherever they are made.
    assert (new.key, new.digest) == (old.key, old.digest) if forced else new.key != old.key
    assert set(shared.complete()) == before
