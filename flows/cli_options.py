"""What the commands of `graft` share: options, settings, where they print, and the Prefect server that they need."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

# Vendors are imported where they are used: a command that does not need one must not wait for it.

console = Console()
errors = Console(stderr=True)

RecipeName = Annotated[str, typer.Argument(help="A recipe that comes with Graft, or the path of a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: STEP.key=value. May be repeated.")]
Data = Annotated[list[str] | None, typer.Option("--data", help="Where a dataset lies: NAME=PATH. May be repeated.")]
Orchestrator = Annotated[bool, typer.Option(help="Run as a Prefect flow and record in MLflow.")]


def settings(data: list[str] | None = None) -> Any:
    """The settings of this machine, told to all vendors as well."""
    from tasks.runtime import Runtime

    runtime = Runtime.load(data=places(data))
    os.environ.update(runtime.vendor_environment())
    return runtime


def server_settings(data: list[str] | None = None) -> Any:
    """The settings, with the Prefect server that they must name."""
    runtime = settings(data)
    if not runtime.prefect_api_url:
        fail("GRAFT_PREFECT_API_URL must name a Prefect server (http://HOST:4200/api); on one machine: graft serve")
    return runtime


@contextmanager
def prefect_server(runtime: Any, *, say: Callable[[str], None]) -> Iterator[None]:
    """A block in which there is a Prefect server: the one that the settings name, or one on this machine."""
    if runtime.prefect_api_url:
        yield
        return
    from flows.local_server import local_server

    with local_server(runtime, on_start=lambda: say("starting the local Prefect server")) as url:
        os.environ["PREFECT_API_URL"] = url
        say(f"Prefect: {url.removesuffix('/api')} (while this runs)")
        yield


def places(data: list[str] | None) -> dict[str, Path]:
    """Dataset name -> place, of --data."""
    return {name: Path(place).absolute() for name, place in pairs("--data", "NAME=PATH", data).items()}


def pairs(option: str, form: str, given: list[str] | None) -> dict[str, str]:
    """The values of an option that is given as NAME=VALUE."""
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            fail(f"{option} must look like {form}, got {text!r}")
        found[name] = value
    return found


def say(line: str) -> None:
    """Print a line for the user."""
    console.print(line, soft_wrap=True, highlight=False)


def fail(message: str) -> NoReturn:
    """Say what is wrong, and end with code 1."""
    print_error(message)
    raise typer.Exit(1)


def print_error(message: str) -> None:
    """Say what is wrong, in one line."""
    errors.print("error", style="red", end=" ")
    errors.print(" ".join(message.split()), soft_wrap=True, highlight=False, markup=False)
