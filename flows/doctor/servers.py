"""The servers: whether they answer, speak our version, and have what scheduled runs need. Nothing else is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

from flows.doctor.asking import ask
from flows.doctor.finding import Finding, broken, look, ok
from flows.local_server import address
from flows.pipeline import tracking
from storage.receipts import without_secrets
from storage.tracking import TrackingAway
from tasks.runtime import Runtime

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SECONDS = 5
# A key that no artifact has.
NO_KEY = "0" * 64


def prefect(runtime: Runtime) -> Iterator[Finding]:
    """The Prefect server, and on it: work pool, queues, deployments, and the automation for silent runs."""
    url = runtime.prefect_api_url or address(runtime)
    if url is None:
        yield ok("Prefect", "no server runs; graft run starts one while it needs it")
        return
    os.environ.update(PREFECT_API_URL=url, PREFECT_API_REQUEST_TIMEOUT=str(SECONDS), PREFECT_CLIENT_MAX_RETRIES="0")
    # Prefect reads its settings when it is imported.
    from prefect import get_client

    shown = without_secrets(url)
    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            yield _no_prefect(runtime, shown, problem)
            return
        yield _prefect_version(shown, theirs=client.api_version())
        yield from _deployed(client, named=runtime.prefect_api_url is not None)


def _no_prefect(runtime: Runtime, url: str, problem: Exception) -> Finding:
    why = f"{url} does not answer: {type(problem).__name__}"
    if runtime.prefect_api_url is None:
        return look("Prefect", f"{why}; it was left by a run that was killed", "none: the next graft run clears it")
    return broken("Prefect", why, "start it; or unset GRAFT_PREFECT_API_URL, and graft run starts one of its own")


def _prefect_version(url: str, *, theirs: str) -> Finding:
    ours = version("prefect")
    if theirs == ours:
        return ok("Prefect", f"{url} answers, version {theirs} like here")
    return look("Prefect", f"{url} has version {theirs}, here is {ours}", "install one version; the server first")


def _deployed(client: SyncPrefectClient, *, named: bool) -> Iterator[Finding]:
    from prefect.client.schemas.objects import WorkPoolStatus
    from prefect.exceptions import ObjectNotFound

    from flows.deploy import CARE_QUEUE, POOL, RUNS_QUEUE, ZOMBIES, deployment_names

    remedy = "graft deploy" if named else "graft serve makes all of it"
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        found = f"there is no work pool {POOL}: nothing runs by schedule"
        yield look("deployments", found, remedy) if named else ok("deployments", f"{found}; {remedy}")
        return
    if pool.is_paused or pool.status == WorkPoolStatus.PAUSED:
        yield look("worker", f"the work pool {POOL} is paused", f"prefect work-pool resume {POOL}")
    elif pool.status != WorkPoolStatus.READY:
        yield look("worker", f"none is at the work pool {POOL}: what is asked for waits", "graft worker")
    else:
        yield ok("worker", f"there is one at the work pool {POOL}")
    queues = {queue.name for queue in client.read_work_queues(work_pool_name=POOL)}
    missing = [f"queue {name}" for name in (RUNS_QUEUE, CARE_QUEUE) if name not in queues]
    known = {deployment.name for deployment in client.read_deployments()}
    missing += [f"deployment {name}" for name in deployment_names() if name not in known]
    automations = client.read_automations_by_name(ZOMBIES)
    missing += [] if automations and automations[0].enabled else [f"automation {ZOMBIES!r}"]
    if missing:
        yield look("deployments", f"missing or disabled: {', '.join(missing)}", remedy)
    else:
        yield ok("deployments", f"{len(deployment_names())}, with their queues and the automation for silent runs")


def mlflow(runtime: Runtime) -> Iterator[Finding]:
    """The MLflow server or database."""
    os.environ.update(MLFLOW_HTTP_REQUEST_TIMEOUT=str(SECONDS), MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    known = tracking(runtime)
    if runtime.tracking_uri is None and not (runtime.home.absolute() / "mlflow.db").exists():
        yield ok("MLflow", "no database yet; the first graft run makes one")
        return
    is_server = known.uri.startswith("http")
    answer = ask(f"{known.uri}/version", seconds=SECONDS) if is_server else None
    if answer is not None and answer.status == 0:
        remedy = "start it; or unset GRAFT_TRACKING_URI, and MLflow is a file in GRAFT_HOME"
        yield broken("MLflow", f"{known.uri} does not answer", remedy)
        return
    try:
        known.find(NO_KEY)
    except TrackingAway as error:
        remedy = "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        if not is_server:
            remedy = f"an older database needs: mlflow db upgrade {known.uri} (keep a copy of the file)"
        yield broken("MLflow", str(error), remedy)
        return
    ours = version("mlflow")
    theirs = answer.text if answer is not None else ours
    if theirs == ours:
        yield ok("MLflow", f"{known.uri} answers, version {theirs}")
    else:
        yield look("MLflow", f"{known.uri} has version {theirs}, here is {ours}", "install one version on both")
