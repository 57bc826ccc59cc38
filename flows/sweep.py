"""One recipe with many settings: every combination is a run of the pipeline, and what they share is computed once."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, Field, JsonValue

from flows.knowledge_transfer import knowledge_transfer
from flows.pipeline import RunRequest, open_pipeline
from flows.plan import THERE, Planner
from flows.recipe import Recipe, RecipeError, RecipeName
from flows.results import with_interval
from storage.artifact import artifact_key
from storage.folder import canonical_json
from storage.reports import Report
from tasks.runtime import Runtime
from tasks.stage import Stage

log = logging.getLogger(__name__)


class SweepFailed(RuntimeError):
    """Some combinations failed; the message names them."""


class SweepRequest(BaseModel, frozen=True, extra="forbid"):
    """What somebody wants to be compared."""

    recipe: RecipeName
    settings: dict[str, list[JsonValue]] = Field(
        min_length=1, description="Setting (STEP.key) -> its values; every combination is run."
    )
    data: dict[str, Path] = Field(
        default_factory=dict, description="Dataset name -> place, as the machine that runs it sees it."
    )

    @property
    def name(self) -> str:
        """The same for the same question, so that a sweep that is taken up again is one sweep in MLflow."""
        question = hashlib.sha256(canonical_json([self.recipe, self.settings])).hexdigest()
        return f"{Path(self.recipe).stem}-{question[:8]}"

    def combinations(self) -> list[Combination]:
        """The product of all settings; the last one changes fastest."""
        names, values = self.settings.keys(), self.settings.values()
        return [Combination(self, dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*values)]


@dataclass(frozen=True)
class Combination:
    """One value of each setting."""

    sweep: SweepRequest
    values: Mapping[str, JsonValue]

    def __str__(self) -> str:
        return " ".join(f"{name}={text}" for name, text in self.texts.items())

    @property
    def texts(self) -> dict[str, str]:
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.values.items()}

    @property
    def request(self) -> RunRequest:
        """The run of the pipeline with these settings."""
        changes = tuple(f"{name}={json.dumps(value)}" for name, value in self.values.items())
        return RunRequest(recipe=self.sweep.recipe, changes=changes, data=self.sweep.data, sweep=self.sweep.name)


def parse_settings(texts: Iterable[str]) -> dict[str, list[JsonValue]]:
    """The settings of `--set STEP.key=1,2,4`: what follows the sign is the inside of a YAML list.

    Raises:
        RecipeError: a text is none such, or a setting is given twice.
    """
    settings: dict[str, list[JsonValue]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        try:
            found = yaml.safe_load(f"[{values}]")
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {text!r}: the values must be YAML: {' '.join(str(error).split())}") from error
        if not name.strip() or not found or name.strip() in settings:
            raise RecipeError(f"--set must look like STEP.key=VALUE,VALUE,... and name a setting once; got {text!r}")
        settings[name.strip()] = found
    return settings


class PlannedRun(NamedTuple):
    """What is known of one combination before it runs; `parts` names each step by all that it is made of."""

    combination: Combination
    planner: Planner
    parts: dict[str, str]


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would do."""

    runs: Sequence[PlannedRun]

    def rows(self) -> list[dict[str, str]]:
        """A row a combination: its settings, and how many steps are there, are an earlier one's, are its own."""
        seen: set[str] = set()
        rows = []
        for run in self.runs:
            there = {run.parts[step] for step, status in run.planner.steps.items() if status.state in THERE}
            own = set(run.parts.values())
            shared = (own & seen) - there
            counts = {"steps": len(own), "there": len(there), "shared": len(shared), "own": len(own - seen - there)}
            rows.append(run.combination.texts | {name: str(count) for name, count in counts.items()})
            seen |= own
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        steps, there, shared, own = (
            sum(int(row[name]) for row in rows) for name in ("steps", "there", "shared", "own")
        )
        return (
            f"{len(rows)} runs of {steps} steps: {there} are there, {shared} are another run's as well, "
            f"{own} are to be computed"
        )


def plan_sweep(request: SweepRequest, *, runtime: Runtime, record: bool = True) -> SweepPlan:
    """Look at every combination; computes nothing.

    Raises:
        RecipeError: a setting does not exist, or a value is not allowed.
    """
    runs = []
    for combination in request.combinations():
        pipeline = open_pipeline(combination.request, runtime=runtime, record=record)
        runs.append(PlannedRun(combination, pipeline.plan(), _parts(pipeline.recipe)))
    return SweepPlan(runs)


def _parts(recipe: Recipe) -> dict[str, str]:
    """Step -> a name of all that it is made of, as far as the recipe tells: equal names are one computation."""
    parts: dict[str, str] = {}

    def run(step: str, stage: Stage[Any, Any], config: BaseModel, /, **inputs: str | None) -> str:
        given = {name: part for name, part in inputs.items() if part is not None}
        settings = config.model_dump(mode="json")
        parts[step] = artifact_key(stage.name, version=str(stage.version), config=settings, inputs=given)
        return parts[step]

    knowledge_transfer(recipe, run)
    return parts


@dataclass(frozen=True)
class SweepResult:
    """What became of each combination: the scores of its report, or why there is none."""

    scores: Sequence[tuple[Combination, list[dict[str, Any]]]]
    failures: Mapping[str, str]

    def rows(self) -> list[dict[str, str]]:
        """A row a combination and encoder: settings, and each score in % with its 95 % interval."""
        names = list(dict.fromkeys(_name(score) for _, scores in self.scores for score in scores))
        rows = []
        for combination, scores in self.scores:
            for encoder in dict.fromkeys(score["encoder"] for score in scores):
                own = {_name(score): with_interval(score) for score in scores if score["encoder"] == encoder}
                rows.append(combination.texts | {"encoder": encoder} | {name: own.get(name, "") for name in names})
            if not scores:
                rows.append(combination.texts | {"encoder": "failed"} | dict.fromkeys(names, ""))
        return rows

    def require_all(self) -> None:
        """Check that every combination has a result.

        Raises:
            SweepFailed: some failed; names them with their errors.
        """
        if self.failures:
            named = "; ".join(f"{combination}: {error}" for combination, error in self.failures.items())
            raise SweepFailed(f"{len(self.failures)} of {len(self.scores)} combinations failed; {named}")


def run_sweep(
    request: SweepRequest,
    run: Callable[[RunRequest], object],
    *,
    runtime: Runtime,
    on_start: Callable[[Combination], None] = lambda combination: None,
) -> SweepResult:
    """Run every combination, one after the other; one that fails does not stop the others.

    Args:
        run: runs the pipeline once.
        on_start: told each combination before it.
    """
    scores, failures = [], {}
    for combination in request.combinations():
        on_start(combination)
        found: list[dict[str, Any]] = []
        try:
            run(combination.request)
            found = _scores(combination, runtime)
        except Exception as error:
            failures[str(combination)] = " ".join(f"{error}".split())
            log.warning("the combination %s failed: %s", combination, failures[str(combination)])
        scores.append((combination, found))
    return SweepResult(scores, failures)


def _scores(combination: Combination, runtime: Runtime) -> list[dict[str, Any]]:
    steps = open_pipeline(combination.request, runtime=runtime, record=False).plan().steps
    report = steps["write_report"].artifact
    assert isinstance(report, Report), "a run that ended well has its report"
    rows: list[dict[str, Any]] = report.tables["scores"]
    return rows


def _name(score: Mapping[str, Any]) -> str:
    return f"{score['task']}: {score['score']}"
