"""One run of a recipe, whoever starts it: plan, compute what is missing, record."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from flows.execute import Around, Executor, Selection, directly
from flows.knowledge_transfer import knowledge_transfer
from flows.plan import Planner, StepHistory, StepStatus
from flows.recipe import Recipe, load_recipe
from storage.folder import Folder
from storage.store import Store
from storage.tracking import Tracking
from tasks.recording import MlflowRecorder, NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Reporter, StageResult

log = logging.getLogger(__name__)


class RunRequest(BaseModel, frozen=True, extra="forbid"):
    """What somebody wants to be run."""

    recipe: str = Field(description="Name of a recipe that comes with Graft, or path of a YAML file.")
    changes: tuple[str, ...] = Field((), description="Settings to change, STEP.key=value each.")
    only: frozenset[str] = Field(frozenset(), description="Compute these steps alone.")
    start: frozenset[str] = Field(frozenset(), description="Compute these steps and all below them anew.")
    force: frozenset[str] = Field(frozenset(), description="Compute these steps anew.")
    data: dict[str, Path] = Field(default_factory=dict, description="Dataset name -> place.")

    @property
    def selection(self) -> Selection:
        return Selection(only=self.only, start=self.start, force=self.force)


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
        planner = Planner(self.context, self.history)
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
    store = Store(runtime.store_root, lease_seconds=runtime.lease_seconds)
    recorder = (
        MlflowRecorder(tracking(runtime), experiment=recipe.name, pipelines=home / "pipelines")
        if record
        else NoRecorder()
    )
    context = Context(runtime=runtime, store=store, recorder=recorder, reporter=reporter or Silent())
    return Pipeline(recipe, request, context, StepHistory(home / "recipes", recipe.name))


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
    wanted = selection.only or frozenset(steps)
    return not selection.start and not selection.force and all(steps[step].state == "done" for step in wanted)
