"""What MLflow hears of a run: one run for the pipeline, one below it for each step that is computed."""

from __future__ import annotations

import json
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
from storage.outbox import Outbox, RunInput, RunRecord, now_ms
from storage.store import MARKER, Store
from storage.tracking import KEY_TAG, URI_TAG, Tracking, TrackingAway

if TYPE_CHECKING:
    from tasks.stage import Lookup

log = logging.getLogger(__name__)

DELIVERY_SECONDS = 30.0
# Larger files are found by their artifact's URI.
SMALL_FILE_BYTES = 64 * 2**20
SMALL_FILES = (".json", ".html", ".png", ".safetensors")


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


class MlflowRecord:
    """One step's outbox, and the courier that sends it."""

    def __init__(self, outbox: Outbox, courier: Courier) -> None:
        self._outbox = outbox
        self._courier = courier
        courier.signal()

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._outbox.log(metrics, step=step)

    def commit(self) -> int:
        return self._outbox.commit()

    def release(self, position: int) -> None:
        self._outbox.release(position)
        self._courier.signal()

    def truncate(self, position: int) -> None:
        self._outbox.truncate(position)

    def stopped(self, error: BaseException) -> None:
        failed = isinstance(error, Exception)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        try:
            self._outbox.finish("FAILED" if failed else "KILLED", tags={"graft.error": reason})
        except Exception as second:
            # The first error is the one to show: this one follows from it (a full disk, a lost lease).
            log.warning("the end of the step could not be recorded: %s", second)
            return
        self._courier.close(timeout=DELIVERY_SECONDS)

    def finished(self, marker: Marker, folder: Folder) -> bool:
        self._outbox.finish("FINISHED", tags=_result_tags(marker, folder), files=_small_files(marker, folder))
        return self._courier.close(timeout=DELIVERY_SECONDS)


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

    def end(self, error: BaseException | None) -> None:
        """Close the run of the pipeline."""
        if self._parent is None:
            return
        if error is None:
            self._parent.finish("FINISHED")
        else:
            self._parent.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        self._deliver_pipeline(self._parent)
        self._parent = None
        if self._alive is not None:
            self._alive.__exit__(None, None, None)

    def _deliver_pipeline(self, outbox: Outbox) -> None:
        if Courier(self.tracking, outbox).close(timeout=DELIVERY_SECONDS):
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
        return MlflowRecord(outbox, Courier(self.tracking, outbox, parent=self._parent))

    def find(self, key: str) -> list[str]:
        try:
            return [found.uri for found in self.tracking.find(key)]
        except TrackingAway as error:
            if not self._warned:
                log.warning("%s. Only the store of this machine is searched", error)
            self._warned = True
            return []

    def key_of(self, run_id: str) -> str | None:
        return self.tracking.key_of(run_id)

    def reused(self, step: str, key: str) -> None:
        if self._parent is not None:
            self._parent.mark_step(step, key=key)

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


def _result_tags(marker: Marker, folder: Folder) -> dict[str, str]:
    return {
        URI_TAG: folder.place.parent.uri,
        "graft.digest": marker.digest,
        "graft.kind": marker.kind,
        "graft.seconds": f"{marker.seconds:.1f}",
    }


def _small_files(marker: Marker, folder: Folder) -> dict[str, str]:
    small = [file for file in marker.files if file.path.endswith(SMALL_FILES) and file.size <= SMALL_FILE_BYTES]
    files = {file.path: folder.at(file.path) for file in small if "zarr.json" not in file.path}
    return {MARKER: folder.place.parent.address(MARKER), **files}


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow's flat params: {"a": {"b": 1}} gives {"a.b": "1"}."""
    if isinstance(value, Mapping) and value:
        parts = (flatten(part, f"{prefix}{name}.") for name, part in value.items())
        return {name: text for part in parts for name, text in part.items()}
    return {prefix.rstrip("."): value if isinstance(value, str) else json.dumps(value)}
