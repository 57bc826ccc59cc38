"""Write one page that answers: did the teacher's knowledge arrive in the student?"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from models.probes import paired_interval
from storage.artifact import Artifact
from storage.centroids import Centroids
from storage.dataset_index import DatasetIndex
from storage.labels import Labels
from storage.metrics import Metrics
from storage.reports import Report, write_report_files
from tasks.report_page import draw, render
from tasks.stage import Work, stage

ENCODERS = {
    "teacher": "teacher (pretext task)",
    "student": "student (teacher's clusters)",
    "direct": "student's network, pretext task directly",
    "random": "student's network, random weights",
}


class WriteReportConfig(BaseModel, frozen=True, extra="forbid"):
    """What the page says."""

    title: str = Field(description="Heading of the page.")


@stage(produces=Report, version=1)
def write_report(
    config: WriteReportConfig,
    work: Work,
    *,
    centroids: Centroids,
    labels: Labels,
    student_images: DatasetIndex,
    **results: Metrics,
) -> None:
    """Compare all encoders on every task, and show what the clusters hold.

    Args:
        results: `probe_TASK_ENCODER` and `finetune_TASK_ENCODER`.
    """
    tables = {
        "scores": score_table(results),
        "differences": difference_table(results),
        "clusters": cluster_table(centroids, labels),
        "lineage": [
            {"artifact": name, "kind": artifact.kind, "key": artifact.key, "digest": artifact.digest}
            for name, artifact in _all(centroids, labels, student_images, results).items()
        ],
    }
    pictures = draw(tables, labels=labels, images=student_images, runtime=work.runtime)
    page = render(config.title, tables, pictures=pictures)
    write_report_files(work.data, page=page, tables=tables, pictures=pictures)


def _all(
    centroids: Centroids, labels: Labels, student_images: DatasetIndex, results: dict[str, Metrics]
) -> dict[str, Artifact]:
    return {"centroids": centroids, "labels": labels, "student_images": student_images, **results}


def _parts(name: str) -> tuple[str, str]:
    """`probe_my_task_student` is task `my_task`, encoder `student`."""
    task, encoder = name.split("_", 1)[1].rsplit("_", 1)
    return task, encoder


def score_table(results: dict[str, Metrics]) -> list[dict[str, Any]]:
    """One row a score: task, encoder, score, value, low, high, images, protocol."""
    rows = []
    for name, metrics in results.items():
        task, encoder = _parts(name)
        for score, numbers in metrics.values["scores"].items():
            rows.append(
                {
                    "task": task,
                    "encoder": ENCODERS[encoder],
                    "score": score,
                    "value": numbers["value"],
                    "low": numbers["low"],
                    "high": numbers["high"],
                    "num_images": numbers["num_images"],
                    "protocol": metrics.values["protocol"],
                    "split": metrics.values["split"],
                }
            )
    return rows


def score_metrics(tables: dict[str, Any]) -> dict[str, float]:
    """The scores by name, `TASK/SCORE/ENCODER`, so that runs can be compared by them."""
    names = {shown: name for name, shown in ENCODERS.items()}
    return {f"{row['task']}/{row['score']}/{names[row['encoder']]}": row["value"] for row in tables["scores"]}


def difference_table(results: dict[str, Metrics]) -> list[dict[str, Any]]:
    """Student minus each of the others, image by image, with a 95 % interval; `shown` says that it excludes 0."""
    rows = []
    for name, metrics in results.items():
        task, encoder = _parts(name)
        if encoder == "student":
            continue
        student = results[f"{name.removesuffix(encoder)}student"]
        for score in metrics.values["scores"]:
            ours, theirs = student.outcomes(score), metrics.outcomes(score)
            difference = paired_interval(ours["correct"], theirs["correct"])
            rows.append(
                {
                    "task": task,
                    "score": score,
                    "against": ENCODERS[encoder],
                    "difference": difference.difference,
                    "low": difference.low,
                    "high": difference.high,
                    "shown": not difference.low <= 0 <= difference.high,
                }
            )
    return rows


def cluster_table(centroids: Centroids, labels: Labels) -> dict[str, Any]:
    """Sizes on both datasets, inertia of each iteration, health, and what was done about empty clusters."""
    return {
        "clustered_sizes": centroids.sizes().tolist(),
        "labelled_sizes": labels.facts["sizes"],
        "num_rows": labels.facts["num_rows"],
        "num_labelled": labels.facts["num_labelled"],
        "inertia": centroids.facts["inertia"],
        "health": centroids.facts["health"],
        "empty_policy": centroids.facts["empty_policy"],
        "repairs": centroids.facts["repairs"],
    }
