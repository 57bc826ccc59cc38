"""Keys of the real stages: each setting is in them, nothing of the runtime is, none changes by accident."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
from PIL import Image
from pydantic import BaseModel

import tasks
from storage.artifact import artifact_key
from tasks.runtime import Runtime
from tasks.stage import Stage, look_up

GOLDEN = Path(__file__).parent / "golden" / "keys.json"
WRITE_GOLDEN = "WRITE_GOLDEN_KEYS"

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

# Another value for every setting of Runtime. Whoever adds one says here that it changes no key.
OTHER_RUNTIME: dict[str, Any] = {
    "home": Path("elsewhere"),
    "store": Path("another store"),
    "tracking_uri": "https://mlflow.example.org",
    "tracking_ui_url": "https://mlflow.example",
    "prefect_api_url": "https://prefect.example.org/api",
    "device": "cuda:1",
    "workers": 7,
    "ranks": 4,
    "ranks_engine": "ray",
    "batch_rows": 3,
    "kmeans_engine": "faiss",
    "checkpoint_seconds": 0.0,
    "lease_seconds": 5.0,
    "store_cache_gb": 0.5,
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
        "a new setting of Runtime must never change a result; give another value of it in OTHER_RUNTIME, or "
        "make it a setting of the stage's config"
    )


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))


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
    parts = (
        {name: getattr(config, name) for name in type(config).model_fields} if isinstance(config, BaseModel) else config
    )
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
            config={
                "epochs": 2,
                "rate": {"start": 0.1, "steps": [3, 5]},
                "limit": None,
                "name": "é",
                "flip": True,
            },
            inputs={"images": "aa", "labels": "bb"},
            external={"source": "cc"},
        )
    }
    for name, made in sorted(stages().items()):
        config = default_config(made)
        # The digest of a source is given: its bytes are not what is tested here.
        external = {"source": "cc"} if name == "index_dataset" else made.ingredients(config, Runtime(device="cpu"))
        inputs: dict[str, Any] = {} if name == "index_dataset" else {"images": SimpleNamespace(digest="aa")}
        keys[f"default config of {name}"] = made.key(config, inputs=inputs, external=external)
    return keys


def test_no_key_changes_by_accident() -> None:
    """With WRITE_GOLDEN_KEYS=1 the keys of today are kept instead: a deliberate change."""
    keys = current_keys()
    if os.environ.get(WRITE_GOLDEN):
        GOLDEN.write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    changed = sorted(name for name in {*golden, *keys} if golden.get(name) != keys.get(name))
    assert not changed, (
        f"the keys of {', '.join(changed)} are not those of {GOLDEN.name}: what users have made would be "
        "computed again. If this was an accident, undo it (a default, a setting's name, the key function). "
        "If equal configs now give other results, raise the version of the stage or the method. Then, or if "
        "a setting is new, keep the new keys and say so in the changelog:\n"
        f"  {WRITE_GOLDEN}=1 python -m pytest tests/storage/test_stage_keys.py"
    )
