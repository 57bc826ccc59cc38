"""The plan: each step's state and the reason for it, found without computing or writing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.plan import Absent, Planner, StepHistory, StepStatus
from storage.artifact import Artifact
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, Work, run_stage, stage


class Rows(Artifact):
    kind = "Rows"


class Optimizer(BaseModel, frozen=True, extra="forbid"):
    lr: float = 0.1
    name: str = "sgd"


class ReadConfig(BaseModel, frozen=True, extra="forbid"):
    text: str = "a"


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    epochs: int = 4
    optimizer: Optimizer = Optimizer()
    clip: float | None = None


class Road:
    """Three toy steps: read -> train -> probe; `probe` also takes what was read."""

    def __init__(self, folder: Path) -> None:
        self.home = Folder(folder / "home")
        runtime = Runtime(home=self.home.path, device="cpu")
        self.store = Store(runtime.store_root)
        self.context = Context(runtime, self.store, NoRecorder(), Silent())
        self.read_config, self.train_config = ReadConfig(), TrainConfig()
        self.source = "aa"
        self.stop_after: int | None = None
        self.read, self.train, self.probe = self._stages()

    def history(self) -> StepHistory:
        return StepHistory(self.home / "recipes", "toy")

    def flow(self, run: Any) -> Any:
        rows = run("read", self.read, self.read_config)
        trained = run("train", self.train, self.train_config, rows=rows)
        return run("probe", self.probe, ReadConfig(), rows=rows, trained=trained, teacher=None)

    def plan(self) -> Planner:
        planner = Planner(self.context, self.history())
        self.flow(planner)
        return planner

    def status(self, step: str) -> StepStatus:
        return self.plan().steps[step]

    def states(self) -> dict[str, str]:
        return {name: status.state for name, status in self.plan().steps.items()}

    def run(self) -> None:
        history = self.history()

        def run(step: str, made: Stage[Any, Any], config: BaseModel, /, **inputs: Any) -> Artifact:
            artifact = run_stage(made, config, inputs=inputs, context=self.context, step=step).artifact
            history.note(step, artifact.key)
            return artifact

        self.flow(run)

    def _stages(self) -> list[Stage[Any, Rows]]:
        @stage(produces=Rows, version=1, ingredients=lambda config, runtime: {"source": self.source})
        def read(config: ReadConfig, work: Work) -> None:
            work.data.write("rows.txt", config.text.lower().encode())

        @stage(produces=Rows, version=1)
        def train(config: TrainConfig, work: Work, *, rows: Rows) -> None:
            for epoch in range(config.epochs):
                if epoch == self.stop_after:
                    raise KeyboardInterrupt
                work.progress(epoch + 1, config.epochs, unit="epochs")
                work.commit(str(epoch), records=[])
            work.data.write("rows.txt", rows.folder.read("rows.txt") + repr(config).encode())

        @stage(produces=Rows, version=1)
        def probe(config: ReadConfig, work: Work, *, rows: Rows, trained: Rows) -> None:
            work.data.write("rows.txt", trained.folder.read("rows.txt"))

        return [read, train, probe]


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return Road(tmp_path)


@pytest.fixture
def done(road: Road) -> Road:
    road.run()
    return road


def test_a_plan_of_nothing_writes_nothing(road: Road) -> None:
    planner = road.plan()
    assert road.states() == {"read": "missing", "train": "waits", "probe": "waits"}
    assert planner.steps["read"].reason == "never done" and not planner.complete
    assert not road.home.path.exists()


def test_a_step_waits_for_all_that_is_not_done(road: Road) -> None:
    steps = road.plan().steps
    assert (steps["train"].reason, steps["probe"].reason) == ("for read", "for read, train")
    assert steps["train"].artifact is None and steps["train"].stage == "train"


def test_done_steps_give_their_artifacts(done: Road) -> None:
    planner = done.plan()
    assert planner.complete and done.states() == {"read": "done", "train": "done", "probe": "done"}
    for name, status in planner.steps.items():
        assert status.artifact is not None and status.artifact.marker.stage == name
        assert (status.percent, status.reason) == (None, "")


def test_what_is_missing_is_given_to_the_flow_as_absent(road: Road) -> None:
    planner = Planner(road.context, road.history())
    assert road.flow(planner) == Absent("probe")


@pytest.mark.parametrize(("stop_after", "percent"), [(0, None), (1, 25.0), (3, 75.0)])
def test_a_step_that_was_begun_is_partial_with_its_percent(road: Road, stop_after: int, percent: float | None) -> None:
    road.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        road.run()
    status = road.status("train")
    assert (status.state, status.percent, status.reason) == ("partial", percent, "begun and not finished")
    assert road.states() == {"read": "done", "train": "partial", "probe": "waits"}
    road.stop_after = None
    road.run()
    assert road.plan().complete


def test_what_was_begun_with_other_settings_is_not_partial(road: Road) -> None:
    road.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        road.run()
    road.train_config = TrainConfig(epochs=5)
    assert road.status("train").state == "missing"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TrainConfig(epochs=5), "epochs 4 -> 5"),
        (TrainConfig(clip=0.5), "clip null -> 0.5"),
        (TrainConfig(optimizer=Optimizer(lr=0.2)), "optimizer.lr 0.1 -> 0.2"),
        (
            TrainConfig(epochs=5, optimizer=Optimizer(name="adam")),
            'epochs 4 -> 5; optimizer.name "sgd" -> "adam"',
        ),
    ],
)
def test_a_stale_step_names_the_settings_that_changed(done: Road, config: TrainConfig, reason: str) -> None:
    done.train_config = config
    status = done.status("train")
    assert (status.state, status.reason, status.artifact) == ("stale", reason, None)
    assert done.states() == {"read": "done", "train": "stale", "probe": "waits"}


def test_a_setting_that_is_new_is_unset_before(done: Road) -> None:
    class LongerConfig(TrainConfig, frozen=True, extra="forbid"):
        warmup: int = 0

    done.train_config = LongerConfig()
    assert done.status("train").reason == "warmup unset -> 0"


def test_a_stale_step_names_the_input_that_changed(done: Road) -> None:
    done.read_config = ReadConfig(text="b")
    assert done.states() == {"read": "stale", "train": "waits", "probe": "waits"}
    run_stage(done.read, done.read_config, inputs={}, context=done.context)
    assert done.status("read").state == "done"
    assert (done.status("train").state, done.status("train").reason) == (
        "stale",
        "input rows has other content",
    )


def test_an_input_of_equal_bytes_leaves_what_lies_below_done(done: Road) -> None:
    done.read_config = ReadConfig(text="A")
    assert done.status("train").reason == "for read"
    run_stage(done.read, done.read_config, inputs={}, context=done.context)
    assert done.states() == {"read": "done", "train": "done", "probe": "done"}


def test_a_stale_step_names_the_source_and_the_version_that_changed(done: Road) -> None:
    done.source = "bb"
    assert (done.status("read").state, done.status("read").reason) == ("stale", "source changed")
    done.source = "aa"
    old = done.train
    done.train = Stage(old.name, 2, old.produces, old.body, old.ingredients)
    assert (done.status("train").state, done.status("train").reason) == ("stale", "stage version 1 -> 2")


def test_going_back_to_what_was_done_before_is_done(done: Road) -> None:
    done.train_config = TrainConfig(epochs=5)
    done.run()
    assert done.plan().complete
    done.train_config = TrainConfig()
    assert done.plan().complete
    # Compared with what was done last, not with what was done first.
    done.train_config = TrainConfig(epochs=6)
    assert done.status("train").reason == "epochs 5 -> 6"


@pytest.mark.parametrize("damage", ["the marker", "a file"])
def test_an_artifact_that_is_gone_or_damaged_is_missing(done: Road, damage: str) -> None:
    artifact = done.status("train").artifact
    assert artifact is not None
    (
        artifact.folder.path.parent / "marker.json" if damage == "the marker" else artifact.folder.path / "rows.txt"
    ).unlink()
    status = done.status("train")
    assert (status.state, status.reason) == ("missing", "its artifact is gone or damaged")
    assert done.states()["probe"] == "waits"


def test_a_history_that_cannot_be_read_only_loses_the_reasons(done: Road) -> None:
    (done.home / "recipes").write("toy.json", b'{"train": ')
    assert done.plan().complete
    done.train_config = TrainConfig(epochs=5)
    assert (done.status("train").state, done.status("train").reason) == ("missing", "never done")


def test_recipes_have_histories_of_their_own(done: Road) -> None:
    other = StepHistory(done.home / "recipes", "another")
    assert other.get("train") is None and done.history().get("train") is not None
    other.note("train", "0" * 64)
    assert StepHistory(done.home / "recipes", "another").get("train") == "0" * 64
    assert done.history().get("train") != "0" * 64
