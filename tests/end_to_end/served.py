"""`graft serve` as its users run it, and what its servers say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

from tests.end_to_end.command import SCRIPT, PrefectApi, answer_of, environment, eventually

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def request(**changes: Any) -> dict[str, Any]:
    """The parameters of a deployment that runs the smoke recipe."""
    return {"request": {"recipe": "smoke", **changes}}


class Served:
    """A `graft serve` in a process of its own, with a home of its own."""

    def __init__(self, home: Path, *, prefect_port: int, mlflow_port: int, **settings: object) -> None:
        self.home = home
        self.mlflow = f"http://127.0.0.1:{mlflow_port}"
        self.prefect = PrefectApi(f"http://127.0.0.1:{prefect_port}/api")
        self._said = home.parent / "serve.log"
        with self._said.open("wb") as log:
            self._process = subprocess.Popen(
                [str(SCRIPT), "serve", "--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port)],
                env=environment(home, **settings),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(lambda: "serving" in self.said or self._process.poll() is not None, what="the start of graft serve")
        assert self._process.poll() is None, self.said

    @property
    def said(self) -> str:
        """What the command printed."""
        return self._said.read_text()

    def stop(self) -> int:
        """Ask it to stop; gives its exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def kill_what_is_left(self) -> None:
        """After a test that failed."""
        self._process.kill()
        for pid, _ in processes(self.home):
            os.kill(pid, signal.SIGKILL)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Ask the Prefect server for something."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return answer_of(urllib.request.Request(f"{self.prefect.url}/{path}", data, headers))

    def get(self, path: str) -> Any:
        return answer_of(urllib.request.Request(f"{self.prefect.url}/{path}"))

    def delete(self, path: str) -> None:
        answer_of(urllib.request.Request(f"{self.prefect.url}/{path}", method="DELETE"))

    def start(self, flow: str, deployment: str, parameters: dict[str, Any], **more: Any) -> str:
        """Start a run of a deployment, as the button in the interface does; gives its id."""
        known = self.get(f"deployments/name/{flow}/{deployment}")
        run: str = self.post(f"deployments/{known['id']}/create_flow_run", {"parameters": parameters, **more})["id"]
        return run

    def ended(self, run: str) -> dict[str, Any]:
        """Wait for the end of a flow run."""

        def look() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(f"flow_runs/{run}")
            return found if found["state_type"] in ENDED else None

        return eventually(look, what=f"the end of the flow run {run}")

    def percent(self, run: str, step: str) -> float:
        """How far a step of a flow run is, by its progress in Prefect."""
        key = f"{step}-progress".replace("_", "-")
        artifacts = self.prefect.of_flow_run("artifacts", {"id": run})
        return max((one["data"] for one in artifacts if one["key"] == key), default=0.0)

    def taken_up(self, crashed: str) -> dict[str, Any] | None:
        """The flow run that goes on for one that crashed: the second attempt with its parameters."""
        parameters = self.get(f"flow_runs/{crashed}")["parameters"]
        return next((run for run in self.tagged("again:2") if run["parameters"] == parameters), None)

    def tagged(self, tag: str) -> list[dict[str, Any]]:
        """The flow runs that bear a tag."""
        return self.prefect.ask("flow_runs", flow_runs={"tags": {"all_": [tag]}})

    def kill(self, *patterns: str) -> None:
        """Kill the processes whose command lines match, those that were started first before what they started."""
        pids = [eventually(lambda p=pattern: pid_of(self.home, p), what=pattern) for pattern in patterns]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Let the command stand still: what dies now stays away until it is let go on."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def mlflow_runs(self) -> list[dict[str, Any]]:
        """All runs that MLflow knows: name, status, and for each metric its steps."""
        ids = [one["experiment_id"] for one in self._mlflow("experiments/search", max_results=100)["experiments"]]
        runs = self._mlflow("runs/search", experiment_ids=ids, max_results=500).get("runs", [])
        return [{"id": run["info"]["run_id"], "name": run["info"]["run_name"], **run["info"]} for run in runs]

    def newest(self, name: str) -> dict[str, Any]:
        """The last run of a name that MLflow heard of."""
        named = [one for one in self.mlflow_runs() if one["name"] == name]
        return max(named, key=lambda one: int(one["start_time"]))

    def metric_steps(self, run: dict[str, Any], metric: str) -> list[int]:
        """The steps at which MLflow holds a metric."""
        url = f"{self.mlflow}/api/2.0/mlflow/metrics/get-history?run_id={run['id']}&metric_key={metric}"
        rows = answer_of(urllib.request.Request(url)).get("metrics", [])
        return [int(row.get("step", 0)) for row in rows]

    def model(self, name: str) -> dict[str, str]:
        """Alias -> the run whose artifacts are that version of a registered model."""
        url = f"{self.mlflow}/api/2.0/mlflow"
        known = answer_of(urllib.request.Request(f"{url}/registered-models/get?name={name}"))["registered_model"]
        versions = {
            one["alias"]: answer_of(
                urllib.request.Request(f"{url}/model-versions/get?name={name}&version={one['version']}")
            )
            for one in known["aliases"]
        }
        return {alias: version["model_version"]["run_id"] for alias, version in versions.items()}

    def _mlflow(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.mlflow}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return answer_of(request)


def processes(home: Path) -> list[tuple[int, str]]:
    """(pid, command line) of all processes that were started with this home, or below a process that was."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and str(home).encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(process.name), command))
        except OSError:
            # One that has just ended.
            continue
    return found


def pid_of(home: Path, pattern: str) -> int | None:
    """The process of a home whose command line matches."""
    return next((pid for pid, command in processes(home) if re.search(pattern, command)), None)
