"""The services of docker/compose.yaml as real processes: Postgres, Redis, both servers, an object store."""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest

from tests.docker.composition import KEYS, SECRETS
from tests.docker.processes import Stack
from tests.end_to_end.command import RECIPE, eventually

PREFECT_USER = "graft"
MLFLOW_USER = "graft"


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: str

    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, *, user: str | None = None, host: str | None = None, **body: Any) -> Answer:
    """Post JSON, as `name:password` when that is given, by another name of the server when that is."""
    headers = {"Content-Type": "application/json"}
    if user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    if host is not None:
        headers["Host"] = host
    request = urllib.request.Request(url, data=json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return Answer(response.status, response.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.read().decode())


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All services but the worker, with secrets that nobody knew before."""
    values = {name: secrets.token_urlsafe(24) for name in (*SECRETS, *KEYS)}
    values["PREFECT_AUTH_STRING"] = f"{PREFECT_USER}:{values['PREFECT_AUTH_STRING']}"
    stack = Stack(values | {"GRAFT_VARIANT": "cpu", "DATA_FOLDER": "/nowhere"})
    try:
        stack.up("prefect-services", "mlflow")
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module")
def prefect(stack: Stack) -> str:
    return stack.environment("worker")["GRAFT_PREFECT_API_URL"]


@pytest.fixture(scope="module")
def mlflow(stack: Stack) -> str:
    return stack.environment("worker")["GRAFT_TRACKING_URI"]


@pytest.fixture(scope="module")
def run(stack: Stack) -> Path:
    """The smallest recipe, run with the environment of the worker; gives the log."""
    process = stack.start("run", ["graft", "run", str(RECIPE)], service="worker")
    assert process.popen.wait(timeout=600) == 0, process.log.read_text()
    return process.log


def test_prefect_refuses_strangers(stack: Stack, prefect: str) -> None:
    url = f"{prefect}/flow_runs/filter"
    assert ask(url).status == 401
    assert ask(url, user=f"{PREFECT_USER}:guess").status == 401
    assert ask(url, user=stack.values["PREFECT_AUTH_STRING"]).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/experiments/search",
        "/ajax-api/2.0/mlflow/experiments/search",
        "/api/2.0/mlflow/runs/search",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/graphql",
        "/",
    ],
)
def test_mlflow_refuses_strangers(mlflow: str, path: str) -> None:
    assert ask(mlflow + path, max_results=1).status == 401
    assert ask(mlflow + path, user=f"{MLFLOW_USER}:guess", max_results=1).status == 401


def test_mlflow_accepts_its_user_by_its_own_names_alone(stack: Stack, mlflow: str) -> None:
    url, user = f"{mlflow}/api/2.0/mlflow/experiments/search", f"{MLFLOW_USER}:{stack.values['MLFLOW_PASSWORD']}"
    assert ask(url, user=user, max_results=1).status == 200
    assert ask(url, user=user, max_results=1, host="elsewhere.example").status == 403


def test_postgres_refuses_a_wrong_password(stack: Stack) -> None:
    command = ["psql", "--host=127.0.0.1", f"--port={stack.ports['postgres']}", "--username=graft", "--dbname=prefect"]
    environment = stack.environment("mlflow")
    for password, code in ((environment["PGPASSWORD"], 0), ("guess", 2)):
        done = subprocess.run(
            [*command, "--no-password", "--command=SELECT 1"],
            env=environment | {"PGPASSWORD": password},
            capture_output=True,
            check=False,
        )
        assert done.returncode == code


def test_a_run_is_recorded_by_both_servers(stack: Stack, prefect: str, mlflow: str, run: Path) -> None:
    user = stack.values["PREFECT_AUTH_STRING"]
    (flow_run,) = ask(f"{prefect}/flow_runs/filter", user=user).json()
    assert flow_run["state"]["type"] == "COMPLETED"
    # Said by the API server, heard by the background services, kept by them in Postgres.
    resource = {
        "resource": {"id": [f"prefect.flow-run.{flow_run['id']}"]},
        "event": {"name": ["prefect.flow-run.Completed"]},
    }
    eventually(
        lambda: ask(f"{prefect}/events/filter", user=user, filter=resource).json()["events"],
        what="the event of the flow run's end",
    )
    user = f"{MLFLOW_USER}:{stack.values['MLFLOW_PASSWORD']}"
    experiments = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", user=user, max_results=10).json()["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]
    runs = ask(f"{mlflow}/api/2.0/mlflow/runs/search", user=user, experiment_ids=ids, max_results=100).json()["runs"]
    assert len(runs) > 1
    assert {recorded["info"]["status"] for recorded in runs} == {"FINISHED"}


def test_what_mlflow_keeps_lies_in_the_object_store(stack: Stack, run: Path) -> None:
    keys = {name.lower(): value for name, value in stack.environment("mlflow").items() if name.startswith("AWS_")}
    store = boto3.client(
        "s3",
        endpoint_url=keys["aws_endpoint_url"],
        region_name=keys["aws_default_region"],
        aws_access_key_id=keys["aws_access_key_id"],
        aws_secret_access_key=keys["aws_secret_access_key"],
    )
    assert store.list_objects_v2(Bucket="mlflow")["KeyCount"] > 0


def test_no_secret_is_told(stack: Stack, prefect: str, mlflow: str, run: Path) -> None:
    """Not by a log, not by Prefect or MLflow to one who may ask, not by a command line that every user can see."""
    hidden = [stack.values[name].rsplit(":", 1)[-1] for name in (*SECRETS, *KEYS)]
    user = stack.values["PREFECT_AUTH_STRING"]
    told = [stack.logs()]
    told += [
        ask(f"{prefect}/{what}/filter", user=user).body for what in ("flow_runs", "task_runs", "logs", "artifacts")
    ]
    user = f"{MLFLOW_USER}:{stack.values['MLFLOW_PASSWORD']}"
    experiments = [str(number) for number in range(5)]
    url = f"{mlflow}/api/2.0/mlflow/runs/search"
    told.append(ask(url, user=user, experiment_ids=experiments, max_results=1000).body)
    for process in stack.processes.values():
        command = Path(f"/proc/{process.popen.pid}/cmdline")
        told.append(command.read_text() if command.exists() else "")
    for text in told:
        assert not [secret for secret in hidden if secret in text]
