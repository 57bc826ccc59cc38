"""One run of a recipe, whoever starts it: plan, compute what is missing, record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from flows.execute import Around, Executor, directly
from flows.knowledge_transfer import knowledge_transfer
from flows.plan import GONE, Planner, StepHistory, StepStatus
from flows.recipe import Recipe, RecipeName, load_recipe
from flows.selection import Selection
from storage.folder import Folder
from storage.store import Store
from storage.tracking import Tracking
from tasks.inspect_verify import damaged
from tasks.recording import MlflowRecorder, NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Reporter, StageResult

log = logging.getLogger(__name__)


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

    @property
    def selection(self) -> Selection:
        return Selection(only=self.only, start=self.start, force=self.force, use=self.use)


class Verified(NamedTuple):
    """What a check of every byte of a recipe's artifacts found.

    Attributes:
        checked: number of artifacts that were made.
        unmade: number of steps that have none yet.
        wrong: step -> what is wrong with its artifact.
    """

    checked: int
    unmade: int
    wrong: dict[str, str]


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
        knowledge_transfer(self.recipe, planner)
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
        recorder = self.context.recorder
        executor = Executor(self.context, self.history, self.request.selection, around, on_start, on_done)
        if not isinstance(recorder, MlflowRecorder):
            knowledge_transfer(self.recipe, executor)
            return executor.results
        self.settle()
        recorder.begin(params=self.recipe.model_dump(mode="json"), tags={"graft.recipe": self.recipe.name})
        try:
            knowledge_transfer(self.recipe, executor)
        except BaseException as error:
            recorder.end(error)
            raise
        recorder.end(None)
        return executor.results

    def verify(self) -> Verified:
        """Check every byte of the recipe's artifacts against what was written."""
        steps = self.plan().steps
        artifacts = {step: known.artifact for step, known in steps.items() if known.artifact is not None}
        gone = {step: known.reason for step, known in steps.items() if known.reason == GONE}
        checked = len(artifacts) + len(gone)
        return Verified(checked, len(steps) - checked, gone | damaged(artifacts))

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
    context = Context(runtime=runtime, store=_store(runtime), recorder=recorder, reporter=reporter or Silent())
    return Pipeline(recipe, request, context, StepHistory(home / "recipes", recipe.name))


def settle(runtime: Runtime) -> None:
    """Tell MLflow the end of runs whose process is gone."""
    _recorder(runtime, experiment="").settle(_store(runtime))


def _recorder(runtime: Runtime, *, experiment: str) -> MlflowRecorder:
    pipelines = Folder(runtime.home.absolute()) / "pipelines"
    return MlflowRecorder(tracking(runtime), experiment=experiment, pipelines=pipelines)


def _store(runtime: Runtime) -> Store:
    return Store(runtime.store_root, lease_seconds=runtime.lease_seconds, cache=runtime.read_cache)


def tracking(runtime: Runtime) -> Tracking:
    """MLflow as the runtime names it."""
    home = runtime.home.absolute()
    local = runtime.tracking_uri is None
    return Tracking(
        runtime.mlflow_uri,
        artifact_location=(home / "mlflow-artifacts").as_uri() if local else None,
        init_lock=home / ".mlflow.lock",
    )


def all_done(steps: dict[str, StepStatus], selection: Selection) -> bool:
    """Whether a run would have nothing to compute."""
    wanted = [status for step, status in steps.items() if selection.wants(step)]
    return not selection.start and not selection.force and all(status.state == "done" for status in wanted)
