"""The stage engine on an object store: another machine with an empty disk goes on from the bucket alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from pydantic import BaseModel

from storage import bucket as bucket_module
from storage.errors import CorruptFile, StoreAway
from storage.folder import Folder
from storage.store import Store
from storage.tracking import Tracking
from tasks.recording import MlflowRecord, MlflowRecorder
from tasks.runtime import Runtime
from tasks.stage import Context, Work, run_stage, stage
from tests.object_store import ObjectServer, Request


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    return f"{object_server.new_bucket()}/graft"


class CountConfig(BaseModel, frozen=True, extra="forbid"):
    steps: int = 4


class Machine:
    """A machine: a disk of its own, and a shop that works on the bucket."""

    def __init__(self, shop, folder: Path, bucket: str) -> None:
        self.shop = type(shop)(folder)
        self.context = self.shop.context(store=bucket)

    def write(self, **settings):
        return self.shop.write(context=self.context, **settings)


@pytest.fixture
def machine(shop, bucket: str, tmp_path: Path):
    return lambda name: Machine(shop, tmp_path / name, bucket)


def test_another_machine_goes_on_with_what_is_missing(shop, machine) -> None:
    expected = shop.write().artifact
    first = machine("first")
    first.shop.stop_at("write/2", written=True)
    with pytest.raises(KeyboardInterrupt):
        first.write()
    assert first.shop.done == ["write/0", "write/1"]
    second = machine("second")
    made = second.write()
    # Unit 2 was written and not committed.
    assert second.shop.done == ["write/2", "write/3"]
    assert (made.artifact.key, made.artifact.digest) == (expected.key, expected.digest)
    assert made.artifact.marker.files == expected.marker.files
    third = machine("third")
    again = third.write()
    assert again.reused and third.shop.done == [] and again.artifact.read() == expected.read()
    assert third.context.store.begun() == []


def test_the_artifact_of_before_stays_until_the_new_one_is_there(machine) -> None:
    first, second = machine("first"), machine("second")
    old = first.write().artifact
    second.shop.stop_at("write/3")
    with pytest.raises(KeyboardInterrupt):
        second.write(force=True)
    assert first.write().reused and old.read() == ["a0", "a1", "a2", "a3"]
    second.shop.go_on()
    new = second.write(force=True).artifact
    assert second.shop.done == ["write/3"] and new.digest == old.digest and str(new.folder) != str(old.folder)
    old.verify(deep=True)


def test_work_of_which_a_part_was_dropped_is_not_taken_for_that_of_the_next_attempt(machine) -> None:
    """Killed right after its marker, while it dropped its scratch: some of the ledger is still there."""
    first, second = machine("first"), machine("second")
    store = first.context.store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "drop_work", lambda self, key: None)
        key = first.write().artifact.key
    store.work_folder(key).remove("state/ledger/0.json")
    assert len(list(store.work_folder(key).files())) > 1
    assert second.write(force=True).artifact.read() == ["a0", "a1", "a2", "a3"]
    assert second.shop.done == list(second.shop.units) and store.begun() == []


def test_an_input_that_was_changed_in_the_bucket_is_named_before_it_is_used(machine) -> None:
    first = machine("first")
    rows = first.write().artifact
    Folder(rows.folder.place).write("1.txt", b"A1")
    with pytest.raises(CorruptFile, match=r"s3://.*/1\.txt of .*differs from what was written.*--force"):
        first.shop.spell(rows, context=first.context)


def test_a_store_that_is_away_for_a_while_costs_nothing(machine, object_server: ObjectServer) -> None:
    first = machine("first")
    refused: list[Request] = []

    def away(request: Request) -> int | None:
        refused.append(request)
        return 503

    def go(unit: str) -> None:
        object_server.answer = lambda request: None

    def leave(unit: str) -> None:
        if unit == "write/1":
            object_server.answer = lambda request: away(request) if len(refused) < 3 else None

    first.shop.before = leave
    first.shop.between = go
    made = first.write()
    assert len(refused) == 3 and first.shop.done == list(first.shop.units)
    made.artifact.verify(deep=True)


def test_what_was_committed_is_kept_when_the_store_stays_away(
    machine, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = machine("first"), machine("second")

    def leave(unit: str) -> None:
        if unit == "write/2":
            # The lease is given back, as it would run out when the process ends.
            object_server.answer = lambda request: None if "/leases/" in request.path else 500

    first.shop.before = leave
    # Not for minutes, in a test.
    patiently = bucket_module.patiently
    monkeypatch.setattr(
        bucket_module, "patiently", lambda call, *, seconds, whom: patiently(call, seconds=0.5, whom=whom)
    )
    with pytest.raises(StoreAway, match="run the same command again"):
        first.write()
    object_server.answer = lambda request: None
    assert second.write().artifact.read() == ["a0", "a1", "a2", "a3"]
    assert second.shop.done == ["write/2", "write/3"]


def test_metrics_of_a_checkpoint_reach_mlflow_once_though_the_machine_is_gone(
    shop, bucket: str, tmp_path: Path
) -> None:
    stop = [True]

    @stage(produces=shop.kind, version=1)
    def count(config: CountConfig, work: Work) -> None:
        begun = (work.load() or {"step": 0})["step"]
        for step in range(begun + 1, config.steps + 1):
            work.log({"loss": 1.0 / step}, step=step)
            work.save({"step": step})
            if stop and step == 2:
                work.log({"loss": 9.0}, step=3)
                raise KeyboardInterrupt
        work.data.write("0.txt", b"done")

    def context(name: str, database: Path) -> Context:
        runtime = Runtime(home=tmp_path / name, store=bucket, device="cpu")
        tracking = Tracking(
            f"sqlite:///{database}", artifact_location=str(tmp_path / "files"), init_lock=tmp_path / "lock"
        )
        recorder = MlflowRecorder(tracking, experiment="e", pipelines=Folder(tmp_path / name / "pipelines"))
        return Context(runtime, Store(runtime.store_root, cache=runtime.read_cache), recorder, shop.context().reporter)

    nowhere = tmp_path / "a file"
    nowhere.write_text("no folder")
    config = CountConfig()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # Who is killed says nothing of its end.
        patch.setattr(MlflowRecord, "stopped", lambda self, error: None)
        run_stage(count, config, inputs={}, context=context("first", nowhere / "mlflow.db"))
    stop.clear()
    second = context("second", tmp_path / "mlflow.db")
    second.recorder.settle(second.store)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")

    def history() -> list[tuple[int, float]]:
        (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
        return [(row.step, row.value) for row in client.get_metric_history(run.info.run_id, "loss")]

    assert history() == [(1, 1.0), (2, 0.5)]
    run_stage(count, config, inputs={}, context=second)
    third = context("third", tmp_path / "mlflow.db")
    third.recorder.settle(third.store)
    assert history() == [(step, 1.0 / step) for step in range(1, 5)]
    assert third.store.begun() == []
