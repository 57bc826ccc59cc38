"""Put the deployments of prefect.yaml, and all that they need, onto a Prefect server."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from flows.automations import run_on_new_data

PROJECT_FILE = Path(__file__).parent.parent / "prefect.yaml"
POOL = "graft"
RUNS_QUEUE, CARE_QUEUE = "runs", "care"
ZOMBIES = "graft marks silent runs as crashed"
# Three signs of life of 30 s (prefect.yaml) may be missed.
SILENCE = timedelta(seconds=90)


class DeployFailed(RuntimeError):
    """The deployments could not be made; the message is Prefect's."""


def deploy(*, runs: int = 1, pool_type: str = "process") -> list[str]:
    """Create or update work pool, queues, automations, and the deployments.

    Args:
        runs: how many runs may go on at once.
        pool_type: of the work pool, where there is none yet: process, docker or kubernetes.
    Returns:
        The names of the deployments.
    Raises:
        DeployFailed: Prefect refused one.
    """
    with get_client(sync_client=True) as client:
        _make_pool(client, pool_type)
        _make_queue(client, RUNS_QUEUE, limit=runs)
        _make_queue(client, CARE_QUEUE, limit=None)
        _watch_for_silence(client)
    _deploy_all()
    with get_client(sync_client=True) as client:
        run_on_new_data(client, client.read_deployment_by_name("knowledge-transfer/pipeline").id)
    return deployment_names()


def deployment_names() -> list[str]:
    """The deployments that prefect.yaml describes."""
    return [deployment["name"] for deployment in yaml.safe_load(PROJECT_FILE.read_text())["deployments"]]


def _make_pool(client: SyncPrefectClient, pool_type: str) -> None:
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type=pool_type, description="Runs of Graft."))


def _make_queue(client: SyncPrefectClient, name: str, *, limit: int | None) -> None:
    try:
        queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
    except ObjectNotFound:
        client.create_work_queue(name, concurrency_limit=limit, work_pool_name=POOL)
    else:
        client.update_work_queue(queue.id, concurrency_limit=limit)


def _watch_for_silence(client: SyncPrefectClient) -> None:
    """A run whose machine is gone says nothing any more, and would be shown as running for ever."""
    ended = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
    automation = AutomationCore(
        name=ZOMBIES,
        description=f"Marks a run as crashed that gave no sign of life for {SILENCE.total_seconds():.0f} s.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No sign of life for {SILENCE.total_seconds():.0f} s: its process or its machine is gone.",
            )
        ],
    )
    known = client.read_automations_by_name(ZOMBIES)
    if known:
        client.update_automation(known[0].id, automation)
    else:
        client.create_automation(automation)


def _deploy_all() -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PROJECT_FILE)]
    done = subprocess.run(command, cwd=PROJECT_FILE.parent, capture_output=True, text=True)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise DeployFailed(f"the deployments of {PROJECT_FILE} could not be made: {said[-1000:]}")
