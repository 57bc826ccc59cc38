"""What a step came to, as Markdown for an orchestrator's interface, with links into MLflow."""

from __future__ import annotations

from typing import Any

from storage.reports import PAGE, Report
from tasks.recording import Recorder
from tasks.report_page import picture_uri
from tasks.stage import StageResult


def step_summary(step: str, result: StageResult[Any], recorder: Recorder) -> str:
    """A table of what a step gave, how, from what, and where to see more."""
    marker = result.artifact.marker
    page = recorder.page(marker.key)
    how = "reused, nothing was computed" if result.reused else f"computed in {result.seconds:.1f} s"
    rows = {
        "kind": marker.kind,
        "how": how,
        "key": f"`{marker.key}`",
        "content digest": f"`{marker.digest}`",
        "place": f"`{result.artifact.uri}`",
        **{f"input {name}": f"{ref.kind} `{ref.key[:12]}`" for name, ref in marker.inputs.items()},
        **({"MLflow run": f"[{step}]({page.url})"} if page else {}),
        **links(recorder, report=result.artifact if isinstance(result.artifact, Report) else None),
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def links(recorder: Recorder, *, report: Report | None) -> dict[str, str]:
    """Where the pipeline's run is shown, and the report: its place, where no server has it."""
    found = {}
    if pipeline := recorder.pipeline_page():
        found["pipeline in MLflow"] = f"[all steps]({pipeline.url})"
    if report is not None:
        page = recorder.page(report.key)
        found["report"] = f"[{PAGE}]({page.file_page(PAGE)})" if page else f"`{report.page}`"
    return found


def pictures(report: Report, recorder: Recorder) -> dict[str, str]:
    """The report's pictures, name -> address: in MLflow, where a browser can reach it, else with all its bytes."""
    page = recorder.page(report.key)
    return {name: page.file_url(name) if page else picture_uri(report.folder.read(name)) for name in report.pictures}
