"""All that scheduled runs need, on this machine: a Prefect server, an MLflow server and a worker, kept alive."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.local_server import free_port, local_server, restart_if_dead
from flows.pipeline import tracking
from flows.service import Service
from tasks.runtime import DATA_PREFIX, Runtime

HOST = "127.0.0.1"
LOOK_SECONDS = 2.0


@contextmanager
def served(
    runtime: Runtime, *, prefect_port: int, mlflow_port: int, runs: int, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """A block in which everything runs; gives what looks after it, to be called every now and then.

    Raises:
        ServeFailed: something does not start.
        ValueError: a port is in use, or other servers are named.
    """
    if runtime.prefect_api_url or runtime.tracking_uri:
        raise ValueError(
            "graft serve starts servers of its own, and GRAFT_PREFECT_API_URL or GRAFT_TRACKING_URI names others; "
            "unset them, or use those: graft deploy, then graft worker"
        )
    _require_free(mlflow_port)
    logs = runtime.home.absolute() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    tracking(runtime).prepare()
    mlflow = _mlflow(runtime, port=mlflow_port, log_file=logs / "mlflow.log")
    mlflow.start()
    try:
        with local_server(runtime, port=prefect_port) as api:
            mlflow.wait()
            os.environ["PREFECT_API_URL"] = api
            # Prefect reads its settings when it is imported.
            from flows.deploy import deploy

            deploy(runs=runs)
            own = {"prefect_api_url": api, "tracking_uri": f"http://{HOST}:{mlflow_port}"}
            os.environ.update({f"GRAFT_{name.upper()}": value for name, value in own.items()})
            worker = _worker(runtime.model_copy(update=own), log_file=logs / "worker.log")
            worker.start()
            say(f"Prefect: {api.removesuffix('/api')}")
            say(f"MLflow:  http://{HOST}:{mlflow_port}")
            say(f"logs:    {logs}")
            port = int(api.removesuffix("/api").rpartition(":")[2])

            def look_after() -> None:
                for service in (mlflow, worker):
                    if service.restart_if_dead():
                        say(f"{service.name} had died and was started again; its log is {service.log_file}")
                if restart_if_dead(runtime, port=port):
                    say("the Prefect server had died and was started again")

            try:
                yield look_after
            finally:
                worker.stop()
    finally:
        mlflow.stop()


def serve_for_ever(
    runtime: Runtime, *, prefect_port: int, mlflow_port: int, runs: int, say: Callable[[str], None]
) -> None:
    """Serve until this process is told to stop."""
    with served(runtime, prefect_port=prefect_port, mlflow_port=mlflow_port, runs=runs, say=say) as look_after:
        say("serving; Ctrl-C stops it. Begin a run under Deployments in Prefect, or: prefect deployment run ...")
        while True:
            time.sleep(LOOK_SECONDS)
            look_after()


def worker_variables(runtime: Runtime, *, port: int) -> dict[str, str]:
    """The variables of a worker and of the runs that it starts.

    Args:
        port: of its health check, on loopback.
    """
    return runtime.vendor_environment() | {
        "GRAFT_HOME": str(runtime.home.absolute()),
        **{f"{DATA_PREFIX}{name.upper()}": str(place) for name, place in runtime.data.items()},
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_WEBSERVER_HOST": HOST,
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
    }


def _worker(runtime: Runtime, *, log_file: Path) -> Service:
    port = free_port()
    variables = worker_variables(runtime, port=port)
    return Service(
        "the worker",
        [sys.executable, "-m", "flows.worker"],
        variables,
        log_file,
        healthy=f"http://{HOST}:{port}/health",
    )


def _mlflow(runtime: Runtime, *, port: int, log_file: Path) -> Service:
    home = runtime.home.absolute()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", runtime.mlflow_uri),
        # A folder, not an address of this server: so a command without it writes to the same experiments.
        *("--no-serve-artifacts", "--default-artifact-root", (home / "mlflow-artifacts").as_uri()),
    ]
    variables = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service("the MLflow server", command, variables, log_file, healthy=f"http://{HOST}:{port}/health")


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ValueError(
                f"port {port} must be free for MLflow, and is in use; choose another: --mlflow-port"
            ) from None
