"""What somebody asks of a run: which steps, and what to take instead of computing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from storage.artifact import Artifact
from tasks.stage import Context, Stage, find_artifact

KEY = re.compile("[0-9a-f]{64}")
RUN_ID = re.compile("[0-9a-f]{32}")


class CannotRun(ValueError):
    """What was asked for cannot be run; the message says what is missing."""


@dataclass(frozen=True)
class Selection:
    """Which steps to run. Steps are named as they are, or by patterns such as `probe_*`.

    Attributes:
        only: compute these alone; what they need must be there. Empty is all.
        start: compute these and all that lies below them, although they are there.
        force: compute these although they are there.
        use: step -> key of an artifact, or id of the MLflow run that made it: taken instead of the step's own.
    """

    only: frozenset[str] = frozenset()
    start: frozenset[str] = frozenset()
    force: frozenset[str] = frozenset()
    use: Mapping[str, str] = field(default_factory=dict)

    def wants(self, step: str) -> bool:
        """Whether a step is to be computed where it is not there."""
        return not self.only or _named(step, self.only)

    def names(self, step: str) -> bool:
        """Whether a step is asked for by its name."""
        return _named(step, self.only)

    def begins_at(self, step: str) -> bool:
        """Whether a step and all below it are to be computed anew."""
        return _named(step, self.start)

    def renews(self, step: str) -> bool:
        """Whether a step is to be computed anew."""
        return _named(step, self.start | self.force)

    def require_known(self, steps: Iterable[str]) -> None:
        """Check the names.

        Raises:
            CannotRun: one is not a step of the recipe.
        """
        steps = list(steps)
        asked = self.only | self.start | self.force | frozenset(self.use)
        unknown = sorted(name for name in asked if not any(fnmatchcase(step, name) for step in steps))
        if unknown:
            raise CannotRun(f"{', '.join(unknown)} must be a step of this recipe; its steps are {', '.join(steps)}")

    def given(self, step: str, stage: Stage[Any, Any], context: Context) -> Artifact | None:
        """The artifact to take instead of the step's own; None where none was named.

        Raises:
            CannotRun: it is not there, or of another kind than the step makes.
        """
        reference = self.use.get(step)
        if reference is None:
            return None
        key = _key(step, reference, context)
        try:
            found: Artifact | None = find_artifact(stage.produces, key, store=context.store, recorder=context.recorder)
        except ValueError as error:
            raise CannotRun(f"--use {step}={reference}: {error}") from error
        if found is None:
            raise CannotRun(
                f"--use {step}={reference} must name an artifact that is there; {context.store!r} holds none of key "
                f"{key}, and MLflow knows of none that can be read from here. Name another, or leave --use out"
            )
        return found


def _named(step: str, patterns: frozenset[str]) -> bool:
    return any(fnmatchcase(step, pattern) for pattern in patterns)


def _key(step: str, reference: str, context: Context) -> str:
    if KEY.fullmatch(reference):
        return reference
    if not RUN_ID.fullmatch(reference):
        raise CannotRun(
            f"--use {step}=... must name an artifact by its key (64 hexadecimal digits, see graft status --keys) or by "
            f"the id of the MLflow run that made it (32); got {reference!r}"
        )
    key = context.recorder.key_of(reference)
    if key is None:
        raise CannotRun(f"--use {step}={reference} must be the id of an MLflow run of a step; MLflow knows none such")
    return key
