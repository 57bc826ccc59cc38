"""Scheduled runs on one machine: real servers, a real worker, deployments that are started through the API."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flows.local_server import free_port
from tests.end_to_end.command import ROAD, WarmGraft, environment, eventually, processes_of
from tests.end_to_end.served import Served, request

# Not the recipe's own, so that it can be told how long it trains.
STEPS = 400


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    serving = Served(folder / "home", prefect_port=free_port(), mlflow_port=free_port(), checkpoint_seconds=1)
    yield serving
    serving.kill_what_is_left()


def test_a_deployment_runs_the_road_and_both_servers_tell_of_it(served: Served) -> None:
    run = served.ended(served.start("knowledge-transfer", "pipeline", request(only=list(ROAD))))
    assert (run["state_type"], run["name"]) == ("COMPLETED", "smoke"), run["state"]["message"]
    tasks = served.prefect.of_flow_run("task_runs", run)
    assert sorted(task["name"] for task in tasks) == sorted(ROAD)
    states = {task["name"]: task["state_name"] for task in tasks}
    # Teacher and student learn from the same images here.
    assert states["index_cluster"] == "Reused" and states["train_student"] == "Completed"
    artifacts = {one["key"]: one for one in served.prefect.of_flow_run("artifacts", run)}
    assert {"train-student-result", "train-student-progress", "train-student-metrics"} <= set(artifacts)
    assert " steps/s, 0:00:00 left" in artifacts["train-student-progress"]["description"]
    runs = {one["name"]: one for one in served.mlflow_runs()}
    assert runs["smoke"]["status"] == runs["train_student"]["status"] == "FINISHED"
    pages = {
        name: f"({served.mlflow}/#/experiments/{one['experiment_id']}/runs/{one['id']}?" for name, one in runs.items()
    }
    summary = artifacts["train-student-result"]["data"]
    assert f"[train_student]{pages['train_student']}" in summary and pages["smoke"] in summary
    # A reused step is linked to the run that made it.
    assert pages["index_pretext"] in artifacts["index-cluster-result"]["data"]
    assert pages["smoke"] in artifacts["pipeline-result"]["data"]
    assert served.metric_steps(runs["train_student"], "system/cpu_utilization_percentage")[0] == 1
    assert served.model("smoke") == {"candidate": runs["train_student"]["id"]}


def test_one_step_runs_alone_and_reuses_all_above_it(served: Served) -> None:
    changed = request(only=["cluster_features"], changes=["cluster_features.num_clusters=4"])
    run = served.ended(served.start("knowledge-transfer", "cluster-features", changed))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert [task["name"] for task in served.prefect.of_flow_run("task_runs", run)] == ["cluster_features"]


def test_a_step_without_its_inputs_says_what_is_missing(served: Served) -> None:
    run = served.ended(
        served.start("knowledge-transfer", "train-student", request(only=["train_student"], changes=["seed=9"]))
    )
    assert run["state_type"] == "FAILED"
    assert "--only train_student needs assign_labels, which must be done and is not" in run["state"]["message"]


def test_a_step_takes_the_input_that_it_is_given(served: Served) -> None:
    labels = next(one for one in served.mlflow_runs() if one["name"] == "assign_labels")
    given = request(only=["train_student"], use={"assign_labels": labels["id"]}, changes=["seed=9"])
    run = served.ended(served.start("knowledge-transfer", "train-student", given))
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    # Another student is another version.
    student = served.newest("train_student")
    assert served.model("smoke") == {"candidate": student["id"]}


def test_the_doctor_finds_all_that_scheduled_runs_need(served: Served, warm: WarmGraft) -> None:
    env = environment(served.home, prefect_api_url=served.prefect.url, tracking_uri=served.mlflow)
    healthy = warm("doctor", env=env)
    assert healthy.code == 0, healthy.stdout
    said = " ".join(healthy.stdout.split())
    assert "version 3" in said and "there is one at the work pool graft" in said
    assert "with their queues and the automation for silent runs" in said
    assert f"{served.mlflow} answers" in said and "nobody from another machine" in said
    secret = served.mlflow.replace("//", "//ann:s3cret@").replace(served.mlflow.rpartition(":")[2], "9")
    ill = warm("doctor", env=environment(served.home, prefect_api_url=f"{secret}/api", tracking_uri=secret))
    assert (ill.code, ill.stdout.count("does not answer")) == (1, 2)
    assert "s3cret" not in ill.stdout + ill.stderr


def test_a_schedule_starts_runs(served: Served) -> None:
    deployment = served.get("deployments/name/verify/verify")
    schedules = [{"schedule": {"interval": 20}, "active": True, "parameters": {"recipe": "smoke"}}]
    made = served.post(f"deployments/{deployment['id']}/schedules", schedules)
    completed = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    eventually(lambda: served.prefect.ask("flow_runs", **completed), what="a scheduled run")
    served.delete(f"deployments/{deployment['id']}/schedules/{made[0]['id']}")


def test_care_runs_beside_the_runs(served: Served) -> None:
    request = {"request": {"days": 0, "delete": False}}
    runs = [
        served.start("collect-garbage", "collect-garbage", request),
        served.start("watch-data", "watch-data", {"recipe": "smoke"}),
    ]
    collected, watched = map(served.ended, runs)
    assert (collected["state_type"], watched["state_type"]) == ("COMPLETED", "COMPLETED")
    (table,) = served.prefect.of_flow_run("artifacts", collected)
    assert table["key"] == "garbage" and "no run of the last 0 days and no pin names it" in table["data"]
    assert not list((served.home / "store" / "artifacts").glob("*/collected.json"))
    automations = {one["name"]: one["enabled"] for one in served.prefect.ask("automations")}
    assert automations["graft runs a recipe when its data changed"] is False


def test_it_stops_cleanly_and_its_run_keeps_a_checkpoint(served: Served) -> None:
    changes = ["seed=4", f"train_pretext.epochs={STEPS}"]
    run = served.start("knowledge-transfer", "pipeline", request(only=list(ROAD), changes=changes))
    eventually(lambda: served.percent(run, "train_pretext") > 5, what="some training")
    assert served.stop() == 128 + signal.SIGTERM
    assert processes_of(served.home) == []
    kept = [work for work in (served.home / "store" / "work").iterdir() if any(work.glob("state/*checkpoint*"))]
    assert len(kept) == 1
