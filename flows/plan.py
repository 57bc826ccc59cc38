"""What a flow would do: the flow itself, run with a `run` that looks up and never computes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from flows.selection import Selection
from storage.artifact import Artifact, Marker
from storage.errors import CorruptFile
from storage.folder import Folder
from storage.store import ATTEMPT, MARKER, Store
from tasks.stage import PROGRESS, Context, Lookup, Stage, look_up

State = Literal["done", "partial", "stale", "missing", "waits"]
GONE = "its artifact is gone or damaged"


@dataclass(frozen=True)
class Absent:
    """Stands in a plan for the artifact of a step that is not done."""

    step: str


@dataclass(frozen=True)
class StepStatus:
    """What is known of one step.

    Attributes:
        state: done; partial (begun, its work is kept); stale (done before with other settings or inputs); missing
            (never done); waits (for another step, so its key is not known yet).
        percent: of the work, for partial steps that can tell.
        reason: why it is not done, in words.
        artifact: what there is, for done steps.
    """

    step: str
    stage: str
    state: State
    percent: float | None
    reason: str
    artifact: Artifact | None


class StepHistory:
    """The key that each step of a recipe had when it was last done: tells what changed since."""

    def __init__(self, folder: Folder, recipe: str) -> None:
        self._folder = folder
        self._name = f"{recipe}.json"
        try:
            self._keys: dict[str, str] = folder.read_json(self._name)
        except (FileNotFoundError, CorruptFile):
            self._keys = {}

    def get(self, step: str) -> str | None:
        return self._keys.get(step)

    def note(self, step: str, key: str) -> None:
        """Remember the key of a step that is done now."""
        if self._keys.get(step) != key:
            self._keys[step] = key
            self._folder.write_json(self._name, self._keys)


class Planner:
    """A `run` for flows that only looks; afterwards `steps` holds the status of each."""

    def __init__(self, context: Context, history: StepHistory, selection: Selection | None = None) -> None:
        self._context = context
        self._selection = selection or Selection()
        self._history = history
        self.steps: dict[str, StepStatus] = {}

    def __call__(self, step: str, stage: Stage[Any, Any], config: BaseModel, /, **inputs: Any) -> Artifact | Absent:
        status = self._status(step, stage, config, inputs)
        self.steps[step] = status
        return status.artifact or Absent(step)

    @property
    def complete(self) -> bool:
        return all(status.state == "done" for status in self.steps.values())

    def _status(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: Mapping[str, Artifact | Absent | None]
    ) -> StepStatus:
        if given := self._selection.given(step, stage, self._context):
            return StepStatus(step, stage.name, "done", None, "given by --use", given)
        absent = sorted({given.step for given in inputs.values() if isinstance(given, Absent)})
        if absent:
            return StepStatus(step, stage.name, "waits", None, f"for {', '.join(absent)}", None)
        artifacts = {name: given for name, given in inputs.items() if isinstance(given, Artifact)}
        look = look_up(stage, config, inputs=artifacts, runtime=self._context.runtime)
        if found := look.find(self._context.store, self._context.recorder):
            return StepStatus(step, stage.name, "done", None, "", found)
        work = self._context.store.work_folder(look.key)
        if work.exists(ATTEMPT):
            return StepStatus(step, stage.name, "partial", _percent(work), "begun and not finished", None)
        before = self._history.get(step)
        if before == look.key or self._context.store.artifact_folder(look.key).exists(MARKER):
            return StepStatus(step, stage.name, "missing", None, GONE, None)
        reason = what_changed(self._context.store, before, look) if before else None
        if reason:
            return StepStatus(step, stage.name, "stale", None, reason, None)
        return StepStatus(step, stage.name, "missing", None, "never done", None)


def _percent(work: Folder) -> float | None:
    try:
        progress = (work / "state").read_json(PROGRESS)
    except (FileNotFoundError, CorruptFile):
        return None
    return 100.0 * float(progress["done"]) / max(1, int(progress["total"]))


def what_changed(store: Store, key: str, look: Lookup[Any]) -> str | None:
    """The ingredients that differ between an artifact made before and one that is wanted now, by name."""
    try:
        marker = store.marker(key)
    except (FileNotFoundError, CorruptFile):
        return None
    return "; ".join(_differences(marker, look)) or "the stage's inputs changed"


def _differences(marker: Marker, look: Lookup[Any]) -> list[str]:
    changes = []
    if marker.stage_version != str(look.stage.version):
        changes.append(f"stage version {marker.stage_version} -> {look.stage.version}")
    before, now = _flat(marker.config), _flat(look.config.model_dump(mode="json"))
    for name in sorted(before | now):
        if before.get(name) != now.get(name):
            changes.append(f"{name} {before.get(name, 'unset')} -> {now.get(name, 'unset')}")
    for name in sorted({*marker.inputs, *look.inputs}):
        old, new = marker.inputs.get(name), look.inputs.get(name)
        if (old.digest if old else None) != (new.digest if new else None):
            changes.append(f"input {name} has other content")
    for name in sorted({*marker.external, *look.external}):
        if marker.external.get(name) != look.external.get(name):
            changes.append(f"{name} changed")
    return changes


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        return {name: text for key, part in value.items() for name, text in _flat(part, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): json.dumps(value)}
