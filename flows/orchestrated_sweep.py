"""A sweep as a Prefect flow: one flow run below it a combination."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.flows import Flow

from flows.orchestrated import build_flow, until_cancelled
from flows.sweep import Combination, SweepRequest, SweepResult, run_sweep
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Reporter, StageResult


def build_sweep_flow(
    *,
    reporter: Reporter,
    on_combination: Callable[[Combination], None] = lambda combination: None,
    on_start: Callable[[str], None] = lambda step: None,
    on_done: Callable[[str, StageResult[Any]], None] = lambda step, result: None,
    on_result: Callable[[SweepResult], None] = lambda result: None,
) -> Flow[[SweepRequest], State[None] | None]:
    """The flow of a sweep, telling its progress to `reporter` as well as to Prefect."""
    run = build_flow(reporter=reporter, on_start=on_start, on_done=on_done)

    def sweep(request: SweepRequest) -> None:
        result = run_sweep(request, run, runtime=Runtime.load(data=request.data), on_start=on_combination)
        create_table_artifact(result.rows(), key="sweep", description=f"Scores of {request.name}")
        on_result(result)
        result.require_all()

    @flow(name="sweep", flow_run_name=_run_name, persist_result=False)
    def sweep_run(request: SweepRequest) -> State[None] | None:
        """Run a recipe with every combination of some settings; the table of scores is an artifact of the run."""
        return until_cancelled(lambda: sweep(request))

    return sweep_run


def _run_name() -> str:
    request: SweepRequest = runtime.flow_run.parameters["request"]
    return f"sweep {Path(request.recipe).stem}"


# What the deployment points to.
sweep_run = build_sweep_flow(reporter=Silent())
