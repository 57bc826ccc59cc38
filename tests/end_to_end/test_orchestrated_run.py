"""One `graft run` through Prefect and MLflow: what the user, Prefect's API and MLflow's database see of it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from storage.store import Store
from tests.end_to_end.command import RECIPE, PrefectApi, Result, WarmGraft, environment, graft, keys_of_steps

FORCED = "probe_photographs_student"
DAMAGED = "finetune_photographs_random"
# Two datasets of the recipe are one, so their second index is the first.
EQUAL_TO_ANOTHER = {"index_cluster", "index_photographs_train"}


class Command(NamedTuple):
    """A command that was run, with the flow run that Prefect has of it (and how many it had by then)."""

    result: Result
    num_flow_runs: int
    flow_run: dict[str, Any]
    task_runs: dict[str, dict[str, Any]]
    artifacts: dict[str, dict[str, Any]]
    logs: list[dict[str, Any]]


class Place(NamedTuple):
    """Where the commands of this file run."""

    home: Path
    recipe: Path
    prefect: PrefectApi

    def observe(self, result: Result) -> Command:
        """What Prefect says of the newest flow run of this file."""
        flow_runs = self.prefect.flow_runs(self.recipe.stem)
        flow_run = flow_runs[-1]
        task_runs, artifacts = (self.prefect.of_flow_run(what, flow_run) for what in ("task_runs", "artifacts"))
        return Command(
            result,
            len(flow_runs),
            flow_run,
            {run["name"]: run for run in task_runs},
            {artifact["key"]: artifact for artifact in artifacts},
            self.prefect.of_flow_run("logs", flow_run),
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, prefect: PrefectApi) -> Place:
    folder = tmp_path_factory.mktemp("orchestrated")
    # Flow runs are named for the recipe's file: this name is of this test alone.
    return Place(folder / "home", Path(shutil.copy(RECIPE, folder / "orchestrated.yaml")), prefect)


@pytest.fixture(scope="module")
def env(place: Place) -> dict[str, str]:
    return environment(place.home, prefect_api_url=place.prefect.url)


@pytest.fixture(scope="module")
def first(place: Place, env: dict[str, str]) -> Command:
    """The whole road, run once."""
    return place.observe(graft("run", place.recipe, env=env))


@pytest.fixture(scope="module")
def second(place: Place, env: dict[str, str], first: Command, warm: WarmGraft) -> Command:
    """All is there but for one damaged artifact, and one step is forced."""
    key = keys_of_steps(place.home)[DAMAGED]
    largest = max((place.home / "store" / "artifacts" / key / "0").rglob("*.parquet"))
    largest.write_bytes(largest.read_bytes()[:-1])
    return place.observe(warm("run", place.recipe, "--force", FORCED, env=env))


@pytest.fixture(scope="module")
def failed(place: Place, env: dict[str, str], second: Command, warm: WarmGraft) -> Command:
    """A step that cannot be done."""
    too_many = ("--set", "cluster_features.num_clusters=80")
    return place.observe(warm("run", place.recipe, *too_many, "--only", "cluster_features", env=env))


@pytest.fixture(scope="module")
def mlflow_client(place: Place, first: Command) -> Iterator[MlflowClient]:
    yield MlflowClient(f"sqlite:///{place.home / 'mlflow.db'}")


def pipelines(client: MlflowClient) -> list[Run]:
    """The runs of whole pipelines, oldest first."""
    experiment = client.get_experiment_by_name("smoke")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def children(client: MlflowClient, parent: Run) -> dict[str, Run]:
    """Step -> the run below a pipeline's."""
    tag = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    runs = client.search_runs([parent.info.experiment_id], tag)
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def test_the_result_is_printed(place: Place, first: Command) -> None:
    assert (first.result.code, first.result.stderr) == (0, "")
    steps = list(keys_of_steps(place.home))
    assert sorted([*first.result.computed, *first.result.reused]) == sorted(steps)
    assert set(first.result.reused) == EQUAL_TO_ANOTHER
    assert "accuracy on test images, %" in first.result.stdout
    assert "student (teacher's clusters)" in first.result.stdout
    page = Path(first.result.stdout.rsplit("report: ", 1)[1].strip())
    assert page.is_file() and page.is_relative_to(place.home)


def test_prefect_shows_one_flow_run_with_a_task_run_a_step(place: Place, first: Command) -> None:
    assert (first.num_flow_runs, first.flow_run["state_name"]) == (1, "Completed")
    states = {name: run["state_name"] for name, run in first.task_runs.items()}
    assert states == {
        step: "Reused" if step in EQUAL_TO_ANOTHER else "Completed"
        for step in [*first.result.computed, *first.result.reused]
    }
    assert len(place.prefect.of_flow_run("task_runs", first.flow_run)) == len(states)


def test_prefect_shows_progress_and_results(place: Place, first: Command) -> None:
    trained = first.artifacts["train-pretext-progress"]
    assert (trained["type"], trained["data"]) == ("progress", 100.0)
    assert re.fullmatch(r"train_pretext: 4 of 4 steps, [\d.,]+ steps/s, 0:00:00 left", trained["description"])
    key = keys_of_steps(place.home)["train_pretext"]
    result = first.artifacts["train-pretext-result"]
    assert result["type"] == "markdown"
    assert key in result["data"] and Store(place.home / "store").marker(key).digest in result["data"]
    for step in first.task_runs:
        assert f"{step}-result".replace("_", "-") in first.artifacts


def test_prefect_shows_the_run_s_result_and_the_report_s_pictures(place: Place, first: Command) -> None:
    shown = first.artifacts["pipeline-result"]
    assert shown["type"] == "markdown"
    for score in ("knn", "linear", "finetuned"):
        assert f"photographs: {score}" in shown["data"]
    assert "| student (teacher's clusters) |" in shown["data"] and "not shown" in shown["data"]
    page = first.result.stdout.rsplit("report: ", 1)[1].strip()
    # No server has the report: its place is told.
    assert f"report: `{page}`" in shown["data"]
    for picture in ("scores", "clusters", "montage"):
        kept = (Path(page).parent / f"{picture}.png").read_bytes()
        assert kept.startswith(b"\x89PNG")
        inside = first.artifacts[f"write-report-{picture}"]
        assert inside["type"] == "markdown"
        assert base64.b64encode(kept).decode() in inside["data"]


def test_a_second_run_computes_only_what_was_forced_or_damaged(second: Command) -> None:
    assert second.result.code == 0
    assert (second.num_flow_runs, second.flow_run["state_name"]) == (2, "Completed")
    states = {name: run["state_name"] for name, run in second.task_runs.items()}
    assert {name for name, state in states.items() if state == "Completed"} == {FORCED, DAMAGED}
    assert Counter(states.values()) == {"Completed": 2, "Reused": len(states) - 2}
    assert "reused, nothing was computed" in second.artifacts["train-pretext-result"]["data"]


def test_what_tasks_and_storage_say_reaches_prefect(second: Command) -> None:
    said = {(log["name"], log["task_run_id"]): log["message"] for log in second.logs}
    task_run = second.task_runs[DAMAGED]["id"]
    assert "must have" in said["storage.store", task_run] and "bytes" in said["storage.store", task_run]
    assert "MLflow knows of" in said["tasks.stage", task_run]
    assert "not reused" in second.result.stderr


def test_a_failing_step_is_one_line_for_the_user_and_failed_for_prefect_and_mlflow(
    failed: Command, mlflow_client: MlflowClient
) -> None:
    assert failed.result.code == 1
    assert failed.result.stderr.startswith("error num_clusters must be at most the number of rows, 79, got 80;")
    assert failed.result.stderr.count("\n") == 1
    assert failed.flow_run["state_name"] == "Failed"
    step = failed.task_runs["cluster_features"]
    # Wrong input is not tried again.
    assert (step["state_name"], step["run_count"]) == ("Failed", 1)
    parent = pipelines(mlflow_client)[-1]
    child = children(mlflow_client, parent)["cluster_features"]
    assert (parent.info.status, child.info.status) == ("FAILED", "FAILED")
    assert "num_clusters must be at most" in child.data.tags["graft.error"]


def test_the_doctor_tells_what_is_left_and_what_the_server_lacks(
    env: dict[str, str], failed: Command, warm: WarmGraft
) -> None:
    result = warm("doctor", env=env)
    said = " ".join(result.stdout.split())
    assert (result.code, result.stderr) == (0, "")
    assert "1 steps are begun and left: cluster_features" in said
    assert "there is no work pool graft: nothing runs by schedule graft deploy" in said
    assert "records for MLflow ok nothing waits to be sent" in said


def test_mlflow_has_a_run_a_computed_step_below_one_of_the_pipeline(
    place: Place, first: Command, mlflow_client: MlflowClient
) -> None:
    parent = pipelines(mlflow_client)[0]
    runs = children(mlflow_client, parent)
    assert (parent.info.run_name, parent.info.status) == ("smoke", "FINISHED")
    assert sorted(runs) == sorted(first.result.computed)
    keys = keys_of_steps(place.home)
    for step, run in runs.items():
        assert run.info.status == "FINISHED"
        assert (run.data.tags["graft.key"], run.data.tags["graft.step"]) == (keys[step], step)
        marker = Store(place.home / "store").marker(keys[step])
        assert run.data.tags["graft.digest"] == marker.digest
        assert [dataset.dataset.name for dataset in run.inputs.dataset_inputs] == list(marker.inputs)


def test_mlflow_has_params_curves_and_inputs_of_a_step(place: Place, mlflow_client: MlflowClient) -> None:
    run = children(mlflow_client, pipelines(mlflow_client)[0])["train_student"]
    assert (run.data.params["epochs"], run.data.params["architecture.name"]) == ("2", "alexnet_bn")
    losses = mlflow_client.get_metric_history(run.info.run_id, "loss/main")
    steps = [loss.step for loss in losses]
    assert steps == sorted(set(steps)) and len(steps) > 1
    assert all(run.info.start_time <= loss.timestamp <= run.info.end_time for loss in losses)
    labels = Store(place.home / "store").marker(keys_of_steps(place.home)["assign_labels"])
    given = {item.dataset.name: item.dataset for item in run.inputs.dataset_inputs}
    assert set(given) == {"images", "labels"}
    assert labels.digest.startswith(given["labels"].digest)
    assert labels.key in json.loads(given["labels"].source)["uri"]
    files = {file.path for file in mlflow_client.list_artifacts(run.info.run_id)}
    assert files == {"marker.json", "encoder.json", "weights.safetensors"}


def test_mlflow_tells_what_the_machine_did_during_each_step(mlflow_client: MlflowClient) -> None:
    for run in children(mlflow_client, pipelines(mlflow_client)[0]).values():
        for name in ("cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"):
            samples = mlflow_client.get_metric_history(run.info.run_id, f"system/{name}")
            assert [sample.step for sample in samples] == list(range(1, len(samples) + 1)) and samples
            assert all(0 <= sample.value <= 100 for sample in samples)
            assert all(run.info.start_time <= sample.timestamp <= run.info.end_time for sample in samples)


def test_the_student_is_one_version_of_the_recipe_s_model_although_it_was_reused(
    place: Place, second: Command, mlflow_client: MlflowClient
) -> None:
    assert "train_student" in second.result.reused
    (version,) = mlflow_client.search_model_versions("name = 'smoke'")
    made, again, *_ = pipelines(mlflow_client)
    student = children(mlflow_client, made)["train_student"]
    assert (version.run_id, version.source) == (student.info.run_id, student.info.artifact_uri)
    assert version.tags["graft.key"] == keys_of_steps(place.home)["train_student"]
    assert mlflow_client.get_registered_model("smoke").aliases == {"candidate": version.version}
    assert {run.data.tags["model.smoke.version"] for run in (made, again)} == {str(version.version)}
    there = Path(urlsplit(mlflow_client.get_model_version_download_uri("smoke", version.version)).path)
    assert {path.name for path in there.iterdir()} == {"marker.json", "encoder.json", "weights.safetensors"}


def test_the_pipeline_s_run_has_the_scores_so_that_runs_can_be_compared(
    first: Command, second: Command, mlflow_client: MlflowClient
) -> None:
    encoders, scores = ("teacher", "student", "direct", "random"), ("knn", "linear", "finetuned")
    made, again, *_ = pipelines(mlflow_client)
    assert set(made.data.metrics) == {f"photographs/{score}/{who}" for score in scores for who in encoders}
    assert made.data.metrics == again.data.metrics
    shown = f"{100 * made.data.metrics['photographs/knn/student']:.1f} ("
    assert shown in first.result.stdout


def test_the_pipeline_s_run_names_the_run_of_every_step(
    place: Place, second: Command, mlflow_client: MlflowClient
) -> None:
    made, again, *_ = pipelines(mlflow_client)
    runs = children(mlflow_client, made)
    keys = keys_of_steps(place.home)
    by_key = {run.data.tags["graft.key"]: run.info.run_id for run in runs.values()}
    assert {step: made.data.tags[f"step.{step}.run_id"] for step in keys} == {
        step: by_key[key] for step, key in keys.items()
    }
    anew = children(mlflow_client, again)
    assert set(anew) == {FORCED, DAMAGED}
    assert {step: again.data.tags[f"step.{step}.run_id"] for step in keys} == {
        step: anew[step].info.run_id if step in anew else by_key[key] for step, key in keys.items()
    }


def test_nothing_waits_to_be_sent(place: Place, first: Command, second: Command) -> None:
    assert list((place.home / "pipelines").iterdir()) == []
    # What failed keeps its scratch: it goes on when the command is run again.
    keys = {path.name for path in (place.home / "store" / "work").iterdir()}
    assert keys.isdisjoint(keys_of_steps(place.home).values())
