"""The `graft` command: parses, calls, prints; nothing else."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.logging import RichHandler

from flows import cli_care, cli_sweep
from flows.cli_options import (
    Data,
    Orchestrator,
    RecipeName,
    Set,
    console,
    errors,
    fail,
    pairs,
    places,
    prefect_server,
    print_error,
    say,
    server_settings,
    settings,
)
from flows.doctor.command import doctor
from flows.methods import methods
from flows.terminal import TerminalReporter, print_result, print_status

app = typer.Typer(
    help="Move what a large self-supervised network has learnt into a small one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)
app.add_typer(cli_sweep.app)
app.add_typer(cli_care.app)
app.command()(doctor)
app.command()(methods)
INTERRUPTED = 128 + signal.SIGINT
# A wrong option; of click, or of typer's own copy of it, as typer's version has it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

Only = Annotated[list[str] | None, typer.Option("--only", help="Compute this step alone. May be repeated.")]
Start = Annotated[list[str] | None, typer.Option("--from", help="Compute this step and all below it anew.")]
Force = Annotated[list[str] | None, typer.Option("--force", help="Compute this step anew.")]
Use = Annotated[
    list[str] | None, typer.Option("--use", help="Take this artifact: STEP=KEY, or STEP=ID of an MLflow run.")
]


@app.command()
def run(
    recipe: RecipeName,
    changes: Set = None,
    only: Only = None,
    start: Start = None,
    force: Force = None,
    use: Use = None,
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
        use=pairs("--use", "STEP=KEY", use),
        data=places(data),
    )
    runtime = settings(data)
    pipeline = open_pipeline(request, runtime=runtime, record=orchestrator)
    planner = pipeline.plan()
    if not all_done(planner.steps, request.selection):
        with TerminalReporter(console, total_steps=planner.num_to_run) as reporter:
            if orchestrator:
                _run_orchestrated(request, runtime, reporter)
            else:
                open_pipeline(request, runtime=runtime, reporter=reporter, record=False).run(
                    on_start=reporter.start, on_done=reporter.done
                )
        planner = pipeline.plan()
    else:
        pipeline.settle()
        pipeline.note_use(planner)
        if console.is_terminal:
            console.print("Everything is there; nothing was computed.")
    print_result(console, planner.steps)


def _run_orchestrated(request: Any, runtime: Any, reporter: TerminalReporter) -> None:
    with prefect_server(runtime, say=reporter.say):
        _run_flow(request, reporter)


def _run_flow(request: Any, reporter: TerminalReporter) -> None:
    from flows.orchestrated import build_flow, drain

    try:
        build_flow(reporter=reporter, on_start=reporter.start, on_done=reporter.done)(request)
    finally:
        drain()


@app.command()
def status(
    recipe: RecipeName,
    changes: Set = None,
    data: Data = None,
    keys: Annotated[bool, typer.Option("--keys", help="Show the keys of artifacts, for --use.")] = False,
) -> None:
    """Say of each step whether it is done, and if not, why."""
    from flows.pipeline import RunRequest, open_pipeline

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=places(data))
    print_status(console, open_pipeline(request, runtime=settings(data)).plan().steps, keys=keys)


@app.command("data")
def show_data(recipe: RecipeName, changes: Set = None, data: Data = None) -> None:
    """Show what is in the datasets of a recipe; those that nobody indexed yet are indexed first."""
    from flows.data import show_datasets
    from flows.pipeline import RunRequest

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=places(data))
    show_datasets(request, runtime=settings(data), console=console)


@app.command()
def report(recipe: RecipeName, changes: Set = None, data: Data = None) -> None:
    """Print the path of a recipe's report."""
    from flows.pipeline import RunRequest, open_pipeline
    from storage.reports import Report

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=places(data))
    step = open_pipeline(request, runtime=settings(data)).plan().steps["write_report"]
    if not isinstance(step.artifact, Report):
        fail(f"the report of {recipe} must be written first ({step.state}: {step.reason}); run: graft run {recipe}")
    typer.echo(step.artifact.page)


@app.command()
def verify(recipe: RecipeName, changes: Set = None, data: Data = None) -> None:
    """Check every byte of a recipe's artifacts against what was written."""
    from flows.pipeline import RunRequest, open_pipeline

    request = RunRequest(recipe=recipe, changes=tuple(changes or ()), data=places(data))
    verified = open_pipeline(request, runtime=settings(data)).verify()
    for step, reason in verified.wrong.items():
        errors.print("damaged", style="red", end=" ")
        errors.print(
            f"{step}: {reason}; graft run {recipe} --force {step}", soft_wrap=True, highlight=False, markup=False
        )
    typer.echo(str(verified))
    if verified.wrong:
        raise typer.Exit(1)


@app.command()
def serve(
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server.")] = 5000,
    runs: Annotated[int, typer.Option(min=1, help="How many runs may go on at once.")] = 1,
    data: Data = None,
) -> None:
    """Start and keep alive a Prefect server, an MLflow server and a worker on this machine, with all deployments."""
    runtime = settings(data)
    from flows.serve import serve_for_ever

    serve_for_ever(runtime, prefect_port=prefect_port, mlflow_port=mlflow_port, runs=runs, say=say)


@app.command()
def deploy(
    runs: Annotated[int, typer.Option(min=1, help="How many runs may go on at once.")] = 1,
    pool_type: Annotated[
        str, typer.Option(help="Of the work pool, where there is none yet: process, docker or kubernetes.")
    ] = "process",
) -> None:
    """Put the deployments onto the Prefect server that GRAFT_PREFECT_API_URL names."""
    server_settings()
    from flows.deploy import deploy

    for name in deploy(runs=runs, pool_type=pool_type):
        say(name)


@app.command()
def worker(
    health_port: Annotated[int, typer.Option(help="Port of the health check, on loopback.")] = 8080,
    data: Data = None,
) -> None:
    """Run on this machine what the deployments ask for; GRAFT_PREFECT_API_URL names the server."""
    runtime = server_settings(data)
    from flows.serve import worker_variables

    os.environ.update(worker_variables(runtime, port=health_port))
    from flows.worker import run_worker

    raise typer.Exit(run_worker())


def main() -> None:
    """Run the command; errors of the user's are one line, and exit codes are honest."""
    handler = RichHandler(logging.WARNING, console=errors, show_path=False, show_time=False)
    # How a run ended is said once, by this command.
    handler.addFilter(lambda record: not record.name.startswith(("prefect.flow_runs", "prefect.task_runs")))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # The code of a typer.Exit comes back as a value, and so does that of Ctrl-C.
        code = app(standalone_mode=False) or 0
    except UsageError as error:
        print_error(f"{error}; see: graft --help")
        sys.exit(2)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("GRAFT_TRACEBACK"):
            raise
        print_error(str(error))
        sys.exit(1)
    if code == INTERRUPTED:
        errors.print("stopped; what was committed is kept. Run the same command again to go on", soft_wrap=True)
    sys.exit(code)


def _terminated(number: int, _frame: Any) -> NoReturn:
    raise SystemExit(128 + number)
