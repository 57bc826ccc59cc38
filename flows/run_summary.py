"""What a run came to, as Markdown for Prefect's interface: the result, and where to see more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.results import differences, scores
from storage.reports import Report
from tasks.recording import Recorder
from tasks.stage import StageResult
from tasks.summaries import links


def run_summary(name: str, results: Mapping[str, StageResult[Any]], recorder: Recorder) -> str:
    """The result of a recipe's run; of a part of it, what was computed.

    Args:
        name: the recipe's.
        results: what each step gave.
    """
    found = [result.artifact for result in results.values() if isinstance(result.artifact, Report)]
    where = links(recorder, report=found[0] if found else None)
    parts = [f"# {name}", "\n".join(f"- {what}: {place}" for what, place in where.items())]
    for report in found:
        tables = report.tables
        parts += ["## Accuracy on test images, % (95 % interval)", scores(tables).markdown()]
        parts += ["## Student minus ..., paired", differences(tables).markdown()]
    computed = [step for step, result in results.items() if not result.reused]
    parts.append(f"{len(results) - len(computed)} steps were reused, {len(computed)} computed: {', '.join(computed)}")
    return "\n\n".join(parts)
