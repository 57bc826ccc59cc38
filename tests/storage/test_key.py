"""The key: every ingredient changes it, nothing else does, and no key changes by accident."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from PIL import Image
from pydantic import BaseModel

import tasks
from storage.artifact import Artifact, Marker, artifact_key
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, Work, look_up, run_stage, stage

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
WRITE_GOLDEN = "WRITE_GOLDEN_KEYS"


class Rows(Artifact):
    kind = "Rows"


class Rate(BaseModel, frozen=True, extra="forbid"):
    start: float = 0.1
    steps: tuple[int, ...] = (3, 5)


class ToyConfig(BaseModel, frozen=True, extra="forbid"):
    """A config with every shape of value that configs have."""

    name: str = "a"
    epochs: int = 2
    limit: float | None = None
    flip: bool = False
    rate: Rate = Rate()
    options: dict[str, Any] = {"crop": {"size": 32}}


def toy(config: ToyConfig, work: Work) -> None: ...


def rows_of(digest: str) -> Rows:
    marker = Marker(
        kind="Rows",
        stage="toy",
        stage_version="1",
        key="0" * 64,
        digest=digest,
        data="0",
        config={},
        inputs={},
        external={},
        files=[],
        environment={},
        seconds=0.0,
        created="2026-01-01T00:00:00+00:00",
    )
    return Rows(Folder(Path("nowhere") / "0"), marker)


USUAL: dict[str, Any] = {
    "stage": "toy",
    "version": 1,
    "config": {},
    "inputs": {"images": "aa", "labels": "bb"},
    "external": {"source": "cc", "method rotation": "1"},
}
CHANGES: dict[str, dict[str, Any]] = {
    "the stage's name": {"stage": "toys"},
    "the stage's version": {"version": 2},
    "a text in the config": {"config": {"name": "b"}},
    "a number in the config": {"config": {"epochs": 3}},
    "a number instead of none": {"config": {"limit": 0.0}},
    "a switch in the config": {"config": {"flip": True}},
    "a nested number": {"config": {"rate": {"start": 0.2}}},
    "an element of a nested list": {"config": {"rate": {"steps": (3, 6)}}},
    "the order of a nested list": {"config": {"rate": {"steps": (5, 3)}}},
    "the length of a nested list": {"config": {"rate": {"steps": (3, 5, 7)}}},
    "a deeply nested option": {"config": {"options": {"crop": {"size": 64}}}},
    "the name of an option": {"config": {"options": {"crops": {"size": 32}}}},
    "one more option": {"config": {"options": {"crop": {"size": 32}, "head": None}}},
    "the digest of the first input": {"inputs": {"images": "a0", "labels": "bb"}},
    "the digest of the second input": {"inputs": {"images": "aa", "labels": "b0"}},
    "the name of an input": {"inputs": {"pictures": "aa", "labels": "bb"}},
    "inputs that changed places": {"inputs": {"images": "bb", "labels": "aa"}},
    "one input less": {"inputs": {"images": "aa"}},
    "one input more": {"inputs": {"images": "aa", "labels": "bb", "teacher": "dd"}},
    "the bytes of the source": {"external": {"source": "c0", "method rotation": "1"}},
    "the version of the method": {"external": {"source": "cc", "method rotation": "2"}},
    "another method": {"external": {"source": "cc", "method jigsaw": "1"}},
    "one external digest less": {"external": {"source": "cc"}},
}


def key_of(change: Mapping[str, Any]) -> str:
    given = {**USUAL, **change}
    made = Stage(given["stage"], given["version"], Rows, toy, lambda config, runtime: given["external"])
    inputs = {name: rows_of(digest) for name, digest in given["inputs"].items()}
    return look_up(made, ToyConfig(**given["config"]), inputs=inputs, runtime=Runtime(device="cpu")).key


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_ingredient_changes_the_key(change: Mapping[str, Any]) -> None:
    assert key_of(change) != key_of({})


def test_no_two_changes_give_one_key() -> None:
    keys = {name: key_of(change) for name, change in CHANGES.items()}
    assert len(set(keys.values())) == len(CHANGES)


def test_what_says_the_same_has_the_same_key() -> None:
    written_out = ToyConfig().model_dump()
    same = [
        {"config": written_out},
        {"config": dict(reversed(written_out.items()))},
        {"inputs": {"labels": "bb", "images": "aa"}},
        {"external": {"method rotation": "1", "source": "cc"}},
    ]
    assert {key_of(change) for change in same} == {key_of({})}
    assert len(key_of({})) == 64 and int(key_of({}), 16)


def test_an_input_that_is_none_is_no_input() -> None:
    made = Stage("toy", 1, Rows, toy, lambda config, runtime: {})
    rows, runtime = rows_of("aa"), Runtime(device="cpu")
    given = look_up(made, ToyConfig(), inputs={"images": rows, "teacher": None}, runtime=runtime)
    assert given.key == look_up(made, ToyConfig(), inputs={"images": rows}, runtime=runtime).key


@stage(produces=Rows, version=1)
def write_rows(config: ToyConfig, work: Work) -> None:
    work.data.write("rows.txt", config.name.encode())


def test_the_name_of_the_step_is_not_in_the_key(tmp_path: Path) -> None:
    context = Context(Runtime(device="cpu"), Store(tmp_path / "store"), NoRecorder(), Silent())
    results = [
        run_stage(write_rows, ToyConfig(), inputs={}, context=context, step=step) for step in ("index_a", "index_b")
    ]
    assert [result.reused for result in results] == [False, True]


# The real stages, with no more settings than they need.
REQUIRED: dict[str, dict[str, Any]] = {
    "index_dataset": {"name": "photos", "format": "image_folder"},
    "train_pretext": {"architecture": {"name": "alexnet_bn"}, "epochs": 1},
    "extract_features": {"layers": ["conv4"]},
    "cluster_features": {"num_clusters": 10},
    "assign_labels": {},
    "train_student": {"architecture": {"name": "alexnet_bn"}, "epochs": 1},
    "probe_features": {},
    "finetune_encoder": {"epochs": 1},
    "write_report": {"title": "quickstart"},
}

# Another value for every setting of Runtime. Whoever adds one says here that it changes no key, or makes it config.
OTHER_RUNTIME: dict[str, Any] = {
    "home": Path("elsewhere"),
    "store": Path("another store"),
    "tracking_uri": "https://mlflow.example.org",
    "prefect_api_url": "https://prefect.example.org/api",
    "device": "cuda:1",
    "workers": 7,
    "batch_rows": 3,
    "kmeans_engine": "faiss",
    "checkpoint_seconds": 0.0,
    "lease_seconds": 5.0,
    "data": {"photos": Path("moved photos")},
}


def stages() -> dict[str, Stage[Any, Any]]:
    """Every stage that Graft has, by name."""
    found = {}
    for module in pkgutil.iter_modules(tasks.__path__):
        for value in vars(importlib.import_module(f"tasks.{module.name}")).values():
            if isinstance(value, Stage):
                found[value.name] = value
    return found


def default_config(made: Stage[Any, Any]) -> BaseModel:
    kind: type[BaseModel] = get_type_hints(made.body)["config"]
    return kind.model_validate(REQUIRED[made.name])


def photos(place: Path) -> Path:
    (place / "a").mkdir(parents=True)
    Image.new("RGB", (4, 3), (9, 8, 7)).save(place / "a" / "0.png")
    return place


def test_every_stage_is_in_the_tables_of_this_file() -> None:
    assert sorted(stages()) == sorted(REQUIRED)


def test_every_setting_of_the_runtime_is_known_to_change_no_key() -> None:
    assert sorted(Runtime.model_fields) == sorted(OTHER_RUNTIME), (
        "a new setting of Runtime must never change a result; give another value of it in OTHER_RUNTIME, or make it a "
        "setting of the stage's config"
    )


@pytest.mark.parametrize("setting", OTHER_RUNTIME)
def test_no_setting_of_the_runtime_changes_a_key(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "moved photos")
    usual = Runtime(home=tmp_path / "home", data={"photos": photos(tmp_path / "photos")})
    changed = usual.model_copy(update={setting: OTHER_RUNTIME[setting]})
    assert getattr(changed, setting) != getattr(usual, setting)
    for name, made in stages().items():
        config = default_config(made)
        keys = {look_up(made, config, inputs={}, runtime=runtime).key for runtime in (usual, changed)}
        assert len(keys) == 1, f"{setting} changes the key of {name}"


def settings(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of each single setting of a config, nested ones and method options too."""
    parts = {name: getattr(config, name) for name in type(config).model_fields} if isinstance(config, BaseModel) else config
    if isinstance(parts, dict) and parts:
        for name, part in parts.items():
            yield from settings(part, (*path, name))
    else:
        yield path


def with_setting(config: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    if isinstance(config, BaseModel):
        inner = with_setting(getattr(config, name), tuple(rest), value) if rest else value
        return config.model_copy(update={name: inner})
    return {**config, name: with_setting(config[name], tuple(rest), value) if rest else value}


@pytest.mark.parametrize("name", REQUIRED)
def test_each_single_setting_of_a_stage_changes_its_key(name: str) -> None:
    made, config = stages()[name], default_config(stages()[name])
    paths = list(settings(config))
    assert paths
    with warnings.catch_warnings():
        # The value is of no setting's type, so that it differs from each.
        warnings.simplefilter("ignore")
        keys = {
            ".".join(path): made.key(with_setting(config, path, "another value"), inputs={}, external={})
            for path in paths
        }
    usual = made.key(config, inputs={}, external={})
    assert [path for path, key in keys.items() if key == usual] == []
    assert len(set(keys.values())) == len(paths)


def current_keys() -> dict[str, str]:
    keys = {
        "fixed ingredients": artifact_key(
            "toy",
            version="3",
            config={"epochs": 2, "rate": {"start": 0.1, "steps": [3, 5]}, "limit": None, "name": "é", "flip": True},
            inputs={"images": "aa", "labels": "bb"},
            external={"source": "cc"},
        )
    }
    for name, made in sorted(stages().items()):
        config = default_config(made)
        # The digest of a source is given: its bytes are not what is tested here.
        external = {"source": "cc"} if name == "index_dataset" else made.ingredients(config, Runtime(device="cpu"))
        inputs = {} if name == "index_dataset" else {"images": rows_of("aa")}
        keys[f"default config of {name}"] = made.key(config, inputs=inputs, external=external)
    return keys


def test_no_key_changes_by_accident() -> None:
    """Set WRITE_GOLDEN_KEYS=1 to keep the keys of today instead: a deliberate change, said in the changelog."""
    keys = current_keys()
    if os.environ.get(WRITE_GOLDEN):
        GOLDEN.write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    changed = sorted(name for name in {*golden, *keys} if golden.get(name) != keys.get(name))
    assert not changed, (
        f"the keys of {', '.join(changed)} are not those of {GOLDEN.name}: whatever users have made so far would be "
        "computed again. If this was an accident, undo it (a default, the name of a setting, the key function). If equal "
        "configs now give other results, raise the version of the stage or the method. Then, or if a setting is new, "
        f"keep the new keys and say so in the changelog:\n  {WRITE_GOLDEN}=1 python -m pytest tests/storage/test_key.py"
    )
