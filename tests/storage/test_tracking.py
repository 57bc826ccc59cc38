"""Tracking with a real SQLite store and a real server: what MLflow holds in the end, whatever came before."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import pytest

from storage.folder import Folder
from storage.outbox import Outbox, RunInput
from storage.tracking import KEY_TAG, URI_TAG, Found, Tracking

ROOT = Path(__file__).parents[2]


def test_a_run_arrives_whole(desk: Any, tracking: Tracking, tmp_path: Path) -> None:
    picture = tmp_path / "curve.txt"
    picture.write_text("curve")
    params = {f"p{number}": str(number) for number in range(230)} | {"long": "x" * 7_000, "empty": ""}
    item = RunInput(name="places", digest="d" * 64, uri="file:///data/places", context="training")
    outbox = desk.open(params=params, tags={KEY_TAG: "k1"}, inputs=[item])
    desk.log_steps(outbox, *range(3))
    outbox.log({f"m{number}": float(number) for number in range(2_300)}, step=7)
    outbox.finish("FINISHED", tags={URI_TAG: "file:///a"}, files={"report/index.txt": str(picture)})

    assert tracking.deliver(outbox)

    run = desk.run_of(tracking, outbox)
    end = outbox.end()
    assert end is not None
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1_000, end.end_time)
    assert run.info.run_name == "train"
    assert {name: run.data.params[name] for name in params if name != "long"} == {
        name: value for name, value in params.items() if name != "long"
    }
    assert "sha256:" in run.data.params["long"]
    assert run.data.tags[KEY_TAG] == "k1" and run.data.tags[URI_TAG] == "file:///a"
    desk.assert_each_row_once(tracking, outbox, steps=[0, 1, 2])
    assert len(run.data.metrics) == 2_302
    known = desk.client(tracking)
    assert [file.path for file in known.list_artifacts(run.info.run_id, "report")] == ["report/index.txt"]
    by_digest = known.search_runs([run.info.experiment_id], f"dataset.digest = '{'d' * 36}'")
    assert run.info.run_id in [found.info.run_id for found in by_digest]
    experiment = known.get_experiment_by_name("graft")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_delivering_again_changes_nothing(desk: Any, tracking: Tracking) -> None:
    item = RunInput(name="places", digest="e" * 64, uri="file:///data/places", context="training")
    outbox = desk.open(params={"lr": "0.1"}, inputs=[item])
    desk.log_steps(outbox, *range(5))
    outbox.sample({"system/cpu_utilization_percentage": 50.0})
    assert tracking.deliver(outbox)
    outbox.sample({"system/cpu_utilization_percentage": 60.0})
    outbox.finish("FINISHED", tags={"a": "1"})
    assert tracking.deliver(outbox)
    before = str(desk.run_of(tracking, outbox).to_dictionary())
    # The worst case: all is sent, and a kill came before any receipt was written.
    shutil.rmtree(outbox.folder.path / "delivered")
    assert tracking.deliver(outbox)
    assert str(desk.run_of(tracking, outbox).to_dictionary()) == before
    desk.assert_each_row_once(tracking, outbox, steps=[0, 1, 2, 3, 4])
    run_id = desk.run_of(tracking, outbox).info.run_id
    samples = desk.client(tracking).get_metric_history(run_id, "system/cpu_utilization_percentage")
    assert [(sample.step, sample.value) for sample in samples] == [(1, 50.0), (2, 60.0)]


def test_what_is_sent_is_not_sent_again(desk: Any, sqlite: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, 0)
    assert sqlite.deliver(outbox)
    monkeypatch.setattr(sqlite, "_client", lambda: pytest.fail("nothing is left to send"))
    assert sqlite.deliver(outbox)


def test_a_kill_between_making_the_run_and_keeping_its_id_makes_no_second_run(
    desk: Any, tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, 0)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(tracking.receipts, "keep", die)
        with pytest.raises(KeyboardInterrupt):
            tracking.deliver(outbox)
    desk.run_of(tracking, outbox)
    assert tracking.receipts.read(outbox) is None
    assert tracking.deliver(outbox)
    desk.assert_each_row_once(tracking, outbox, steps=[0])


def test_a_resume_goes_on_in_the_same_run(desk: Any, tracking: Tracking) -> None:
    first = desk.open()
    desk.log_steps(first, 0, 1)
    first.log({"loss": 9.0}, step=2)
    checkpoint = 2
    first.commit()
    first.finish("KILLED")
    assert tracking.deliver(first)
    killed = desk.run_of(tracking, first)
    assert killed.info.status == "KILLED"

    again = desk.open()
    again.truncate(checkpoint)
    assert tracking.deliver(again)
    assert desk.run_of(tracking, first).info.status == "RUNNING"
    desk.log_steps(again, 2, 3)
    again.finish("FINISHED")
    assert tracking.deliver(again)

    run = desk.run_of(tracking, first)
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "FINISHED")
    end = again.end()
    assert end is not None and run.info.end_time == end.end_time
    desk.assert_each_row_once(tracking, again, steps=[0, 1, 2, 3])


def test_another_mlflow_gets_the_whole_run_too(desk: Any, sqlite: Tracking, server: Any) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, 0, 1)
    for tracking in (sqlite, server.tracking):
        assert tracking.deliver(outbox)
        desk.assert_each_row_once(tracking, outbox, steps=[0, 1])


def test_a_database_made_anew_gets_the_whole_run_again(desk: Any, sqlite: Tracking, server: Any) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, 0, 1)
    assert sqlite.deliver(outbox)
    before = sqlite.receipts.read(outbox)
    assert before is not None
    # To the server, its receipt speaks of a run that it has not.
    anew = server.tracking
    anew.receipts.keep(outbox, before)
    desk.log_steps(outbox, 2)
    assert anew.deliver(outbox)
    desk.assert_each_row_once(anew, outbox, steps=[0, 1, 2])


def test_a_child_is_linked_with_its_parent(desk: Any, tracking: Tracking) -> None:
    parent = desk.open("pipeline", uid="p" + uuid.uuid4().hex)
    record = parent.record()
    assert record is not None
    child = desk.open("cluster", parent=record.uid)
    assert not tracking.deliver(child)
    assert tracking.deliver(child, parent=parent)
    of_parent, of_child = desk.run_of(tracking, parent), desk.run_of(tracking, child)
    assert of_child.data.tags["mlflow.parentRunId"] == of_parent.info.run_id
    assert of_parent.data.tags["step.cluster.run_id"] == of_child.info.run_id


def test_a_resumed_step_is_listed_by_both_pipelines(desk: Any, sqlite: Tracking) -> None:
    first, second = (desk.open(name) for name in ("first", "second"))
    record = first.record()
    assert record is not None
    child = desk.open("cluster", parent=record.uid)
    assert sqlite.deliver(child, parent=first)
    assert sqlite.deliver(child, parent=second)
    run = desk.run_of(sqlite, child)
    assert run.data.tags["mlflow.parentRunId"] == desk.run_of(sqlite, first).info.run_id
    for pipeline in (first, second):
        assert desk.run_of(sqlite, pipeline).data.tags["step.cluster.run_id"] == run.info.run_id


def test_a_reused_step_is_marked_once_its_run_is_known(desk: Any, sqlite: Tracking) -> None:
    key = uuid.uuid4().hex
    parent = desk.open("pipeline")
    parent.mark_step("cluster", key=key)
    assert sqlite.deliver(parent)
    assert "step.cluster.run_id" not in desk.run_of(sqlite, parent).data.tags
    made = desk.open("cluster", tags={KEY_TAG: key})
    made.finish("FINISHED")
    assert sqlite.deliver(made)
    parent.finish("FINISHED")
    assert sqlite.deliver(parent)
    assert desk.run_of(sqlite, parent).data.tags["step.cluster.run_id"] == desk.run_of(sqlite, made).info.run_id


def finished_encoder(desk: Any, tracking: Tracking, folder: Path, *, key: str) -> Any:
    """The run of a step that made an encoder, delivered."""
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"weights")
    made = desk.open(f"student-{key}", tags={KEY_TAG: key})
    made.finish("FINISHED", files={weights.name: str(weights)})
    assert tracking.deliver(made)
    return desk.run_of(tracking, made)


def test_an_encoder_becomes_one_version_of_a_model_however_often_it_is_said(
    desk: Any, tracking: Tracking, tmp_path: Path
) -> None:
    client, model = desk.client(tracking), f"recipe {uuid.uuid4().hex}"
    runs = {}
    for number in (1, 2, 1):
        pipeline = desk.open(f"pipeline-{uuid.uuid4().hex}")
        pipeline.mark_model(model, key=f"{model} {number}")
        # Not before its run is here.
        assert tracking.deliver(pipeline)
        if number not in runs:
            assert f"model.{model}.version" not in desk.run_of(tracking, pipeline).data.tags
            runs[number] = finished_encoder(desk, tracking, tmp_path, key=f"{model} {number}")
        pipeline.finish("FINISHED")
        assert tracking.deliver(pipeline)
        shutil.rmtree(pipeline.folder.path / "delivered")
        assert tracking.deliver(pipeline)
        assert desk.run_of(tracking, pipeline).data.tags[f"model.{model}.version"] == str(number)
    versions = {int(one.version): one for one in client.search_model_versions(f"name = '{model}'")}
    assert {version: one.run_id for version, one in versions.items()} == {
        number: run.info.run_id for number, run in runs.items()
    }
    assert versions[1].tags[KEY_TAG] == f"{model} 1"
    # The newest one; a champion is for people to name.
    assert int(client.get_registered_model(model).aliases["candidate"]) == 2
    files = client.list_artifacts(versions[1].run_id)
    assert [file.path for file in files] == ["weights.safetensors"]
    assert versions[1].source == runs[1].info.artifact_uri


def test_a_kill_before_a_version_has_its_alias(
    desk: Any, sqlite: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    finished_encoder(desk, sqlite, tmp_path, key="aliasless")
    pipeline = desk.open("pipeline")
    pipeline.mark_model("aliasless", key="aliasless")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            sqlite.deliver(pipeline)
    assert sqlite.deliver(pipeline)
    client = desk.client(sqlite)
    assert int(client.get_registered_model("aliasless").aliases["candidate"]) == 1
    assert len(client.search_model_versions("name = 'aliasless'")) == 1


def test_a_browser_finds_a_run_and_its_files(desk: Any, server: Any, sqlite: Tracking, tmp_path: Path) -> None:
    picture = tmp_path / "a picture.png"
    picture.write_bytes(b"pixels")
    outbox = desk.open(tags={KEY_TAG: "seen"})
    outbox.finish("FINISHED", files={picture.name: str(picture)})
    assert server.tracking.page_of(outbox) is None
    for tracking in (server.tracking, sqlite):
        assert tracking.deliver(outbox)
    page = server.tracking.page_of(outbox)
    assert page == server.tracking.page_of_key("seen")
    run = desk.run_of(server.tracking, outbox)
    place = f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert page.url.partition("?")[0] == place
    assert page.file_page("a picture.png").partition("?")[0] == f"{place}/artifacts/a%20picture.png"
    with urllib.request.urlopen(page.file_url("a picture.png")) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"pixels", "image/png")
    assert server.tracking.page_of_key("no such key") is None
    # A database is no server.
    assert sqlite.page_of(outbox) is None and sqlite.page_of_key("seen") is None
    elsewhere = Tracking(
        server.uri, artifact_location=None, init_lock=tmp_path, browser_uri="https://ann:s3cret@mlflow.example/base/"
    )
    assert elsewhere.page_of(outbox).url.startswith("https://mlflow.example/base/#/experiments/")


def test_find_gives_finished_runs_newest_first(desk: Any, tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    key = uuid.uuid4().hex
    ends = [("old", "FINISHED", 10), ("new", "FINISHED", 30), ("mid", "FINISHED", 20), ("bad", "FAILED", 50)]
    ids = {}
    for name, status, now in [*ends, ("open", None, 0)]:
        outbox = desk.open(name, tags={KEY_TAG: key, URI_TAG: f"file:///{name}"})
        monkeypatch.setattr("storage.outbox.now_ms", lambda now=now: now)
        if status is not None:
            outbox.finish(status)
        assert tracking.deliver(outbox)
        ids[name] = desk.run_of(tracking, outbox).info.run_id
    # Experiments do not hide runs from one another.
    other = desk.open("other", experiment="other", tags={KEY_TAG: key, URI_TAG: "file:///other"})
    monkeypatch.setattr("storage.outbox.now_ms", lambda: 5)
    other.finish("FINISHED")
    assert tracking.deliver(other)
    found = tracking.find(key)
    assert found[0] == Found(ids["new"], "file:///new")
    assert [one.uri for one in found] == [f"file:///{name}" for name in ("new", "mid", "old", "other")]


def test_to_find_nothing_opens_no_database(fresh: Tracking, tmp_path: Path) -> None:
    assert fresh.find("k") == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_does_not_hold_up_the_run(
    desk: Any, sqlite: Tracking, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = desk.open()
    outbox.finish("FINISHED", files={"marker.json": str(tmp_path / "missing.json")})
    assert sqlite.deliver(outbox)
    assert desk.run_of(sqlite, outbox).info.status == "FINISHED"
    assert "missing.json is not sent" in caplog.text


def test_files_lie_beside_a_database_and_not_where_the_command_runs(desk: Any, sqlite: Tracking) -> None:
    home = Path(sqlite.uri.removeprefix("sqlite:///")).parent
    outbox = desk.open(experiment="beside")
    assert Tracking(sqlite.uri, artifact_location=None, init_lock=home / "lock").deliver(outbox)
    assert desk.run_of(sqlite, outbox).info.artifact_uri.startswith(str(home / "mlflow-artifacts"))


def test_two_senders_at_once_make_one_run(desk: Any, sqlite: Tracking) -> None:
    outbox = desk.open()
    desk.log_steps(outbox, *range(3))
    threads = [threading.Thread(target=sqlite.deliver, args=[Outbox(outbox.folder)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.assert_each_row_once(sqlite, outbox, steps=[0, 1, 2])


INITIALISE = """
import sys
from pathlib import Path
from storage.folder import Folder
from storage.outbox import Outbox, RunRecord
from storage.tracking import Tracking
home, name = Path(sys.argv[1]), sys.argv[2]
outbox = Outbox(Folder(home / name))
outbox.open(RunRecord(uid=name, name=name, experiment="graft", start_time=1))
tracking = Tracking(f"sqlite:///{home}/db/mlflow.db", artifact_location=None, init_lock=home / "mlflow.lock")
assert tracking.deliver(outbox)
"""


def test_two_processes_begin_a_fresh_database_at_once_and_in_silence(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", INITIALISE, str(tmp_path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
        for name in ("a", "b")
    ]
    outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert outputs == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]


def test_a_kill_while_the_database_is_made_leaves_none(
    desk: Any, fresh: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Folder.write

    def die_at_the_database(folder: Folder, name: str, data: bytes) -> Any:
        if name == "mlflow.db":
            raise KeyboardInterrupt
        return write(folder, name, data)

    outbox = desk.open()
    with monkeypatch.context() as killed:
        killed.setattr(Folder, "write", die_at_the_database)
        with pytest.raises(KeyboardInterrupt):
            fresh.deliver(outbox)
    assert not (tmp_path / "home" / "mlflow.db").exists()
    assert fresh.deliver(outbox)


def test_importing_the_door_imports_no_mlflow() -> None:
    code = "import sys, storage.courier; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
