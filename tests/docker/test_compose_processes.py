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
from tests.end_to_end.command import ROAD, SCRIPT, eventually, only


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
    """Both servers and all below them, with secrets that nobody knew before."""
    values = {name: secrets.token_urlsafe(24) for name in (*SECRETS, *KEYS)}
    values |= {"PREFECT_AUTH_STRING": f"graft:{values['PREFECT_AUTH_STRING']}"}
    values |= {"GRAFT_VARIANT": "cpu", "DATA_FOLDER": "/nowhere"}
    # The machine of a test has other things to do.
    stack = Stack(values, worker_settings={"GRAFT_WORKERS": "0", "OMP_NUM_THREADS": "1"})
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
def flow_run(stack: Stack, prefect: str) -> dict[str, Any]:
    """The smallest recipe, asked for through the API and run by the worker."""
    stack.up("worker")
    created = create_flow_run(stack, prefect, state={"type": "SCHEDULED"})
    return ended(stack, prefect, {"id": {"any_": [created["id"]]}})


def create_flow_run(stack: Stack, prefect: str, **how: Any) -> dict[str, Any]:
    """Ask for a run of the smallest recipe."""
    user = stack.values["PREFECT_AUTH_STRING"]
    (deployment,) = ask(f"{prefect}/deployments/filter", user=user, deployments={"name": {"any_": ["pipeline"]}}).json()
    parameters = {"request": {"recipe": "smoke"}}
    url = f"{prefect}/deployments/{deployment['id']}/create_flow_run"
    created: dict[str, Any] = ask(url, user=user, parameters=parameters, **how).json()
    return created


def ended(stack: Stack, prefect: str, criteria: dict[str, Any]) -> dict[str, Any]:
    """Wait for the end of the one flow run that meets some criteria."""
    user = stack.values["PREFECT_AUTH_STRING"]

    def look() -> dict[str, Any] | None:
        found: list[dict[str, Any]] = ask(f"{prefect}/flow_runs/filter", user=user, flow_runs=criteria).json()
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return next((run for run in found if run["state_type"] in ends), None)

    return eventually(look, what="the end of a flow run")


def test_prefect_refuses_strangers(stack: Stack, prefect: str) -> None:
    url = f"{prefect}/flow_runs/filter"
    assert ask(url).status == 401
    assert ask(url, user="graft:guess").status == 401
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
    assert ask(mlflow + path, user="graft:guess", max_results=1).status == 401


def test_mlflow_accepts_its_user_by_its_own_names_alone(stack: Stack, mlflow: str) -> None:
    url, user = f"{mlflow}/api/2.0/mlflow/experiments/search", f"graft:{stack.values['MLFLOW_PASSWORD']}"
    assert ask(url, user=user, max_results=1).status == 200
    assert ask(url, user=user, max_results=1, host="elsewhere.example").status == 403


def postgres(stack: Stack, program: str, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Postgres as the user of the servers."""
    where = ("--host=127.0.0.1", f"--port={stack.ports['postgres']}", "--username=graft", "--no-password")
    environment = stack.environment("mlflow") | variables
    return subprocess.run([program, *where, *options], env=environment, capture_output=True, text=True, check=False)


def test_postgres_refuses_a_wrong_password(stack: Stack) -> None:
    question = ("--dbname=prefect", "--command=SELECT 1")
    assert postgres(stack, "psql", *question).returncode == 0
    assert "authentication failed" in postgres(stack, "psql", *question, PGPASSWORD="guess").stderr


def test_a_dump_can_be_restored(stack: Stack, flow_run: dict[str, Any], tmp_path: Path) -> None:
    """By the commands of docs/containers.md; into a database that has the tables already."""
    dump = str(tmp_path / "mlflow.dump")
    count = ("--tuples-only", "--command=SELECT count(*) FROM runs")
    before = postgres(stack, "psql", "--dbname=mlflow", *count).stdout
    assert int(before) > 1
    for program, *options in (
        ("pg_dump", "--format=custom", f"--file={dump}", "mlflow"),
        ("psql", "--dbname=mlflow", "--command=DELETE FROM metrics", "--command=DROP TABLE alembic_version"),
        ("pg_restore", "--dbname=mlflow", "--clean", "--if-exists", dump),
    ):
        done = postgres(stack, program, *options)
        assert done.returncode == 0, done.stderr
    assert postgres(stack, "psql", "--dbname=mlflow", *count).stdout == before
    assert len(mlflow_runs(stack, stack.environment("worker")["GRAFT_TRACKING_URI"])) == int(before)


def test_a_run_of_the_worker_is_recorded_by_both_servers(
    stack: Stack, prefect: str, mlflow: str, flow_run: dict[str, Any]
) -> None:
    assert flow_run["state_type"] == "COMPLETED", stack.logs()[-8000:]
    # Said by the API server, heard by the background services, kept by them in Postgres.
    criteria = {
        "resource": {"id": [f"prefect.flow-run.{flow_run['id']}"]},
        "event": {"name": ["prefect.flow-run.Completed"]},
    }
    user = stack.values["PREFECT_AUTH_STRING"]
    eventually(
        lambda: ask(f"{prefect}/events/filter", user=user, filter=criteria).json()["events"],
        what="the event of the flow run's end",
    )
    runs = mlflow_runs(stack, mlflow)
    assert len(runs) > 1
    assert {recorded["info"]["status"] for recorded in runs} == {"FINISHED"}


def test_a_crash_is_seen_by_the_automation_and_recovered_from(
    stack: Stack, prefect: str, flow_run: dict[str, Any]
) -> None:
    """The automation is made through the API server, kept by the services, and told of events by Redis."""
    user = stack.values["PREFECT_AUTH_STRING"]
    later = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2999-01-01T00:00:00Z"}}
    crashed = create_flow_run(stack, prefect, state=later)
    ask(f"{prefect}/flow_runs/{crashed['id']}/set_state", user=user, state={"type": "CRASHED"}, force=True)
    again = ended(stack, prefect, {"tags": {"all_": ["again:2"]}})
    assert again["state_type"] == "COMPLETED", stack.logs()[-8000:]
    assert again["parameters"] == flow_run["parameters"]


def test_what_mlflow_keeps_lies_in_the_object_store(stack: Stack, flow_run: dict[str, Any]) -> None:
    assert object_store(stack).list_objects_v2(Bucket="mlflow")["KeyCount"] > 0


def test_a_machine_of_its_own_runs_with_its_store_in_a_bucket(
    stack: Stack, prefect: str, flow_run: dict[str, Any], tmp_path: Path
) -> None:
    """Beside the worker: the same servers with Postgres below them, and nothing of the worker's disk."""
    object_store(stack).create_bucket(Bucket="graft")
    keys = {name: value for name, value in stack.environment("mlflow").items() if name.startswith("AWS_")}
    own = {"GRAFT_HOME": str(tmp_path), "GRAFT_STORE": "s3://graft/store"}
    done = subprocess.run(
        # Another seed: what MLflow knows of the worker's run is not what this one needs.
        [SCRIPT, "run", "smoke", *only(ROAD), "--set", "seed=5"],
        env=stack.environment("worker") | keys | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    kept = object_store(stack).list_objects_v2(Bucket="graft", Prefix="store/artifacts/")["Contents"]
    assert sum(one["Key"].endswith("/marker.json") for one in kept) >= 5
    assert not (tmp_path / "store").exists()
    user = stack.values["PREFECT_AUTH_STRING"]
    newest = ask(f"{prefect}/flow_runs/filter", user=user, sort="START_TIME_DESC", limit=1).json()
    assert [(run["name"], run["state_type"]) for run in newest] == [("smoke", "COMPLETED")]


def object_store(stack: Stack) -> Any:
    """A client of the store that MLflow's files are in."""
    variables = stack.environment("mlflow")
    return boto3.client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL"],
        region_name=variables["AWS_DEFAULT_REGION"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
    )


def test_the_servers_have_nothing_to_complain_about(stack: Stack, flow_run: dict[str, Any]) -> None:
    """A setting that one of Prefect's parts does not read is seen in its log alone."""
    for name in ("prefect", "prefect-services", "mlflow"):
        said = stack.processes[name].log.read_text()
        assert "Traceback" not in said and "ERROR" not in said, said[-4000:]


def test_no_secret_is_told(stack: Stack, prefect: str, mlflow: str, flow_run: dict[str, Any]) -> None:
    """Not by a log, not by Prefect or MLflow to one who may ask, not by a command line that every user can see."""
    hidden = [stack.values[name].removeprefix("graft:") for name in (*SECRETS, *KEYS)]
    # As they are sent.
    hidden += [base64.b64encode(f"graft:{secret}".encode()).decode() for secret in hidden]
    user = stack.values["PREFECT_AUTH_STRING"]
    told = [stack.logs(), json.dumps(mlflow_runs(stack, mlflow))]
    for what in ("flow_runs", "task_runs", "logs", "artifacts", "deployments", "work_pools"):
        answer = ask(f"{prefect}/{what}/filter", user=user)
        assert answer.json()
        told.append(answer.body)
    for process in stack.processes.values():
        if process.popen.poll() is None:
            told.append(Path(f"/proc/{process.popen.pid}/cmdline").read_text())
    assert not [secret for secret in hidden for text in told if secret in text]


def mlflow_runs(stack: Stack, mlflow: str) -> list[dict[str, Any]]:
    """All runs of all experiments."""
    user = f"graft:{stack.values['MLFLOW_PASSWORD']}"
    experiments = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", user=user, max_results=10).json()["experiments"]
    ids = [experiment["experiment_id"] for experiment in experiments]
    url = f"{mlflow}/api/2.0/mlflow/runs/search"
    runs: list[dict[str, Any]] = ask(url, user=user, experiment_ids=ids, max_results=1000).json()["runs"]
    return runs
