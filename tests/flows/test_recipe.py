"""Recipes: every one that is shipped loads, and what is wrong in one is named with what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.knowledge_transfer import knowledge_transfer
from flows.plan import Absent
from flows.recipe import CONFIGS, RecipeError, load_recipe, recipe_names

SHIPPED = sorted(CONFIGS.glob("*.yaml"))
IMAGES = {"name": "photos", "format": "image_folder"}
NETWORK = {"name": "alexnet_bn", "stem": "small"}


def smallest() -> dict[str, Any]:
    """A recipe with no more than it needs."""
    return {
        "name": "toy",
        "pretext_data": IMAGES,
        "train_pretext": {"architecture": {"name": "vgg16_bn"}, "epochs": 3},
        "extract_cluster": {"layers": ["conv4"]},
        "cluster_features": {"num_clusters": 10},
        "train_student": {"architecture": NETWORK, "epochs": 2},
        "train_direct": {"architecture": NETWORK, "epochs": 2},
        "evaluations": {"things": {"train_data": IMAGES, "test_data": IMAGES, "extract": {"layers": ["conv5"]}}},
    }


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | None = None, **changes: Any) -> str:
        path = tmp_path / "toy.yaml"
        path.write_text(yaml.safe_dump({**smallest(), **changes}) if text is None else text)
        return str(path)

    return write


@pytest.fixture
def toy(write: Any) -> str:
    path: str = write()
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_its_flow_can_be_walked(path: Path) -> None:
    recipe = load_recipe(path.stem)
    assert recipe == load_recipe(str(path))
    assert recipe.name == path.stem, "status and MLflow know a recipe by its name"
    steps: list[str] = []

    def run(step: str, stage: Any, config: Any, /, **inputs: Any) -> Absent:
        steps.append(step)
        return Absent(step)

    knowledge_transfer(recipe, run)
    assert len(steps) == len(set(steps)) and steps[-1] == "write_report"


def test_shipped_recipes_are_known_by_name() -> None:
    assert recipe_names() == [path.stem for path in SHIPPED] and "quickstart" in recipe_names()


@pytest.mark.parametrize("name", ["quickstarts", "no/such/recipe.yaml"])
def test_a_recipe_that_is_not_there_is_an_error_that_names_those_that_are(name: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"must be one of .*quickstart.*, or the path of a \.yaml file; got '{name}'"
    ):
        load_recipe(name)


def test_one_dataset_named_is_all_datasets(write: Any) -> None:
    recipe = load_recipe(write())
    assert recipe.pretext_data == recipe.cluster_data == recipe.student_data
    other = load_recipe(write(student_data={**IMAGES, "name": "others"}))
    assert (other.student_data.name, other.cluster_data.name) == ("others", "photos")
    # A changed pretext dataset is changed everywhere, too, unless another role says otherwise.
    changed = load_recipe(write(), changes=["pretext_data.name=mine"])
    assert changed.cluster_data.name == changed.student_data.name == "mine"


def test_the_random_baseline_is_the_direct_one_untrained(toy: str) -> None:
    recipe = load_recipe(toy)
    assert recipe.init_random.epochs == 0
    assert recipe.init_random.model_copy(update={"epochs": 2}) == recipe.train_direct


def seeds(recipe: Any) -> dict[str, int]:
    evaluation = recipe.evaluations["things"]
    return {
        "train_pretext": recipe.train_pretext.seed,
        "cluster_features": recipe.cluster_features.seed,
        "train_student": recipe.train_student.seed,
        "train_direct": recipe.train_direct.seed,
        "probe": evaluation.probe.seed,
        "finetune": evaluation.finetune.seed,
    }


def test_one_seed_is_the_seed_of_all_steps_that_set_none(write: Any) -> None:
    things = {**smallest()["evaluations"]["things"], "finetune": {"epochs": 1}}
    parts: dict[str, Any] = {"evaluations": {"things": things}}
    assert set(seeds(load_recipe(write(**parts))).values()) == {0}
    seven = seeds(load_recipe(write(**parts, seed=7)))
    assert set(seven.values()) == {7}
    own = load_recipe(write(**parts, seed=7), changes=["train_student.seed=3", "evaluations.things.probe.seed=4"])
    assert seeds(own) == {**seven, "train_student": 3, "probe": 4}
    assert seeds(load_recipe(write(**parts), changes=["seed=7"])) == seven


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("studnet_data", "name, seed, pretext_data, cluster_data, student_data, "),
        ("train_student.epoch", "method, options, epochs, "),
        ("train_student.architecture.size", "name, stem, width"),
        ("extract_cluster.pooling.size", "kind, grid"),
        ("evaluations.things.probes", "train_data, test_data, extract, probe, finetune"),
        ("evaluations.things.probe.k", "layer, linear, knn_k, "),
        ("evaluations.things.extract.layer", "layers, pooling, size, "),
    ],
)
def test_an_unknown_key_is_named_with_the_keys_that_exist_there(toy: str, key: str, known: str) -> None:
    with pytest.raises(RecipeError, match=rf"toy\.yaml: {key} is not a key that exists; keys there are {known}"):
        load_recipe(toy, changes=[f"{key}=1"])


def test_the_keys_of_an_optional_part_are_known_too(toy: str) -> None:
    changes = ["evaluations.things.finetune.epochs=1", "evaluations.things.finetune.size_=1"]
    with pytest.raises(
        RecipeError, match=r"finetune\.size_ is not a key that exists; keys there are .*, size, resize$"
    ):
        load_recipe(toy, changes=changes)


def test_an_unknown_option_of_a_method_is_named(toy: str) -> None:
    with pytest.raises(RecipeError, match=r"train_pretext\.options: crop_sise.*options of Rotation are .*crop_size"):
        load_recipe(toy, changes=["train_pretext.options.crop_sise=32"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_student": {"architecture": NETWORK}}, r"train_student\.epochs must be given$"),
        ({"train_student": {"architecture": NETWORK, "epochs": -1}}, r"train_student\.epochs: .*, got -1$"),
        ({"evaluations": {}}, r"evaluations: .*at least 1"),
        (
            {"train_direct": {"architecture": {"name": "resnet18"}, "epochs": 2}},
            r"recipe: train_direct.architecture must be train_student.architecture, .*; got name='resnet18'",
        ),
        ({"train_pretext": 3}, r"train_pretext: .*, got 3$"),
    ],
)
def test_what_must_hold_is_said_with_what_was_given(write: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"toy\.yaml: {message}"):
        load_recipe(write(**changes))


def test_a_method_that_does_not_exist_is_named_with_those_that_do(toy: str) -> None:
    with pytest.raises(RecipeError, match=r"toy\.yaml: train_pretext.*'rotatoin'.*rotation[^{]*$"):
        load_recipe(toy, changes=["train_pretext.method=rotatoin"])


def test_a_missing_dataset_is_named_once(write: Any, tmp_path: Path) -> None:
    values = smallest()
    del values["pretext_data"]
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**values, "student_data": IMAGES}))
    with pytest.raises(RecipeError, match=r"toy\.yaml: pretext_data must be given; cluster_data must be given$"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: [", "must be YAML: "), ("- a", "must hold keys and values, got list"), ("", "got NoneType")],
)
def test_a_file_that_is_no_recipe_is_an_error_in_one_line(write: Any, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        load_recipe(write(text))
    assert "\n" not in str(error.value)


def test_settings_are_changed_by_name_and_read_as_yaml(toy: str) -> None:
    changes = [
        "train_pretext.epochs=5",
        "train_pretext.optimizer.lr=1e-3",
        "train_pretext.optimizer.nesterov=true",
        "extract_cluster.layers=[conv3, conv5]",
        "extract_cluster.pooling={kind: average, grid: 3}",
        "train_student.clip_norm=null",
        "evaluations.things.probe.linear.epochs=4",
        "name=a=b",
    ]
    recipe = load_recipe(toy, changes=changes)
    assert recipe.train_pretext.epochs == 5 and recipe.train_pretext.optimizer.lr == 0.001
    assert recipe.train_pretext.optimizer.nesterov is True and recipe.train_student.clip_norm is None
    assert recipe.extract_cluster.layers == ("conv3", "conv5") and recipe.extract_cluster.pooling.grid == 3
    assert recipe.evaluations["things"].probe.linear.epochs == 4 and recipe.name == "a=b"


def test_the_last_change_counts(toy: str) -> None:
    assert load_recipe(toy, changes=["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("change", ["seed", "=1", "train_pretext.=1", ""])
def test_a_change_must_look_like_one(toy: str, change: str) -> None:
    with pytest.raises(RecipeError, match=f"--set must look like STEP.key=value, got '{change}'"):
        load_recipe(toy, changes=[change])


def test_a_change_below_a_value_is_refused(toy: str) -> None:
    with pytest.raises(RecipeError, match="--set 'name.first=1': 'name' must be a group of keys"):
        load_recipe(toy, changes=["name.first=1"])


def test_a_change_that_is_no_yaml_is_an_error_in_one_line(toy: str) -> None:
    with pytest.raises(RecipeError, match=r"--set 'train_pretext\.epochs=\[1': the value must be YAML") as error:
        load_recipe(toy, changes=["train_pretext.epochs=[1"])
    assert "\n" not in str(error.value)


def test_a_change_of_what_an_alias_names_is_of_one_place(toy: str) -> None:
    # PyYAML writes an object that is there twice as an anchor and aliases.
    assert Path(toy).read_text().count("*id001") == 2
    recipe = load_recipe(toy, changes=["evaluations.things.test_data.split=test"])
    assert recipe.evaluations["things"].test_data.split == "test"
    assert recipe.evaluations["things"].train_data.split is recipe.pretext_data.split is None
