"""The `graft` command: parses, calls, prints; nothing else."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from flows.terminal import TerminalReporter, print_result, print_status

# Vendors are imported where they are used: a run with nothing to do must not wait for them.

app = typer.Typer(
    help="Move what a large self-supervised network has learnt into a small one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
console = Console()
errors = Console(stderr=True)

RecipeName = Annotated[str, typer.Argument(help="A recipe that comes with Graft, or the path of a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: STEP.key=value. May be repeated.")]
Data = Annotated[list[str] | None, typer.Option("--data", help="Where a dataset lies: NAME=PATH. May be repeated.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Compute this step alone. May be repeated.")]
Start = Annotated[list[str] | None, typer.Option("--from", help="Compute this step and all below it anew.")]
Force = Annotated[list[str] | None, typer.Option("--force", help="Compute this step anew.")]
Orchestrator = Annotated[bool, typer.Option(help="Run as a Prefect flow and record in MLflow.")]


@app.command()
def run(
    recipe: RecipeName,
    changes: Set = None,
    only: Only = None,
    start: Start = None,
    force: Force = None,
    data: Data = None,
    orchestrator: Orchestrator = True,
) -> None:
    """Run a recipe: reuse what is there, resume what was begun, compute the rest."""
    from flows.pipeline import RunRequest, all_done, open_pipeline

    request = RunRequest(
        recipe=recipe,
        changes=tuple(changes or ()),
        only=frozenset(only or ()),
        start=frozenset(start or ()),
        force=frozenset(force or ()),
        data=_places(data),
    )
    runtime = _runtime(data)
    pipeline = open_pipeline(request, runtime=runtime, record=orchestrator)
    planner = pipeline.plan()
    if not all_done(planner.steps, request.selection):
        with TerminalReporter(console, total_steps=len(planner.steps)) as reporter:
            if orchestrator:
                _run_orchestrated(request, runtime, reporter)
            else:
                open_pipeline(request, runtime=runtime, reporter=reporter, record=False).run(
                    on_start=reporter.start, on_done=reporter.done
                )
        planner = pipeline.plan()
    elif console.is_terminal:
        console.print("Everything is there; nothing was computed.")
    print_result(console, planner.steps)


def _run_orchestrated(request: Any, runtime: Any, reporter: TerminalReporter) -> None:
    from flows.local_server import local_server

    if runtime.prefect_api_url:
        _run_flow(request, reporter)
        return
    reporter.say("starting the local Prefect server")
    with local_server(runtime) as url:
        os.environ["PREFECT_API_URL"] = url
        reporter.say(f"Prefect: {url.removesuffix('/api')} (while this runs)")
        _run_flow(request, reporter)


def _run_flow(request: Any, reporter: TerminalReporter) -> None:
    from flows.orchestrated import build_flow, drain

    try:
        build_flow(reporter=reporter, on_start=reporter.start, on_done=reporter.done)(request)
    finally:
        drain()


@app.command()
def status(recipe: RecipeName, changes: Set = None, data: Data = None) -> None:
    """Say of each step whether it is done, and if not, why."""
    from flows.pipeline import RunRequest, open_pipeline

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=_places(data))
    print_status(console, open_pipeline(request, runtime=_runtime(data)).plan().steps)


@app.command()
def report(recipe: RecipeName, changes: Set = None, data: Data = None) -> None:
    """Print the path of a recipe's report."""
    from flows.pipeline import RunRequest, open_pipeline

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=_places(data))
    step = open_pipeline(request, runtime=_runtime(data)).plan().steps["write_report"]
    if step.artifact is None:
        _fail(f"the report of {recipe} must be written first ({step.state}: {step.reason}); run: graft run {recipe}")
    typer.echo(step.artifact.page)  # type: ignore[attr-defined]


@app.command()
def verify(
    recipe: RecipeName, changes: Set = None, data: Data = None
) -> None:
    """Check every byte of a recipe's artifacts against what was written."""
    from flows.pipeline import RunRequest, open_pipeline
    from tasks.inspect_verify import damaged

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=_places(data))
    steps = open_pipeline(request, runtime=_runtime(data)).plan().steps
    artifacts = {step: known.artifact for step, known in steps.items() if known.artifact is not None}
    found = damaged(artifacts)
    for step, reason in found.items():
        errors.print(f"[red]damaged[/red] {step}: {reason}", soft_wrap=True)
        errors.print(f"  recompute it: graft run {recipe} --force {step}", soft_wrap=True)
    typer.echo(f"{len(artifacts) - len(found)} of {len(artifacts)} artifacts are intact")
    if found:
        raise typer.Exit(1)


def _places(data: list[str] | None) -> dict[str, Path]:
    places = {}
    for pair in data or []:
        name, equals, place = pair.partition("=")
        if not equals or not name or not place:
            _fail(f"--data must look like NAME=PATH, got {pair!r}")
        places[name] = Path(place).absolute()
    return places


def _runtime(data: list[str] | None) -> Any:
    from tasks.runtime import Runtime

    runtime = Runtime.load(data=_places(data))
    os.environ.update(runtime.vendor_environment())
    return runtime


def _fail(message: str) -> NoReturn:
    errors.print(f"[red]error[/red] {message}", soft_wrap=True, highlight=False, markup=True)
    raise typer.Exit(1)


def main() -> None:
    """Run the command; errors of the user's are one line, and exit codes are honest."""
    handler = RichHandler(logging.WARNING, console=errors, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app(standalone_mode=False)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        errors.print("stopped; what was committed is kept. Run the same command again to go on")
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("GRAFT_TRACEBACK"):
            raise
        errors.print("error", style="red", end=" ")
        errors.print(" ".join(str(error).split()), soft_wrap=True, highlight=False, markup=False)
        sys.exit(1)


def _terminated(number: int, _frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
