"""A recipe: the settings of every step side by side, read from one flat YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator
from pydantic.fields import FieldInfo

from tasks.assign_labels import AssignLabelsConfig
from tasks.cluster_features import ClusterFeaturesConfig
from tasks.extract_features import ExtractFeaturesConfig
from tasks.finetune_encoder import FinetuneEncoderConfig
from tasks.index_dataset import IndexDatasetConfig
from tasks.probe_features import ProbeFeaturesConfig
from tasks.train_pretext import TrainPretextConfig
from tasks.train_student import TrainStudentConfig

CONFIGS = Path(__file__).parent.parent / "configs"


def recipe_names() -> list[str]:
    """The recipes that come with Graft."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


RecipeName = Annotated[
    str,
    Field(
        description="Name of a recipe that comes with Graft, or path of a YAML file.",
        # For the forms of deployments, which offer what exists where they are made; it checks nothing here.
        json_schema_extra={"enum": list[JsonValue](recipe_names())},
    ),
]


class RecipeError(ValueError):
    """A recipe cannot be read; the message names the key and what must hold."""


class Evaluation(BaseModel, frozen=True, extra="forbid"):
    """One downstream task; every encoder is measured on it in the same way."""

    train_data: IndexDatasetConfig = Field(description="Labelled images to learn from.")
    test_data: IndexDatasetConfig = Field(description="Labelled images to be measured on; nothing is chosen by them.")
    extract: ExtractFeaturesConfig = Field(description="Features of teacher, student and baselines alike.")
    probe: ProbeFeaturesConfig = Field(ProbeFeaturesConfig(), description="Linear probe and weighted k-NN.")
    finetune: FinetuneEncoderConfig | None = Field(None, description="Training of the whole network; none skips it.")


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """All that decides the results of one run of the pipeline."""

    name: str = Field(description="What runs of this recipe are called in MLflow and Prefect.")
    seed: int = Field(0, description="Seed of every step that does not set its own.")
    pretext_data: IndexDatasetConfig = Field(description="Images that the teacher is trained on, without labels.")
    cluster_data: IndexDatasetConfig = Field(description="Images whose features are clustered.")
    student_data: IndexDatasetConfig = Field(description="Images that get pseudo-labels and train the student.")
    train_pretext: TrainPretextConfig = Field(description="The teacher.")
    extract_cluster: ExtractFeaturesConfig = Field(description="Teacher features that are clustered.")
    cluster_features: ClusterFeaturesConfig
    assign_labels: AssignLabelsConfig = AssignLabelsConfig()
    train_student: TrainStudentConfig
    train_direct: TrainPretextConfig = Field(description="Baseline: the student's network on the pretext task.")
    evaluations: dict[str, Evaluation] = Field(min_length=1, description="Downstream tasks by name.")

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        """One dataset named is all datasets; one seed is the seed of all steps."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        if "pretext_data" in filled:
            for role in ("cluster_data", "student_data"):
                filled.setdefault(role, filled["pretext_data"])
        if "seed" in filled:
            seeded = ("train_pretext", "cluster_features", "train_student", "train_direct")
            filled |= {step: _seeded(filled.get(step), filled["seed"]) for step in seeded if step in filled}
            evaluations = filled.get("evaluations")
            if isinstance(evaluations, dict):
                filled["evaluations"] = {
                    name: _seeded_parts(evaluation, filled["seed"]) for name, evaluation in evaluations.items()
                }
        return filled

    @model_validator(mode="after")
    def _comparable(self) -> Self:
        if self.train_direct.architecture != self.train_student.architecture:
            raise ValueError(
                "train_direct.architecture must be train_student.architecture, as the two are compared; got "
                f"{self.train_direct.architecture} and {self.train_student.architecture}"
            )
        return self

    @property
    def init_random(self) -> TrainPretextConfig:
        """Baseline: the student's network with the weights it starts from."""
        return self.train_direct.model_copy(update={"epochs": 0})


def _seeded(step: Any, seed: int) -> Any:
    return {"seed": seed, **step} if isinstance(step, dict) else step


def _seeded_parts(evaluation: Any, seed: int) -> Any:
    if not isinstance(evaluation, dict):
        return evaluation
    return {**evaluation, "probe": _seeded(evaluation.get("probe", {}), seed)} | (
        {"finetune": _seeded(evaluation["finetune"], seed)} if evaluation.get("finetune") else {}
    )


def load_recipe(name_or_path: str, *, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name_or_path: a recipe that comes with Graft, by name, or the path of a YAML file.
        changes: settings to change, `STEP.key=value` each; the value is read as YAML.
    Raises:
        RecipeError: no such recipe, an unknown key, or a value that is not allowed.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIGS / f"{name_or_path}.yaml"
    if not path.is_file():
        raise RecipeError(
            f"a recipe must be one of {', '.join(recipe_names())}, or the path of a .yaml file; got {name_or_path!r}"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} must be YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path} must hold keys and values, got {type(values).__name__}")
    values = _unshared(values)
    for change in changes:
        _change(values, change)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: {_explain(error)}") from error


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    *parents, last = name.strip().split(".")
    if not equals or not last:
        raise RecipeError(f"--set must look like STEP.key=value, got {change!r}")
    place: Any = values
    for parent in parents:
        place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise RecipeError(f"--set {change!r}: {parent!r} must be a group of keys in the recipe, and it is a value")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {change!r}: the value must be YAML: {' '.join(str(error).split())}") from error


def _unshared(value: Any) -> Any:
    """A copy in which nothing is shared: YAML gives what an alias names as one object, and a change is of one place."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "recipe"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} is not a key that exists{_known_keys(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{where} must be given")
        elif problem["type"] == "value_error":
            # Our own words, which say what was given.
            lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
        else:
            lines.append(f"{where}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> str:
    """The keys that the group of an unknown key does have."""
    kind: Any = Recipe
    for part in location[:-1]:
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            continue
        field = _fields(kind).get(str(part))
        kind = field.annotation if field else None
    fields = _fields(kind)
    return f"; keys there are {', '.join(fields)}" if fields else ""


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The settings of a model, which may be optional; none of other kinds."""
    for option in (kind, *get_args(kind)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option.model_fields
    return {}
