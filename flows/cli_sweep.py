"""The command that compares settings."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli_options import Data, Orchestrator, RecipeName, console, places, prefect_server, say, settings
from flows.terminal import TerminalReporter, print_rows

app = typer.Typer()

Settings = Annotated[
    list[str],
    typer.Option("--set", help="A setting and its values: STEP.key=1,2,4. May be repeated; all combinations are run."),
]


@app.command()
def sweep(
    recipe: RecipeName,
    values: Settings,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be computed.")] = False,
    orchestrator: Orchestrator = True,
) -> None:
    """Run a recipe with every combination of some settings, and compare the scores."""
    from flows.sweep import SweepRequest, parse_settings, plan_sweep

    runtime = settings(data)
    request = SweepRequest(recipe=recipe, settings=parse_settings(values), data=places(data))
    plan = plan_sweep(request, runtime=runtime, record=orchestrator)
    print_rows(console, plan.rows())
    say(str(plan))
    if dry_run:
        return
    with TerminalReporter(console, total_steps=sum(run.planner.num_to_run for run in plan.runs)) as reporter:
        result = _run(request, runtime, reporter) if orchestrator else _run_directly(request, runtime, reporter)
    print_rows(console, result.rows())
    result.require_all()


def _run_directly(request: Any, runtime: Any, reporter: TerminalReporter) -> Any:
    from flows.pipeline import open_pipeline
    from flows.sweep import run_sweep

    def run(one: Any) -> None:
        pipeline = open_pipeline(one, runtime=runtime, reporter=reporter, record=False)
        pipeline.run(on_start=reporter.start, on_done=reporter.done)

    return run_sweep(request, run, runtime=runtime, on_start=lambda combination: reporter.say(str(combination)))


def _run(request: Any, runtime: Any, reporter: TerminalReporter) -> Any:
    results: list[Any] = []
    with prefect_server(runtime, say=reporter.say):
        from flows.orchestrated import drain
        from flows.orchestrated_sweep import build_sweep_flow

        flow = build_sweep_flow(
            reporter=reporter,
            on_combination=lambda combination: reporter.say(str(combination)),
            on_start=reporter.start,
            on_done=reporter.done,
            on_result=results.append,
        )
        try:
            state = flow(request, return_state=True)
        finally:
            drain()
    # Combinations that failed are named after the table.
    return results[0] if results else state.result()
