"""The pipeline as a Prefect flow: one task run a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, get_client, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.flows import Flow
from prefect.states import Cancelled

from flows.pipeline import RunRequest, open_pipeline
from flows.run_summary import run_summary
from tasks.orchestration import ProgressArtifacts, as_task
from tasks.reporting import Several, Silent
from tasks.runtime import Runtime
from tasks.stage import Reporter, StageResult

DRAIN_SECONDS = 20


def build_flow(
    *,
    reporter: Reporter,
    on_start: Callable[[str], None] = lambda step: None,
    on_done: Callable[[str, StageResult[Any]], None] = lambda step, result: None,
) -> Flow[[RunRequest], State[None] | None]:
    """The flow, telling its progress to `reporter` as well as to Prefect."""

    @flow(name="knowledge-transfer", flow_run_name=_run_name, persist_result=False)
    def knowledge_transfer_run(request: RunRequest) -> State[None] | None:
        """Run a recipe: what is there is reused, what was begun is resumed, the rest is computed."""
        several = Several((reporter, ProgressArtifacts()))
        pipeline = open_pipeline(request, runtime=Runtime.load(data=request.data), reporter=several)

        def work() -> None:
            recorder = pipeline.context.recorder
            results = pipeline.run(around=partial(as_task, recorder=recorder), on_start=on_start, on_done=on_done)
            summary = run_summary(pipeline.recipe.name, results, recorder)
            create_markdown_artifact(summary, key="pipeline-result", description=f"Result of {pipeline.recipe.name}")

        return until_cancelled(work)

    return knowledge_transfer_run


def until_cancelled(work: Callable[[], object]) -> State[None] | None:
    """Do the work of a flow; gives the flow's end if somebody cancels it meanwhile.

    Prefect tells a cancelled run from a crash by its own signal handler, and a training puts another before it.
    """
    try:
        work()
    except TerminationSignal:
        if not _is_being_cancelled():
            raise
        return Cancelled(message="Cancelled. What was committed is kept: the same run, started again, goes on")
    return None


def _is_being_cancelled() -> bool:
    """Whether somebody asked Prefect to cancel this run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
    return state is not None and state.is_cancelling()


def _run_name() -> str:
    """The recipe's name; more of it than Prefect can show would be a path."""
    request: RunRequest = runtime.flow_run.parameters["request"]
    return Path(request.recipe).stem


# What deployments point to.
knowledge_transfer_run = build_flow(reporter=Silent())


def drain() -> None:
    """Wait until logs and events have reached the server: it may be stopped right after."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    EventsWorker.drain_all(timeout=DRAIN_SECONDS)
