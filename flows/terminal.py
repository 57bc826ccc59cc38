"""What the `graft` command shows on a terminal; plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from flows.plan import StepStatus
from flows.results import TextTable, differences, scores
from storage.reports import Report

COLOURS = {
    "done": "green",
    "collected": "dim green",
    "partial": "yellow",
    "stale": "magenta",
    "missing": "red",
    "waits": "dim",
}


class TerminalReporter:
    """Shows the step that runs, with rate and time left, and a line for each step that is done."""

    def __init__(self, console: Console, *, total_steps: int) -> None:
        self._console = console
        self._total = total_steps
        self._done = 0
        self._started = 0.0
        self._task: TaskID | None = None
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> TerminalReporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, soft_wrap=True, highlight=False)

    def start(self, step: str) -> None:
        """A step begins."""
        self._started = time.monotonic()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(step, total=None, unit="")

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        """A step is so far."""
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total, unit=unit)

    def done(self, step: str, result: Any) -> None:
        """A step is done."""
        self._done += 1
        how = "reused" if result.reused else f"{time.monotonic() - self._started:.1f} s"
        self.say(f"[{self._done:>2}/{self._total}] {step}: {how}".replace("[", "\\[", 1))


def print_status(console: Console, steps: Mapping[str, StepStatus], *, keys: bool = False) -> None:
    """A table of what is known of each step; with `keys` also the key of its artifact."""
    table = Table(box=None, pad_edge=False)
    for column in ("step", "state", "done", "why", *(["key"] if keys else [])):
        table.add_column(column, overflow="fold")
    for name, step in steps.items():
        percent = "" if step.percent is None else f"{step.percent:.0f} %"
        key = [step.artifact.key if step.artifact else ""] if keys else []
        table.add_row(name, f"[{COLOURS[step.state]}]{step.state}[/]", percent, step.reason, *key)
    console.print(table)


def print_rows(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    """A table of rows with the same columns; nothing where there are none."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False)
    for column in rows[0]:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(value) for value in row.values()))
    console.print(table)


def print_result(console: Console, steps: Mapping[str, StepStatus]) -> None:
    """The result table, if the report is there; else what is not done."""
    artifact = steps["write_report"].artifact
    if not isinstance(artifact, Report):
        print_status(console, steps)
        return
    tables = artifact.tables
    _print_table(console, "accuracy on test images, % (95 % interval)", scores(tables))
    _print_table(console, "student minus ..., paired", differences(tables))
    console.print(f"report: {artifact.page}", soft_wrap=True, highlight=False)


def _print_table(console: Console, title: str, shown: TextTable) -> None:
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for number, column in enumerate(shown.columns):
        table.add_column(column, justify="right" if number and ": " in column else "left")
    for row in shown.rows:
        table.add_row(*row)
    console.print(table)
