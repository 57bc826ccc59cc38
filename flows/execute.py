"""Doing what a flow says: a `run` that finds, resumes or computes each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from flows.plan import Absent, Collected, StepHistory, named
from flows.selection import CannotRun, Selection
from storage.artifact import Artifact
from tasks.stage import Context, Lookup, Stage, StageResult, look_up, run_stage

log = logging.getLogger(__name__)

Around = Callable[[str, Callable[[], StageResult[Any]]], StageResult[Any]]


class Remade(Exception):
    """What had been collected has other content now that it was made again: what lies below is another."""


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
        on_key: told a step's key before its artifact is looked for.
    """

    context: Context
    history: StepHistory
    selection: Selection
    around: Around = directly
    on_start: Callable[[str], None] = lambda step: None
    on_done: Callable[[str, StageResult[Any]], None] = lambda step, result: None
    on_key: Callable[[str, str], None] = lambda step, key: None
    results: dict[str, StageResult[Any]] = field(default_factory=dict)
    _needed: set[str] = field(default_factory=set)
    _below: set[int] = field(default_factory=set)
    _forced: set[str] = field(default_factory=set)

    def follow(self, flow: Callable[[Executor], Any]) -> None:
        """Do what a flow says. What it is for is needed: the artifact that it gives."""
        while True:
            try:
                outcome = flow(self)
                if isinstance(outcome, Collected) and self.selection.wants(outcome.step):
                    self._with_data(outcome.step, outcome)
                return
            except Remade as error:
                log.warning("%s. What was made of it is made again", error)
                self._below.clear()

    def __call__(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, /, **inputs: Any
    ) -> Artifact | Collected | Absent:
        if given := self.selection.given(step, stage, self.context):
            self.on_key(step, given.key)
            return given
        absent = sorted({given.step for given in inputs.values() if isinstance(given, Absent)})
        if not self.selection.wants(step):
            return self._found_or_absent(step, stage, config, inputs, absent)
        if absent:
            raise CannotRun(
                f"--only {step} needs {', '.join(absent)}, which must be done and is not; run without --only, or with "
                + " ".join(f"--only {name}" for name in [*absent, step])
            )
        return self._run(step, stage, config, inputs)

    def _run(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: Mapping[str, Any]
    ) -> Artifact | Collected:
        look = look_up(stage, config, inputs=named(inputs), runtime=self.context.runtime)
        self.on_key(step, look.key)
        renewed = self.selection.renews(step) or self._is_below(inputs)
        # Two steps with one key are one computation, forced or not.
        force = renewed and look.key not in self._forced
        needed = force or look.key in self._needed or self.selection.names(step)
        if not needed and (collected := self._collected(step, look, inputs)):
            self.history.note(step, look.key)
            self.context.recorder.reused(step, look.key)
            return collected
        if _any_collected(inputs) and (force or not look.find(self.context.store, self.context.recorder)):
            inputs = {name: self._with_data(step, given) for name, given in inputs.items()}
        if force:
            self._forced.add(look.key)
        result = self._compute(step, stage, config, named(inputs), force=force)
        artifact: Artifact = result.artifact
        if self.selection.begins_at(step) or self._is_below(inputs):
            self._below.add(id(artifact))
        return artifact

    def _compute(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: dict[str, Any], *, force: bool
    ) -> StageResult[Any]:
        self.on_start(step)
        result = self.around(
            step,
            lambda: run_stage(stage, config, inputs=inputs, context=self.context, step=step, force=force),
        )
        if result.reused:
            self.context.recorder.reused(step, result.artifact.key)
        self.results[step] = result
        self.history.note(step, result.artifact.key)
        self.on_done(step, result)
        return result

    def _with_data(self, by: str, given: Any) -> Any:
        """An input that can be read: what was collected is made again.

        Raises:
            Remade: it has other content now.
            CannotRun: it is not among the steps that are to be computed.
        """
        if not isinstance(given, Collected):
            return given
        if not self.selection.wants(given.step):
            raise CannotRun(
                f"--only {by} needs {given.step}, whose data was collected; run without --only, or with "
                f"--only {given.step} --only {by}"
            )
        made = self.results.get(given.step)
        if made is None or made.artifact.key != given.artifact.key:
            self._needed.add(given.artifact.key)
            self._run(given.step, given.stage, given.config, given.inputs)
            made = self.results[given.step]
        if made.artifact.digest != given.artifact.digest:
            raise Remade(f"{given.step} was collected, and has other content now that it was made again")
        return made.artifact

    def _collected(self, step: str, look: Lookup[Any], inputs: Mapping[str, Any]) -> Collected | None:
        artifact = self.context.store.find_collected(look.stage.produces, look.key)
        return Collected(step, artifact, look.stage, look.config, inputs) if artifact else None

    def _is_below(self, inputs: Mapping[str, Any]) -> bool:
        return any(id(given) in self._below for given in inputs.values())

    def _found_or_absent(
        self, step: str, stage: Stage[Any, Any], config: BaseModel, inputs: dict[str, Any], absent: list[str]
    ) -> Artifact | Collected | Absent:
        if absent:
            return Absent(step)
        look = look_up(stage, config, inputs=named(inputs), runtime=self.context.runtime)
        self.on_key(step, look.key)
        if collected := self._collected(step, look, inputs):
            return collected
        return look.find(self.context.store, self.context.recorder) or Absent(step)


def _any_collected(inputs: Mapping[str, Any]) -> bool:
    return any(isinstance(given, Collected) for given in inputs.values())
