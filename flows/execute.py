"""Doing what a flow says: a `run` that finds, resumes or computes each step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from flows.plan import Absent, StepHistory
from flows.selection import CannotRun, Selection
from storage.artifact import Artifact
from tasks.stage import Context, Stage, StageResult, look_up, run_stage

log = logging.getLogger(__name__)


Around = Callable[[str, Callable[[], StageResult[Any]]], StageResult[Any]]


def directly(_step: str, call: Callable[[], StageResult[Any]]) -> StageResult[Any]:
    """Run a step in this very process, without an orchestrator."""
    return call()


@dataclass
class Executor:
    """A `run` for flows that does the work; afterwards `results` holds what each step gave.

    Attributes:
        around: how a step's call is made (directly, or as a task of an orchestrator).
        on_start: told the name of a step before it.
        on_done: told a step's result.
    """

    context: Context
    history: StepHistory
    selection: Selection
    around: Around = directly
    on_start: Callable[[str], None] = lambda step: None
    on_done: Callable[[str, StageResult[Any]], None] = lambda step, result: None
    results: dict[str, StageResult[Any]] = field(default_factory=dict)
    _below: set[int] = field(default_factory=set)
    _forced: set[str] = field(default_factory=set)

    def __call__(self, step: str, stage: Stage[Any, Any], config: BaseModel, /, **inputs: Any) -> Artifact | Absent:
        if given := self.selection.given(step, stage, self.context):
            return given
        absent = sorted({given.step for given in inputs.values() if isinstance(given, Absent)})
        if not self.selection.wants(step):
            return self._found_or_absent(step, stage, config, inputs, absent)
        if absent:
            raise CannotRun(
                f"--only {step} needs {', '.join(absent)}, which must be done and is not; run without --only, or with "
                + " ".join(f"--only {name}" for name in [*absent, step])
            )
        result = self._compute(step, stage, config, inputs)
        self.results[step] = result
        self.history.note(step, result.artifact.key)
        self.on_done(step, result)
        artifact: Artifact = result.artifact
        if self.selection.begins_at(step) or self._is_below(inputs):
            self._below.add(id(artifact))
        return artifact

    def _compute(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: dict[str, Any]
    ) -> StageResult[Any]:
        self.on_start(step)
        force = self.selection.renews(step) or self._is_below(inputs)
        key = look_up(stage, config, inputs=inputs, runtime=self.context.runtime).key
        # Two steps with one key are one computation, forced or not.
        force = force and key not in self._forced
        if force:
            self._forced.add(key)
        result = self.around(
            step,
            lambda: run_stage(stage, config, inputs=inputs, context=self.context, step=step, force=force),
        )
        if result.reused:
            self.context.recorder.reused(step, key)
        return result

    def _is_below(self, inputs: dict[str, Any]) -> bool:
        return any(id(given) in self._below for given in inputs.values())

    def _found_or_absent(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: dict[str, Any], absent: list[str]
    ) -> Artifact | Absent:
        if absent:
            return Absent(step)
        look = look_up(stage, config, inputs=inputs, runtime=self.context.runtime)
        return look.find(self.context.store, self.context.recorder) or Absent(step)
