"""What MLflow hears of a run: one run for the pipeline, one below it for each step that is computed."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from storage.artifact import Marker
from storage.courier import Courier
from storage.folder import Folder
from storage.lease import FileLease, Lease
from storage.limits import model_name
from storage.outbox import Outbox, RunInput, RunRecord, now_ms
from storage.store import Store
from storage.tracking import Tracking, TrackingAway
from storage.tracking_pages import RunPage
from storage.tracking_runs import KEY_TAG
from tasks.step_record import DELIVERY_SECONDS, MlflowRecord, flatten

if TYPE_CHECKING:
    from tasks.stage import Lookup

log = logging.getLogger(__name__)

GONE = "the process that was at it is gone"


class ProcessGone(BaseException):
    """The end of a step whose process could not say it itself."""


class StageRecord(Protocol):
    """The record of one step in the making. See storage.outbox.Outbox for the first four."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None: ...
    def commit(self) -> int: ...
    def release(self, position: int) -> None: ...
    def truncate(self, position: int) -> None: ...

    def stopped(self, error: BaseException) -> None:
        """The step failed or was stopped."""

    def finished(self, marker: Marker, folder: Folder) -> bool:
        """The artifact is committed; gives whether nobody needs the record's files any more."""


class Recorder(Protocol):
    """Keeps records of steps, and finds what others recorded."""

    def open(self, folder: Folder, *, step: str, look: Lookup[Any]) -> StageRecord: ...

    def find(self, key: str) -> list[str]:
        """URIs of artifacts of that key, newest first."""

    def key_of(self, run_id: str) -> str | None:
        """The key of what a run of MLflow made, or None."""

    def reused(self, step: str, key: str) -> None:
        """A step was not computed, because the artifact of this key is there."""

    def register(self, key: str) -> None:
        """The encoder of this key is what the pipeline is for: it becomes a version of the recipe's model."""

    def page(self, key: str) -> RunPage | None:
        """Where a browser finds the run that made the artifact of a key."""

    def pipeline_page(self) -> RunPage | None:
        """Where a browser finds the run of the pipeline."""


class NoRecord:
    """A step that nobody is told about."""

    def log(self, metrics: Mapping[str, float], *, step: int) -> None: ...
    def commit(self) -> int:
        return 0

    def release(self, position: int) -> None: ...
    def truncate(self, position: int) -> None: ...
    def stopped(self, error: BaseException) -> None: ...
    def finished(self, marker: Marker, folder: Folder) -> bool:
        return True


class NoRecorder:
    """Runs without MLflow."""

    def open(self, folder: Folder, *, step: str, look: Lookup[Any]) -> NoRecord:
        return NoRecord()

    def find(self, key: str) -> list[str]:
        return []

    def key_of(self, run_id: str) -> str | None:
        return None

    def reused(self, step: str, key: str) -> None: ...
    def register(self, key: str) -> None: ...
    def page(self, key: str) -> RunPage | None:
        return None

    def pipeline_page(self) -> RunPage | None:
        return None


class MlflowRecorder:
    """Records in MLflow, through outboxes, so that nothing waits for a server and no outage loses anything.

    Args:
        experiment: name of MLflow's experiment: the recipe's.
        pipelines: folder of the outboxes of pipelines' runs.
    """

    def __init__(self, tracking: Tracking, *, experiment: str, pipelines: Folder) -> None:
        self.tracking = tracking
        self._experiment = experiment
        self._pipelines = pipelines
        self._parent: Outbox | None = None
        self._alive: Lease | None = None
        self._page: RunPage | None = None
        self._warned = False

    def begin(self, *, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run of a pipeline; steps recorded from here on lie below it."""
        uid = uuid.uuid4().hex
        self._alive = self._pipeline_lease(uid)
        self._alive.__enter__()
        self._parent = Outbox(self._pipelines / uid)
        self._parent.open(
            RunRecord(
                uid=uid,
                name=self._experiment,
                experiment=self._experiment,
                params=flatten(params),
                tags=dict(tags),
                start_time=now_ms(),
            )
        )

    def end(self, error: BaseException | None, *, scores: Mapping[str, float] | None = None) -> None:
        """Close the run of the pipeline, with what it came to."""
        if self._parent is None:
            return
        if error is None:
            self._parent.log(scores or {}, step=0)
            self._parent.finish("FINISHED")
        else:
            self._parent.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        self._deliver_pipeline(self._parent)
        self._parent = None
        if self._alive is not None:
            self._alive.__exit__(None, None, None)

    def _deliver_pipeline(self, outbox: Outbox) -> None:
        sent = Courier(self.tracking, outbox).close(timeout=DELIVERY_SECONDS)
        self._page = self.tracking.page_of(outbox)
        if sent:
            shutil.rmtree(outbox.folder.path)

    def _pipeline_lease(self, uid: str) -> Lease:
        """Held while the process of a pipeline lives."""
        return FileLease(Folder(self._pipelines.path.parent / "leases"), uid, wait=0)

    def open(self, folder: Folder, *, step: str, look: Lookup[Any]) -> MlflowRecord:
        outbox = Outbox(folder)
        parent = self._parent.record() if self._parent else None
        outbox.open(
            RunRecord(
                uid=uuid.uuid4().hex,
                name=step,
                experiment=self._experiment,
                parent=parent.uid if parent else None,
                params=flatten(look.config.model_dump(mode="json")),
                tags={
                    KEY_TAG: look.key,
                    "graft.stage": look.stage.name,
                    "graft.stage_version": str(look.stage.version),
                    "graft.step": step,
                    **{f"graft.input.{name}": artifact.uri for name, artifact in look.inputs.items()},
                },
                inputs=tuple(
                    RunInput(name=name, digest=artifact.digest, uri=artifact.uri, context=look.stage.name)
                    for name, artifact in look.inputs.items()
                ),
                start_time=now_ms(),
            )
        )
        record = MlflowRecord(outbox, Courier(self.tracking, outbox, parent=self._parent))
        record.sample()
        return record

    def find(self, key: str) -> list[str]:
        try:
            return [found.uri for found in self.tracking.find(key)]
        except TrackingAway as error:
            self._warn_once("%s. Only the store of this machine is searched", error)
            return []

    def page(self, key: str) -> RunPage | None:
        try:
            return self.tracking.page_of_key(key)
        except TrackingAway as error:
            self._warn_once("%s. Summaries have no links to it", error)
            return None

    def pipeline_page(self) -> RunPage | None:
        return self._page if self._parent is None else self.tracking.page_of(self._parent)

    def _warn_once(self, message: str, error: TrackingAway) -> None:
        if not self._warned:
            log.warning(message, error)
        self._warned = True

    def key_of(self, run_id: str) -> str | None:
        return self.tracking.key_of(run_id)

    def reused(self, step: str, key: str) -> None:
        if self._parent is not None:
            self._parent.mark_step(step, key=key)

    def register(self, key: str) -> None:
        if self._parent is not None:
            self._parent.mark_model(model_name(self._experiment), key=key)

    def settle(self, store: Store) -> None:
        """Send what runs before this one could not: they were killed, or MLflow was away."""
        with ExitStack() as leases:
            begun = (self._pipelines / uid for uid in self._pipelines.place.folders())
            pipelines = [Outbox(folder) for folder in begun if self._is_left(folder, leases)]
            sent = [outbox for outbox in pipelines if self._send_pipeline(outbox)]
            for key in store.begun():
                self._settle_stage(store, key)
            for outbox in sent:
                # What its steps reuse may have been among the stages sent just now: said again, it is looked up again.
                outbox.add_tags(outbox.tags())
                self._deliver_pipeline(outbox)

    def _is_left(self, folder: Folder, leases: ExitStack) -> bool:
        """Whether the process of a pipeline is gone; if so, its lease is held from here on."""
        try:
            leases.enter_context(self._pipeline_lease(folder.place.name))
        except TimeoutError:
            return False
        return True

    def _send_pipeline(self, outbox: Outbox) -> bool:
        if outbox.end() is None:
            outbox.finish("KILLED")
        return Courier(self.tracking, outbox).close(timeout=DELIVERY_SECONDS)

    def _settle_stage(self, store: Store, key: str) -> None:
        try:
            with store.lease(key, wait=0):
                outbox = Outbox(store.work_folder(key) / "outbox")
                marker = store.committed_attempt(key)
                if marker is not None:
                    data = store.artifact_folder(key) / marker.data
                    if outbox.record() is None or MlflowRecord(outbox, Courier(self.tracking, outbox)).finished(
                        marker, data
                    ):
                        store.drop_work(key)
                elif outbox.record() is not None and outbox.end() is None:
                    # Whoever takes the work up again continues this run.
                    MlflowRecord(outbox, Courier(self.tracking, outbox)).stopped(ProcessGone(GONE))
        except TimeoutError:
            # Its own process is still at it.
            return
