"""One run of a recipe, whoever starts it: plan, compute what is missing, record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from flows.execute import Around, Executor, directly
from flows.knowledge_transfer import REPORT, STUDENT, knowledge_transfer
from flows.plan import GONE, THERE, Planner, StepHistory, StepStatus
from flows.recipe import Recipe, RecipeName, load_recipe
from flows.selection import Selection
from storage.errors import StoreUnwritable
from storage.folder import Folder
from storage.runs import OpenRun
from storage.store import Store
from storage.tracking import Tracking
from tasks.inspect_verify import damaged
from tasks.recording import MlflowRecorder, NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Reporter, StageResult
from tasks.write_report import score_metrics

log = logging.getLogger(__name__)

SWEEP_TAG = "graft.sweep"


class RunRequest(BaseModel, frozen=True, extra="forbid"):
    """What somebody wants to be run."""

    recipe: RecipeName
    changes: tuple[str, ...] = Field((), description="Settings to change, STEP.key=value each.")
    only: frozenset[str] = Field(
        frozenset(), description="Compute these steps alone; patterns such as probe_* name several. Empty: all."
    )
    start: frozenset[str] = Field(frozenset(), description="Compute these steps and all below them anew.")
    force: frozenset[str] = Field(frozenset(), description="Compute these steps anew.")
    use: dict[str, str] = Field(
        default_factory=dict,
        description="Step -> artifact to take instead of its own: a key, or the id of the MLflow run that made it.",
    )
    data: dict[str, Path] = Field(
        default_factory=dict, description="Dataset name -> place, as the machine that runs it sees it."
    )

    sweep: str = Field("", description="The sweep that this run is part of: a tag of its run in MLflow.")

    @property
    def selection(self) -> Selection:
        return Selection(only=self.only, start=self.start, force=self.force, use=self.use)


class Verified(NamedTuple):
    """What a check of every byte of a recipe's artifacts found.

    Attributes:
        checked: number of artifacts that were made.
        unmade: number of steps that have none yet.
        collected: number of steps whose artifact was made, and its data collected.
        wrong: step -> what is wrong with its artifact.
    """

    checked: int
    unmade: int
    collected: int
    wrong: dict[str, str]

    def __str__(self) -> str:
        collected = f", {self.collected} are collected" if self.collected else ""
        intact = f"{self.checked - len(self.wrong)} of {self.checked} artifacts are intact"
        return f"{intact}; {self.unmade} are not made yet{collected}"


@dataclass(frozen=True)
class Pipeline:
    """A recipe with all it needs to run on this machine."""

    recipe: Recipe
    request: RunRequest
    context: Context
    history: StepHistory

    def plan(self) -> Planner:
        """Look at every step; computes nothing.

        Raises:
            CannotRun: a step was named that the recipe does not have.
        """
        planner = Planner(self.context, self.history, self.request.selection)
        planner.follow(lambda run: knowledge_transfer(self.recipe, run))
        self.request.selection.require_known(planner.steps)
        return planner

    def run(
        self,
        *,
        around: Around = directly,
        on_start: Callable[[str], None] = lambda step: None,
        on_done: Callable[[str, StageResult[Any]], None] = lambda step, result: None,
    ) -> dict[str, StageResult[Any]]:
        """Find, resume or compute every step that is asked for; gives what each gave."""
        self.settle()

        def done(step: str, result: StageResult[Any]) -> None:
            if step == STUDENT:
                self.context.recorder.register(result.artifact.key)
            on_done(step, result)

        with self._told() as scores, OpenRun(self.context.store, self.recipe.name, self.plan().keys) as kept:
            executor = Executor(
                self.context, self.history, self.request.selection, around, on_start, done, on_key=kept.note
            )
            executor.follow(lambda run: knowledge_transfer(self.recipe, run))
            if report := executor.results.get(REPORT):
                scores |= score_metrics(report.artifact.tables)
        return executor.results

    @contextmanager
    def _told(self) -> Iterator[dict[str, float]]:
        """A block that MLflow hears the beginning and the end of, with the scores that are put into what is given."""
        recorder = self.context.recorder
        scores: dict[str, float] = {}
        if not isinstance(recorder, MlflowRecorder):
            yield scores
            return
        tags = {"graft.recipe": self.recipe.name} | ({SWEEP_TAG: self.request.sweep} if self.request.sweep else {})
        recorder.begin(params=self.recipe.model_dump(mode="json"), tags=tags)
        try:
            yield scores
        except BaseException as error:
            recorder.end(error)
            raise
        recorder.end(None, scores=scores)

    def note_use(self, planner: Planner) -> None:
        """Write down that what a plan found is in use, so that it is not collected; for runs with nothing to do."""
        try:
            with OpenRun(self.context.store, self.recipe.name, planner.keys):
                pass
        except StoreUnwritable as error:
            # Of a store that may only be read nobody collects from here.
            log.warning("that these artifacts are in use could not be noted: %s", error)

    def verify(self) -> Verified:
        """Check every byte of the recipe's artifacts against what was written."""
        steps = self.plan().steps
        artifacts = {step: known.artifact for step, known in steps.items() if known.artifact is not None}
        gone = {step: known.reason for step, known in steps.items() if known.reason == GONE}
        checked = len(artifacts) + len(gone)
        collected = sum(known.state == "collected" for known in steps.values())
        return Verified(checked, len(steps) - checked - collected, collected, gone | damaged(artifacts))

    def settle(self) -> None:
        """Send MLflow what earlier runs could not; does nothing when nothing waits."""
        if isinstance(self.context.recorder, MlflowRecorder):
            self.context.recorder.settle(self.context.store)


def open_pipeline(
    request: RunRequest, *, runtime: Runtime, reporter: Reporter | None = None, record: bool = True
) -> Pipeline:
    """Read the recipe and connect it to store and tracking; opens neither a server nor a database.

    Args:
        record: tell MLflow.
    Raises:
        RecipeError: the recipe cannot be read.
    """
    recipe = load_recipe(request.recipe, changes=request.changes)
    home = Folder(runtime.home.absolute())
    recorder = _recorder(runtime, experiment=recipe.name) if record else NoRecorder()
    context = Context(runtime=runtime, store=open_store(runtime), recorder=recorder, reporter=reporter or Silent())
    return Pipeline(recipe, request, context, StepHistory(home / "recipes", recipe.name))


def settle(runtime: Runtime) -> None:
    """Tell MLflow the end of runs whose process is gone."""
    _recorder(runtime, experiment="").settle(open_store(runtime))


def _recorder(runtime: Runtime, *, experiment: str) -> MlflowRecorder:
    pipelines = Folder(runtime.home.absolute()) / "pipelines"
    return MlflowRecorder(tracking(runtime), experiment=experiment, pipelines=pipelines)


def open_store(runtime: Runtime) -> Store:
    """The store as the runtime names it."""
    return Store(runtime.store_root, lease_seconds=runtime.lease_seconds, cache=runtime.read_cache)


def tracking(runtime: Runtime) -> Tracking:
    """MLflow as the runtime names it."""
    home = runtime.home.absolute()
    local = runtime.tracking_uri is None
    return Tracking(
        runtime.mlflow_uri,
        artifact_location=(home / "mlflow-artifacts").as_uri() if local else None,
        init_lock=home / ".mlflow.lock",
        browser_uri=runtime.tracking_ui_url,
    )


def all_done(steps: dict[str, StepStatus], selection: Selection) -> bool:
    """Whether a run would have nothing to compute."""
    wanted = [status for step, status in steps.items() if selection.wants(step)]
    return not selection.start and not selection.force and all(status.state in THERE for status in wanted)
