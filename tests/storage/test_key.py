"""The key: every ingredient changes it, alone, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from storage.artifact import Artifact, Marker
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, Work, look_up, run_stage, stage


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
