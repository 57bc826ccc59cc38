"""Runs of MLflow, found by the tags that Graft gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UID_TAG = "graft.run_uid"
KEY_TAG = "graft.key"
URI_TAG = "graft.uri"
PARENT_TAG = "mlflow.parentRunId"

# The most that MLflow lists at once; its default would hide experiments beyond a thousand.
MAX_EXPERIMENTS = 50_000


def tagged_runs(client: MlflowClient, tag: str, value: str, *, finished: bool = False) -> list[Run]:
    """Runs with a tag, of all experiments: all by their start, or the finished ones, newest first."""
    status = " AND attributes.status = 'FINISHED'" if finished else ""
    order = "attributes.end_time DESC" if finished else "attributes.start_time ASC"
    return list(client.search_runs(experiments(client), f"tags.`{tag}` = '{value}'{status}", order_by=[order]))


def experiments(client: MlflowClient) -> list[str]:
    """The ids of all experiments."""
    return [one.experiment_id for one in client.search_experiments(max_results=MAX_EXPERIMENTS)]
