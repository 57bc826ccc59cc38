"""What was collected is not missed until something that needs it has to be computed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.execute import Executor
from flows.plan import Planner, StepHistory
from flows.selection import CannotRun, Selection
from storage.artifact import Artifact
from storage.collection import Collector
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, StageResult, Work, stage


class Rows(Artifact):
    kind = "Rows"


class Config(BaseModel, frozen=True, extra="forbid"):
    text: str


# What reading gives: a test changes it, as another machine would.
SAYS = {"read": ""}


@stage(produces=Rows, version=1)
def read(config: Config, work: Work) -> None:
    work.data.write("rows.txt", (config.text + SAYS["read"]).encode())


@stage(produces=Rows, version=1)
def mix(config: Config, work: Work, **inputs: Rows) -> None:
    parts = [inputs[name].folder.read("rows.txt").decode() for name in sorted(inputs)]
    work.data.write("rows.txt", f"{config.text}({','.join(parts)})".encode())


class Road:
    """images -> teacher -> features -> labels; a probe of the teacher; the report needs labels and probe."""

    def __init__(self, folder: Path) -> None:
        self.home = Folder(folder / "home")
        runtime = Runtime(home=self.home.path, device="cpu")
        self.store = Store(runtime.store_root)
        self.context = Context(runtime, self.store, NoRecorder(), Silent())
        self.settings = {name: name for name in ("teacher", "features", "labels", "probe", "report")}
        self.keys: dict[str, str] = {}
        self.results: dict[str, StageResult[Any]] = {}
        # The steps that the user was told of, in the last run.
        self.told: list[str] = []

    def flow(self, run: Any) -> Any:
        images = run("images", read, Config(text="i"))
        made = {name: Config(text=text) for name, text in self.settings.items()}
        teacher = run("teacher", mix, made["teacher"], images=images)
        features = run("features", mix, made["features"], teacher=teacher, images=images)
        labels = run("labels", mix, made["labels"], features=features)
        probe = run("probe", mix, made["probe"], teacher=teacher)
        return run("report", mix, made["report"], labels=labels, probe=probe)

    def run(self, **selection: Any) -> list[str]:
        """Run the flow; gives the steps that were computed, in order."""
        chosen = Selection(**{name: frozenset(steps) for name, steps in selection.items()})
        order: list[str] = []
        history = StepHistory(self.home / "recipes", "toy")
        executor = Executor(
            self.context,
            history,
            chosen,
            on_done=self._done(order),
            on_key=lambda step, key: self.keys.update({step: key}),
        )
        executor.follow(self.flow)
        self.results = executor.results
        return order

    def _done(self, computed: list[str]) -> Callable[[str, StageResult[Any]], None]:
        self.told = []

        def done(step: str, result: StageResult[Any]) -> None:
            self.told.append(step)
            if not result.reused:
                computed.append(step)

        return done

    def states(self) -> dict[str, str]:
        return {step: status.state for step, status in self.plan().steps.items()}

    def plan(self) -> Planner:
        planner = Planner(self.context, StepHistory(self.home / "recipes", "toy"))
        planner.follow(self.flow)
        return planner

    def collect(self, *steps: str) -> None:
        collector = Collector(self.store, days=0, work_days=0)
        wanted = {self.keys[step] for step in steps}
        for garbage in collector.look():
            assert garbage.name not in wanted or collector.remove(garbage)

    def text(self, step: str) -> str:
        artifact = self.plan().steps[step].artifact
        assert artifact is not None
        return artifact.folder.read("rows.txt").decode()


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    made = Road(tmp_path)
    assert made.run() == ["images", "teacher", "features", "labels", "probe", "report"]
    yield made
    SAYS["read"] = ""


@contextmanager
def other_content() -> Iterator[None]:
    SAYS["read"] = "!"
    try:
        yield
    finally:
        SAYS["read"] = ""


def test_what_lies_below_is_found_without_it(road: Road) -> None:
    report = road.text("report")
    road.collect("images", "teacher", "features", "labels", "probe")
    assert road.states() == dict.fromkeys(("images", "teacher", "features", "labels", "probe"), "collected") | {
        "report": "done"
    }
    planner = road.plan()
    assert planner.complete and planner.num_to_run == 1
    assert planner.steps["teacher"].reason == "its data was collected, and nothing needs it"
    assert planner.keys == road.keys
    assert road.run() == [] and list(road.results) == ["report"] and road.text("report") == report


def test_what_the_flow_is_for_is_made_again_with_what_it_reads(road: Road) -> None:
    report = road.text("report")
    road.collect("report")
    assert road.plan().steps["report"].reason == "collected, and who runs it needs it"
    assert road.run() == ["report"]
    road.collect(*road.keys)
    assert set(road.states().values()) == {"missing"}
    assert road.run() == ["images", "teacher", "features", "labels", "probe", "report"]
    assert road.text("report") == report and road.run() == []


@pytest.mark.parametrize(
    ("collected", "changed", "computed"),
    [
        # Only what the changed step reads, and what that reads if it is gone as well.
        (["features"], "labels", ["features", "labels", "report"]),
        (["teacher", "features"], "labels", ["teacher", "features", "labels", "report"]),
        (["images", "teacher", "features"], "labels", ["images", "teacher", "features", "labels", "report"]),
        (["images", "teacher", "features"], "probe", ["images", "teacher", "probe", "report"]),
        (["images", "teacher", "features"], "report", ["report"]),
        (["labels"], "report", ["labels", "report"]),
        (["images", "labels"], "features", ["images", "features", "labels", "report"]),
        (["teacher"], "probe", ["teacher", "probe", "report"]),
    ],
)
def test_what_a_changed_step_needs_is_made_again_and_no_more(
    road: Road, collected: list[str], changed: str, computed: list[str]
) -> None:
    road.collect(*collected)
    road.settings[changed] = f"{changed} anew"
    needed = [step for step in collected if step in computed and step != "labels"]
    steps = road.plan().steps
    assert {step for step in needed if steps[step].state != "missing"} == set()
    assert all("collected, and " in steps[step].reason for step in needed)
    assert road.run() == computed and f"{changed} anew" in road.text("report")
    # Made again, or still not needed.
    assert road.run() == [] and road.plan().complete


def test_two_steps_that_need_it_make_it_once(road: Road) -> None:
    road.collect("images", "teacher", "features")
    road.settings |= {"probe": "P", "labels": "L"}
    assert road.run() == ["images", "teacher", "features", "labels", "probe", "report"] == road.told


def test_what_comes_back_with_other_content_is_followed_by_all_below_it(
    road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    """Another machine may compute other bytes. Nothing may be joined that was made of both."""
    road.collect("images", "teacher", "features")
    road.settings["probe"] = "P"
    with other_content(), caplog.at_level(logging.WARNING):
        computed = road.run()
    assert "images was collected, and has other content now that it was made again" in caplog.text
    assert computed == ["images", "teacher", "features", "labels", "probe", "report"]
    assert road.text("report") == "report(labels(features(i!,teacher(i!))),P(teacher(i!)))"
    assert road.run() == []


def test_a_forced_step_is_not_forced_twice_when_all_begins_anew(road: Road) -> None:
    road.collect("images", "teacher")
    with other_content():
        assert road.run(force={"features"}) == ["images", "teacher", "features", "labels", "probe", "report"]


def test_a_step_alone_uses_what_is_there_and_names_what_was_collected(road: Road) -> None:
    road.collect("images", "teacher", "features")
    assert road.run(only={"labels"}) == []
    road.collect("report")
    assert road.run(only={"probe"}) == [], "what it does not name is not made again"
    assert road.run(only={"report"}) == ["report"]
    road.settings["labels"] = "L"
    with pytest.raises(CannotRun, match=r"--only labels needs features, whose data was collected; .* --only features "):
        road.run(only={"labels"})
    with pytest.raises(CannotRun, match=r"--only features needs images|--only features needs teacher"):
        road.run(only={"labels", "features"})
    assert road.run(only={"labels", "features", "teacher", "images"}) == ["images", "teacher", "features", "labels"]


def test_forced_what_was_collected_is_made_again(road: Road) -> None:
    road.collect("labels", "features")
    assert road.run(force={"labels"}) == ["features", "labels"]
    assert road.states()["labels"] == "done"
    road.collect("features")
    assert road.run(start={"features"}) == ["features", "labels", "report"]


def test_a_key_is_named_before_its_artifact_is_looked_for(road: Road) -> None:
    """Or it could be collected in between."""
    named: set[str] = set()
    looked: list[str] = []

    class Watching(Store):
        def find(self, kind: Any, key: str) -> Any:
            assert key in named
            looked.append(key)
            return super().find(kind, key)

        def find_collected(self, kind: Any, key: str) -> Any:
            assert key in named
            return super().find_collected(kind, key)

    road.collect("features")
    road.settings["probe"] = "P"
    context = replace(road.context, store=Watching(road.store.root))
    for only in ({}, {"only": frozenset({"probe"})}):
        history = StepHistory(road.home / "recipes", "toy")
        Executor(context, history, Selection(**only), on_key=lambda step, key: named.add(key)).follow(road.flow)
    assert len(named) == 6 and len(looked) > 6
