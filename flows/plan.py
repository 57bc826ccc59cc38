"""What a flow would do: the flow itself, run with a `run` that looks up and never computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel

from flows.selection import Selection
from storage.artifact import Artifact, Marker
from storage.errors import CorruptFile
from storage.folder import Folder
from storage.store import ATTEMPT, MARKER, Store
from tasks.stage import PROGRESS, Context, Lookup, Stage, look_up

State = Literal["done", "collected", "partial", "stale", "missing", "waits"]
# The states of steps that leave nothing to do.
THERE: frozenset[State] = frozenset({"done", "collected"})
GONE = "its artifact is gone or damaged"
NOT_NEEDED = "its data was collected, and nothing needs it"


@dataclass(frozen=True)
class Absent:
    """Stands in a plan for the artifact of a step that is not done."""

    step: str


@dataclass(frozen=True)
class Collected:
    """Stands in a flow for an artifact whose data was collected: its digest is enough for what lies below and is there.

    Attributes:
        artifact: nothing can be read from it.
        stage, config, inputs: what makes it again, where something below has to be computed.
    """

    step: str
    artifact: Artifact
    stage: Stage[Any, Any]
    config: BaseModel
    inputs: Mapping[str, Artifact | Collected | None]


def named(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a step as its key needs them: by name and digest, whether there is data or not."""
    return {name: given.artifact if isinstance(given, Collected) else given for name, given in inputs.items()}


@dataclass(frozen=True)
class StepStatus:
    """What is known of one step.

    Attributes:
        state: done; collected (done, its data removed, and nothing needs it); partial (begun, its work is kept); stale
            (done before with other settings or inputs); missing (never done); waits (for another step, so its key is
            not known yet).
        percent: of the work, for partial steps that can tell.
        reason: why it is not done, in words.
        artifact: what there is, for done steps.
        key: of the artifact, where it is known.
    """

    step: str
    stage: str
    state: State
    percent: float | None
    reason: str
    artifact: Artifact | None
    key: str | None = None


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

    def __call__(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, /, **inputs: Any
    ) -> Artifact | Collected | Absent:
        if given := self._selection.given(step, stage, self._context):
            self.steps[step] = StepStatus(step, stage.name, "done", None, "given by --use", given, given.key)
            return given
        absent = sorted({given.step for given in inputs.values() if isinstance(given, Absent)})
        if absent:
            self.steps[step] = StepStatus(step, stage.name, "waits", None, f"for {', '.join(absent)}", None)
            return Absent(step)
        look = look_up(stage, config, inputs=named(inputs), runtime=self._context.runtime)
        if artifact := self._context.store.find_collected(stage.produces, look.key):
            self.steps[step] = StepStatus(step, stage.name, "collected", None, NOT_NEEDED, None, look.key)
            collected = Collected(step, artifact, stage, config, inputs)
            if self._selection.names(step):
                self._need({step: collected}, by="a run of it alone")
            return collected
        status = self.steps[step] = self._status(step, look)
        if status.state != "done":
            self._need(inputs, by=step)
        return status.artifact or Absent(step)

    def follow(self, flow: Callable[[Planner], Any]) -> None:
        """Look at what a flow says. What it is for is needed: the artifact that it gives."""
        self._need({"outcome": flow(self)}, by="who runs it")

    @property
    def complete(self) -> bool:
        return all(status.state in THERE for status in self.steps.values())

    @property
    def num_to_run(self) -> int:
        """Number of steps that a run goes through: those asked for, but for what was collected and is not needed."""
        wanted = [status for step, status in self.steps.items() if self._selection.wants(step)]
        return sum(status.state != "collected" for status in wanted)

    @property
    def keys(self) -> dict[str, str]:
        """The key of each step, where it is known."""
        return {step: status.key for step, status in self.steps.items() if status.key}

    def _need(self, inputs: Mapping[str, Any], *, by: str) -> None:
        """What is read must be there: what was collected is to be made again, with all that it reads."""
        for given in inputs.values():
            if isinstance(given, Collected) and self.steps[given.step].state == "collected":
                reason = f"collected, and {by} needs it"
                self.steps[given.step] = replace(self.steps[given.step], state="missing", reason=reason)
                self._need(given.inputs, by=given.step)

    def _status(self, step: str, look: Lookup[Any]) -> StepStatus:
        name, key = look.stage.name, look.key
        if found := look.find(self._context.store, self._context.recorder):
            return StepStatus(step, name, "done", None, "", found, key)
        work = self._context.store.work_folder(key)
        if work.exists(ATTEMPT):
            return StepStatus(step, name, "partial", _percent(work), "begun and not finished", None, key)
        before = self._history.get(step)
        if before == key or self._context.store.artifact_folder(key).exists(MARKER):
            return StepStatus(step, name, "missing", None, GONE, None, key)
        reason = what_changed(self._context.store, before, look) if before else None
        state: State = "stale" if reason else "missing"
        return StepStatus(step, name, state, None, reason or "never done", None, key)


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
