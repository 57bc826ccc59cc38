"""Flows that look after runs and what they made."""

from __future__ import annotations

import logging
from uuid import UUID

from prefect import flow, get_client
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import FlowRun

from flows.automations import DATA_CHANGED, tell_of_new_data
from flows.garbage import CollectRequest, collect
from flows.pipeline import RunRequest, open_pipeline, settle
from flows.recipe import RecipeName
from flows.watch import look_at_data
from tasks.runtime import Runtime

log = logging.getLogger(__name__)

ATTEMPTS = 3
AGAIN = "again:"


class Damaged(RuntimeError):
    """Artifacts have other bytes than were written; the message names the steps."""


@flow(name="verify", flow_run_name="verify {recipe}", persist_result=False)
def verify_run(recipe: RecipeName) -> str:
    """Check every byte of a recipe's artifacts against what was written.

    Raises:
        Damaged: some are damaged; says how to make them anew.
    """
    verified = open_pipeline(RunRequest(recipe=recipe), runtime=Runtime.load()).verify()
    if verified.wrong:
        problems = "; ".join(f"{step}: {reason}" for step, reason in verified.wrong.items())
        force = " ".join(f"--force {step}" for step in verified.wrong)
        raise Damaged(f"artifacts must hold the bytes that were written; {problems}. Run: graft run {recipe} {force}")
    return str(verified)


@flow(name="collect-garbage", flow_run_name="collect garbage", persist_result=False)
def collect_garbage_run(request: CollectRequest) -> str:
    """List, or remove, what no run of a store needs; the list is an artifact of the run."""
    done = collect(request, runtime=Runtime.load())
    create_table_artifact(done.rows(), key="garbage", description=str(done))
    return _say(str(done))


@flow(name="watch-data", flow_run_name="watch data of {recipe}", persist_result=False)
def watch_data_run(recipe: RecipeName) -> str:
    """Look at the datasets of a recipe; new data that is the same in two looks is told to Prefect, once.

    Raises:
        DataUnreadable: a dataset cannot be looked at; nothing is started.
    """
    with get_client(sync_client=True) as client:
        look = look_at_data(recipe, lambda change: tell_of_new_data(client, recipe, change), runtime=Runtime.load())
    said = {
        "first": f"the datasets of {recipe} are looked at for the first time: what they become is compared with this",
        "same": f"the datasets of {recipe} are as they were",
        "moving": f"the data of {', '.join(look.steps)} is new, and told of when the next look finds it the same",
        "changed": f"the data of {', '.join(look.steps)} is new, and Prefect was told: {DATA_CHANGED}",
    }
    return _say(said[look.state])


@flow(name="recover", flow_run_name="recover {flow_run_id}", persist_result=False)
def recover_run(flow_run_id: UUID) -> str:
    """After a crash: tell MLflow, and run the same again, at most ATTEMPTS times; the store makes it a resume."""
    settle(Runtime.load())
    with get_client(sync_client=True) as client:
        crashed = client.read_flow_run(flow_run_id)
        attempt = _attempt(crashed)
        if crashed.state is None or not crashed.state.is_crashed():
            return _say(f"{crashed.name} is not crashed: {crashed.state_name}")
        if any(state.is_cancelling() for state in client.read_flow_run_states(flow_run_id)):
            return _say(f"{crashed.name} was cancelled and is not run again")
        if crashed.parent_task_run_id is not None:
            return _say(f"{crashed.name} is part of another run, and goes on with it")
        if crashed.deployment_id is None:
            return _say(f"{crashed.name} was started on a command line; run it there again to go on")
        if attempt >= ATTEMPTS:
            return _say(f"{crashed.name} crashed for the {ATTEMPTS}. time and is not run again; its log says why")
        again = client.create_flow_run_from_deployment(
            crashed.deployment_id,
            parameters=crashed.parameters,
            # A crash that is told twice is recovered from once.
            idempotency_key=f"{crashed.id} again",
            tags=[*(tag for tag in crashed.tags if not tag.startswith(AGAIN)), f"{AGAIN}{attempt + 1}"],
        )
        return _say(f"{crashed.name} crashed and goes on as {again.name}, attempt {attempt + 1} of {ATTEMPTS}")


def _attempt(run: FlowRun) -> int:
    """1 for a run that somebody asked for, 2 for the first that took it up again."""
    return next((int(tag.removeprefix(AGAIN)) for tag in run.tags if tag.startswith(AGAIN)), 1)


def _say(text: str) -> str:
    log.warning(text)
    return text
