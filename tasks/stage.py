"""The one idea: a stage is a pure function of a config and artifacts; run_stage finds, resumes, computes and commits.

A stage body knows nothing of any of this: it writes to `work` and returns.

    key found in the store, or through MLflow in another   -> the artifact, nothing runs
    work folder there                                      -> the body goes on in it
    else                                                   -> the body begins
    then the marker, last; then MLflow hears of the end
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from storage.artifact import Artifact, Marker, artifact_key, content_digest
from storage.checkpoints import load_checkpoint, save_checkpoint
from storage.errors import DataCollected, NewerArtifact
from storage.folder import FileRecord, Folder
from storage.lease import Lease, LeasedFolder
from storage.ledger import Ledger
from storage.store import Store, open_artifact
from tasks import freed_memory
from tasks.environment import environment
from tasks.ranks import run_on_ranks
from tasks.recording import Recorder, StageRecord
from tasks.runtime import Runtime

log = logging.getLogger(__name__)
C = TypeVar("C", bound=BaseModel)
A = TypeVar("A", bound=Artifact)

PROGRESS = "progress.json"


class Reporter(Protocol):
    """Who is told how far a step is."""

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None: ...


@dataclass(frozen=True)
class Stage(Generic[C, A]):
    """A stage: its name, its version, what it makes, and its body.

    Attributes:
        version: to be raised by hand when equal config and inputs give another result than before.
        ingredients: what the result depends on besides config and inputs (the bytes of a source, the version of a
            method): name -> digest. It is asked each time, so it must be cheap when nothing changed.
        splits: whether the work of a config can be split over ranks; the body then runs on each of them.
    """

    name: str
    version: int
    produces: type[A]
    body: Callable[..., None]
    ingredients: Callable[[C, Runtime], Mapping[str, str]]
    splits: Callable[[C], bool] = lambda _config: False

    def key(self, config: C, *, inputs: Mapping[str, Artifact], external: Mapping[str, str]) -> str:
        """The key of what this stage makes of these."""
        return artifact_key(
            self.name,
            version=str(self.version),
            config=config.model_dump(mode="json"),
            inputs={name: artifact.digest for name, artifact in inputs.items()},
            external=external,
        )


def _no_ingredients(_config: Any, _runtime: Runtime) -> Mapping[str, str]:
    return {}


def stage(
    *,
    produces: type[A],
    version: int,
    ingredients: Callable[[Any, Runtime], Mapping[str, str]] = _no_ingredients,
    splits: Callable[[Any], bool] = lambda _config: False,
) -> Callable[[Callable[..., None]], Stage[Any, A]]:
    """Make a stage of a body `(config, work, *, name: Artifact, ...) -> None`; the stage bears the body's name."""

    def decorate(body: Callable[..., None]) -> Stage[Any, A]:
        return Stage(body.__name__, version, produces, body, ingredients, splits)

    return decorate


class Work:
    """What a stage body works with.

    Attributes:
        data: what becomes the artifact.
        state: scratch that survives a kill; removed after the commit.
        ledger: which units are done.
        runtime: speed and place.
        key: the key of the artifact in the making.
        last_metrics: the last value of each metric noted since this process took the work up.
    """

    def __init__(self, *, key: str, data: Folder, state: Folder, record: StageRecord, context: Context, step: str):
        self.key = key
        self.data = data
        self.state = state
        self.runtime = context.runtime
        self.ledger = Ledger(state / "ledger", data=data)
        self._record = record
        self._reporter = context.reporter
        self._step = step
        self.last_metrics: dict[str, float] = {}
        self._last_progress: dict[str, Any] = {}

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Note metrics; they are sent once the next checkpoint, or the end, is kept."""
        self._record.log(metrics, step=step)
        self.last_metrics.update(metrics)

    def progress(self, done: int, total: int, *, unit: str) -> None:
        """Say how far the work is."""
        self._last_progress = {"done": done, "total": total, "unit": unit}
        self._reporter.progress(self._step, done=done, total=total, unit=unit)

    def commit(self, unit: str, *, records: list[FileRecord], **facts: Any) -> None:
        """Say that a unit is done and kept; see Ledger.commit."""
        self.ledger.commit(unit, records=records, **facts)
        freed_memory.give_back()
        self._keep_progress()

    def save(self, state: dict[str, Any]) -> None:
        """Keep a checkpoint in place of the last one, with the metrics noted so far."""
        position = self._record.commit()
        save_checkpoint(self.state, {"state": state, "outbox": position})
        self._record.release(position)
        self._keep_progress()

    def load(self) -> dict[str, Any] | None:
        """The last checkpoint, or None at the beginning; metrics noted after it are dropped.

        Raises:
            CorruptFile: there is one and it cannot be read.
        """
        checkpoint = load_checkpoint(self.state)
        self._record.truncate(checkpoint["outbox"] if checkpoint else 0)
        state: dict[str, Any] | None = checkpoint["state"] if checkpoint else None
        return state

    def _keep_progress(self) -> None:
        if self._last_progress:
            self.state.write_json(PROGRESS, self._last_progress)


@dataclass(frozen=True)
class Context:
    """Where a run keeps, records and reports."""

    runtime: Runtime
    store: Store
    recorder: Recorder
    reporter: Reporter


@dataclass(frozen=True)
class StageResult(Generic[A]):
    """An artifact, whether it had to be computed, and the last value of each metric that was noted meanwhile."""

    artifact: A
    reused: bool
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Lookup(Generic[A]):
    """A stage with all that its key is made of."""

    stage: Stage[Any, A]
    config: BaseModel
    inputs: Mapping[str, Artifact]
    external: Mapping[str, str]
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.stage.key(self.config, inputs=self.inputs, external=self.external)

    def find(self, store: Store, recorder: Recorder) -> A | None:
        """The artifact, if it is there; see find_artifact."""
        return find_artifact(self.stage.produces, self.key, store=store, recorder=recorder)


def find_artifact(kind: type[A], key: str, *, store: Store, recorder: Recorder) -> A | None:
    """The artifact of a key, if it is complete in the store or, by what MLflow knows, in another."""
    if found := store.find(kind, key):
        return found
    for uri in recorder.find(key):
        try:
            return open_artifact(kind, store.folder_at(uri))
        except DataCollected:
            continue
        except (OSError, ValueError, NewerArtifact) as error:
            # In a store that cannot be reached from here, removed, or damaged.
            log.warning("MLflow knows of %s, which is not usable: %s", uri, error)
    return None


def look_up(
    stage: Stage[Any, A], config: BaseModel, *, inputs: Mapping[str, Artifact | None], runtime: Runtime
) -> Lookup[A]:
    """The stage with its key; inputs that are None are left out."""
    given = {name: artifact for name, artifact in inputs.items() if artifact is not None}
    return Lookup(stage, config, given, stage.ingredients(config, runtime))


def run_stage(
    stage: Stage[Any, A],
    config: BaseModel,
    *,
    inputs: Mapping[str, Artifact | None],
    context: Context,
    step: str | None = None,
    force: bool = False,
) -> StageResult[A]:
    """Give the artifact of a stage: found, resumed or computed.

    Args:
        inputs: argument name of the body -> artifact.
        step: what this use of the stage is called; the stage's name by default.
        force: compute although the artifact is there.
    Raises:
        CorruptFile: an input is damaged; names the file and the step to force.
        LeaseLost: this process stood still so long that another took over.
        StoreUnwritable: the disk is full or read-only.
        StoreAway: the object store does not answer for minutes, or refuses.
    """
    look = look_up(stage, config, inputs=inputs, runtime=context.runtime)
    if not force and (found := look.find(context.store, context.recorder)):
        return StageResult(found, reused=True)
    asked = datetime.now(UTC)
    with context.store.lease(look.key) as lease:
        # While this process waited for the lease, its holder may have made the very same.
        found = look.find(context.store, context.recorder)
        if found and (not force or datetime.fromisoformat(found.marker.created) > asked):
            return StageResult(found, reused=True)
        if committed := context.store.committed_attempt(look.key):
            # What was committed is to be made anew: its scratch must not be taken for that of the new attempt.
            log.debug("dropping the scratch of the committed attempt %s", committed.data)
            context.store.drop_work(look.key)
        for artifact in look.inputs.values():
            artifact.verify(deep=artifact.verified_whole)
        return _compute(look, context=context, lease=lease, step=step or stage.name)


def _compute(look: Lookup[A], *, context: Context, lease: Lease, step: str) -> StageResult[A]:
    store, key = context.store, look.key
    state = LeasedFolder(store.work_folder(key).place, lease=lease)
    data = store.open_attempt(key, lease=lease)
    record = context.recorder.open(state / "outbox", step=step, look=look)
    work = Work(key=key, data=data, state=state / "state", record=record, context=context, step=step)
    started = time.monotonic()
    try:
        if context.runtime.ranks > 1 and look.stage.splits(look.config):
            run_on_ranks(look, work, record=record, lease=lease, step=step)
        else:
            look.stage.body(look.config, work, **look.inputs)
        marker = _marker(look, work, seconds=time.monotonic() - started)
        record.commit()
        store.commit(marker, lease=lease)
    except BaseException as error:
        record.stopped(error)
        raise
    artifact = look.stage.produces(Folder(data.place, records=marker.files), marker)
    if record.finished(marker, artifact.folder):
        store.drop_work(key)
    return StageResult(artifact, reused=False, seconds=time.monotonic() - started, metrics=work.last_metrics)


def _marker(look: Lookup[A], work: Work, *, seconds: float) -> Marker:
    known = work.ledger.records()
    files = [known.get(name) or work.data.record(name) for name in work.data.files()]
    return Marker(
        kind=look.stage.produces.kind,
        stage=look.stage.name,
        stage_version=str(look.stage.version),
        key=look.key,
        digest=content_digest(files, undigested=look.stage.produces.undigested),
        data=work.data.place.name,
        config=look.config.model_dump(mode="json"),
        inputs={name: artifact.ref() for name, artifact in look.inputs.items()},
        external=dict(look.external),
        files=files,
        environment=environment(work.runtime),
        seconds=seconds,
        created=datetime.now(UTC).isoformat(),
    )
