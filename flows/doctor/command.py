"""The command `graft doctor`."""

from __future__ import annotations

import os

import typer
from rich.console import Console
from rich.table import Table

COLOURS = {"ok": "green", "look": "yellow", "broken": "red"}


def doctor() -> None:
    """Look at this machine, the store and the servers: what is well, what is broken, what to do."""
    from flows.doctor.examine import examine
    from tasks.runtime import Runtime

    runtime = Runtime.load()
    os.environ.update(runtime.vendor_environment())
    findings = list(examine(runtime))
    table = Table(box=None, pad_edge=False)
    for column in ("what", "state", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        # What is found may hold brackets, which are no markup.
        state = f"[{COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(finding.what, state, *(text.replace("[", "\\[") for text in (finding.found, finding.remedy)))
    Console().print(table)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
