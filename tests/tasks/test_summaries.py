"""Summaries for an orchestrator's interface: their links lead to MLflow where a browser can reach it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.artifact import Marker
from storage.folder import Folder
from storage.reports import PICTURES, Report, write_report_files
from storage.tracking_pages import RunPage
from tasks.recording import NoRecorder
from tasks.stage import StageResult
from tasks.summaries import pictures, step_summary

RUN = RunPage("http://mlflow:5000", "7", "run-of-the-report")
PIPELINE = RunPage("http://mlflow:5000", "7", "run-of-the-pipeline")


class Served(NoRecorder):
    """A MLflow server that has all runs."""

    def page(self, key: str) -> RunPage | None:
        return RUN if key == "the key" else None

    def pipeline_page(self) -> RunPage | None:
        return PIPELINE


def report(folder: Path, *, drawn: dict[str, bytes]) -> Report:
    data = Folder(folder / "0")
    write_report_files(data, page="<html>", tables={}, pictures=drawn)
    facts: dict[str, Any] = {
        "kind": "Report",
        "stage": "write_report",
        "stage_version": "1",
        "key": "the key",
        "digest": "d",
        "data": "0",
        "config": {},
        "inputs": {},
        "external": {},
        "files": [data.record(name) for name in data.files()],
        "environment": {},
        "seconds": 1.0,
        "created": "now",
    }
    return Report(data, Marker.model_validate(facts))


@pytest.fixture
def drawn() -> dict[str, bytes]:
    return {name: name.encode() for name in PICTURES}


def test_a_step_leads_to_its_run_and_the_report_to_its_page(tmp_path: Path, drawn: dict[str, bytes]) -> None:
    result = StageResult(report(tmp_path, drawn=drawn), reused=False, seconds=1.5)
    shown = step_summary("write_report", result, Served())
    assert f"| MLflow run | [write_report]({RUN.url}) |" in shown
    assert f"| pipeline in MLflow | [all steps]({PIPELINE.url}) |" in shown
    assert f"| report | [report.html]({RUN.file_page('report.html')}) |" in shown
    without = step_summary("write_report", result, NoRecorder())
    assert "MLflow" not in without and f"| report | `{tmp_path}/0/report.html` |" in without


def test_pictures_are_fetched_from_a_server_or_shown_with_their_bytes(tmp_path: Path, drawn: dict[str, bytes]) -> None:
    found = report(tmp_path, drawn=drawn)
    assert pictures(found, Served()) == {
        name: f"http://mlflow:5000/get-artifact?path={name}&run_uuid=run-of-the-report" for name in PICTURES
    }
    assert pictures(found, NoRecorder())["scores.png"] == "data:image/png;base64,c2NvcmVzLnBuZw=="


def test_a_report_of_before_there_were_pictures_shows_none(tmp_path: Path) -> None:
    assert pictures(report(tmp_path, drawn={}), Served()) == {}


def test_a_report_s_digest_is_that_of_its_tables(drawn: dict[str, bytes]) -> None:
    assert {"report.html", *PICTURES} == Report.undigested
