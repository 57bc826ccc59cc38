"""The only door to Prefect below the flows: a step is a task run, its progress an artifact, its result a state."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from storage.errors import StoreUnwritable
from storage.reports import PICTURES, Report
from tasks.recording import Recorder
from tasks.stage import StageResult
from tasks.summaries import pictures, step_summary

log = logging.getLogger(__name__)

# An update costs some 10 ms of the stage's time.
SECONDS_BETWEEN_UPDATES = 2.0
RETRIES = 2
RETRY_SECONDS = 5


def as_task(step: str, call: Callable[[], StageResult[Any]], *, recorder: Recorder) -> StageResult[Any]:
    """Run a step as a Prefect task run of that name; gives what the call gives.

    Called directly, not submitted: only so does a cancelled flow run interrupt it, and a checkpoint is kept. The store
    remembers results, so Prefect need not; a retry resumes.

    Args:
        recorder: knows where MLflow shows the step.
    """

    def body() -> State[StageResult[Any]]:
        result = call()
        _show(step, result, recorder)
        name = "Reused" if result.reused else "Completed"
        return Completed(data=result, name=name, message=f"{step}: {result.artifact!r}")

    run = task(
        name=step,
        task_run_name=step,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=_is_worth_a_retry,
    )(body)
    state: Any = run(return_state=True)
    result: StageResult[Any] = state.result()
    return result


def _is_worth_a_retry(task: Any, _run: Any, state: State[Any]) -> bool:
    """Wrong input and a full disk are no better a minute later."""
    try:
        state.result()
    except (ValueError, StoreUnwritable):
        return False
    except Exception as error:
        log.warning("%s failed and is tried again in %d s: %s", task.name, RETRY_SECONDS, error)
        return True
    return False


def _show(step: str, result: StageResult[Any], recorder: Recorder) -> None:
    """Put a summary, the last values of curves, and a report's pictures beside the task run."""
    summary = step_summary(step, result, recorder)
    create_markdown_artifact(summary, key=_artifact_key(step, "result"), description=f"Result of {step}")
    if result.metrics:
        table = [{"metric": name, "last value": value} for name, value in sorted(result.metrics.items())]
        create_table_artifact(table, key=_artifact_key(step, "metrics"), description=f"Last values of {step}")
    if isinstance(result.artifact, Report):
        for name, address in pictures(result.artifact, recorder).items():
            key = _artifact_key(step, name.removesuffix(".png"))
            if address.startswith("http"):
                create_image_artifact(address, key=key, description=PICTURES[name])
            else:
                # An image's artifact shows its address as well, and this one is the whole picture.
                create_markdown_artifact(f"![{PICTURES[name]}]({address})", key=key, description=PICTURES[name])


def _artifact_key(step: str, what: str) -> str:
    """Prefect wants lower-case letters, digits and dashes."""
    return f"{step}-{what}".lower().replace("_", "-")


class ProgressArtifacts:
    """Shows the progress of each step in Prefect's interface, at most once in a while."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._updated: dict[str, float] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        """Create or update the progress artifact of a step; a server that is away is no reason to stop the work."""
        now = time.monotonic()
        if done < total and now - self._updated.get(step, -SECONDS_BETWEEN_UPDATES) < SECONDS_BETWEEN_UPDATES:
            return
        self._updated[step] = now
        percent = 100.0 * done / max(1, total)
        began, from_done = self._began.setdefault(step, (now, done))
        pace = _pace(done - from_done, seconds=now - began, left=total - done, unit=unit)
        description = f"{step}: {done:,} of {total:,} {unit}{pace}"
        try:
            if step in self._artifacts:
                update_progress_artifact(self._artifacts[step], progress=percent, description=description)
            else:
                key = _artifact_key(step, "progress")
                created = create_progress_artifact(percent, key=key, description=description)
                assert isinstance(created, UUID)
                self._artifacts[step] = created
        except Exception as error:
            log.warning("the progress of %s could not be shown in Prefect: %s", step, error)


def _pace(done: int, *, seconds: float, left: int, unit: str) -> str:
    """How fast the work goes and how long it will take; nothing before that can be told."""
    if done <= 0 or seconds <= 0:
        return ""
    rate = done / seconds
    return f", {rate:,.1f} {unit}/s, {timedelta(seconds=round(left / rate))} left"
