"""Doing what a flow says: all of it, one step alone, a step and all below it, or a step anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.execute import Executor
from flows.plan import Absent, Planner, StepHistory
from flows.selection import CannotRun, Selection
from storage.artifact import Artifact
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, StageResult, Work, run_stage, stage

STEPS = ["read_a", "read_b", "read_c", "left", "right", "join"]


class Rows(Artifact):
    kind = "Rows"


class Config(BaseModel, frozen=True, extra="forbid"):
    text: str


@stage(produces=Rows, version=1)
def read(config: Config, work: Work) -> None:
    work.data.write("rows.txt", config.text.encode())


class Others(Artifact):
    kind = "Others"


@stage(produces=Others, version=1)
def read_other(config: Config, work: Work) -> None:
    work.data.write("others.txt", config.text.encode())


@stage(produces=Rows, version=1)
def mix(config: Config, work: Work, **inputs: Rows) -> None:
    parts = [inputs[name].folder.read("rows.txt").decode() for name in sorted(inputs)]
    work.data.write("rows.txt", f"{config.text}({','.join(parts)})".encode())


def flow(run: Any) -> Any:
    """read_a and read_b are one computation of two names; left needs a, right b and c, join needs both."""
    a = run("read_a", read, Config(text="a"))
    b = run("read_b", read, Config(text="a"))
    c = run("read_c", read, Config(text="c"))
    left = run("left", mix, Config(text="left"), rows=a, missing=None)
    right = run("right", mix, Config(text="right"), rows=b, others=c)
    return run("join", mix, Config(text="join"), left=left, right=right)


class Road:
    """The toy flow in a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = Folder(folder / "home")
        runtime = Runtime(home=self.home.path, device="cpu")
        self.context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())
        self.last: Any = None
        self.executor: Executor

    def run(
        self,
        *,
        only: set[str] | None = None,
        start: set[str] | None = None,
        force: set[str] | None = None,
        use: dict[str, str] | None = None,
    ) -> list[str]:
        """Run the flow; gives the steps that were computed, in order."""
        selection = Selection(frozenset(only or ()), frozenset(start or ()), frozenset(force or ()), use or {})
        self.executor = Executor(self.context, StepHistory(self.home / "recipes", "toy"), selection)
        self.last = flow(self.executor)
        return [step for step, result in self.executor.results.items() if not result.reused]

    def states(self) -> dict[str, str]:
        planner = Planner(self.context, StepHistory(self.home / "recipes", "toy"))
        flow(planner)
        return {name: status.state for name, status in planner.steps.items()}


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Road:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return Road(tmp_path)


@pytest.fixture
def done(road: Road) -> Road:
    assert road.run() == ["read_a", "read_c", "left", "right", "join"]
    return road


def test_all_of_it_is_done_once(done: Road) -> None:
    assert done.last.folder.read("rows.txt") == b"join(left(a),right(c,a))"
    assert done.run() == [] and list(done.executor.results) == STEPS
    assert set(done.states().values()) == {"done"}


def test_only_computes_one_step_from_what_is_there(road: Road) -> None:
    for step in ["read_a", "left"]:
        assert road.run(only={step}) == [step]
        assert list(road.executor.results) == [step]
    # read_b is read_a by another name, so it is there as well.
    assert road.states() == {
        "read_a": "done",
        "read_b": "done",
        "read_c": "missing",
        "left": "done",
        "right": "waits",
        "join": "waits",
    }
    assert road.last == Absent("join")


def test_only_reuses_what_is_there(done: Road) -> None:
    assert done.run(only={"join"}) == [] and done.executor.results["join"].reused


@pytest.mark.parametrize(
    ("ready", "step", "missing", "remedy"),
    [
        ([], "left", "read_a", "--only read_a --only left"),
        (["read_a"], "right", "read_c", "--only read_c --only right"),
        ([], "right", "read_b, read_c", "--only read_b --only read_c --only right"),
        (["read_a", "left"], "join", "right", "--only right --only join"),
    ],
)
def test_only_needs_what_the_step_needs_and_names_it(
    road: Road, ready: list[str], step: str, missing: str, remedy: str
) -> None:
    for name in ready:
        road.run(only={name})
    with pytest.raises(CannotRun, match=rf"--only {step} needs {missing}, which must be done and is not; .*{remedy}$"):
        road.run(only={step})
    assert [name for name, state in road.states().items() if state == "done" and name not in ready] == (
        ["read_b"] if ready else []
    )


def test_several_steps_may_be_the_only_ones(road: Road) -> None:
    assert road.run(only={"read_c", "read_b", "right"}) == ["read_b", "read_c", "right"]


def test_from_a_step_all_below_it_is_computed_anew(done: Road) -> None:
    assert done.run(start={"read_c"}) == ["read_c", "right", "join"]
    assert done.run(start={"left"}) == ["left", "join"]
    assert done.run(start={"join"}) == ["join"]
    assert done.run(start={"left", "read_c"}) == ["read_c", "left", "right", "join"]
    assert done.run() == []


def test_from_a_step_that_was_never_done_is_a_usual_run(road: Road) -> None:
    assert road.run(start={"right"}) == ["read_a", "read_c", "left", "right", "join"]


def test_from_two_steps_that_are_one_computation_computes_it_once(done: Road) -> None:
    assert done.run(start={"read_a", "read_b"}) == ["read_a", "left", "right", "join"]


def test_force_computes_one_step_anew_and_nothing_else(done: Road) -> None:
    before = done.last.marker
    for step in STEPS:
        assert done.run(force={step}) == [step]
    assert done.last.marker.created > before.created and done.last.digest == before.digest


def test_force_and_only_go_together(done: Road) -> None:
    assert done.run(only={"right"}, force={"right"}) == ["right"]
    assert done.run(only={"right"}, force={"left"}) == []


def test_a_failure_keeps_what_was_done_before_it(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config, work: Work, **inputs: Rows) -> None:
        raise ValueError("right cannot be mixed")

    whole = mix.body
    object.__setattr__(
        mix,
        "body",
        lambda config, work, **inputs: (fail if config.text == "right" else whole)(config, work, **inputs),
    )
    try:
        with pytest.raises(ValueError, match="right cannot be mixed"):
            road.run()
    finally:
        object.__setattr__(mix, "body", whole)
    assert road.states()["left"] == "done"
    assert road.run() == ["right", "join"]


def test_what_was_done_is_noted_for_the_next_plan(done: Road) -> None:
    history = StepHistory(done.home / "recipes", "toy")
    assert {step: history.get(step) for step in STEPS} == {
        step: result.artifact.key for step, result in done.executor.results.items()
    }


def test_each_step_is_told_of_and_called_through_around(road: Road) -> None:
    told: list[str] = []

    def around(step: str, call: Any) -> StageResult[Any]:
        told.append(f"around {step}")
        return call()

    flow(
        Executor(
            road.context,
            StepHistory(road.home / "recipes", "toy"),
            Selection(only=frozenset({"read_a", "left"})),
            around,
            lambda step: told.append(f"start {step}"),
            lambda step, result: told.append(f"done {step} {result.reused}"),
        )
    )
    assert told == [
        "start read_a",
        "around read_a",
        "done read_a False",
        "start left",
        "around left",
        "done left False",
    ]


@pytest.mark.parametrize("part", ["only", "start", "force"])
def test_a_step_that_does_not_exist_is_named_with_those_that_do(part: str) -> None:
    steps = dict.fromkeys(STEPS)
    Selection(**{part: frozenset({"left", "join"})}).require_known(steps)
    with pytest.raises(CannotRun, match=r"^lefd must be a step of this recipe; its steps are read_a, .*, join$"):
        Selection(**{part: frozenset({"lefd", "join"})}).require_known(steps)


def test_a_pattern_names_several_steps(road: Road) -> None:
    assert road.run(only={"read_*"}) == ["read_a", "read_c"]
    assert road.run() == ["left", "right", "join"]
    assert road.run(force={"*ft"}) == ["left"]
    assert road.run(start={"l*t"}) == ["left", "join"]
    with pytest.raises(CannotRun, match=r"^write_\* must be a step"):
        Selection(only=frozenset({"write_*"})).require_known(STEPS)


def test_a_given_artifact_takes_the_place_of_the_steps_own(road: Road) -> None:
    road.run()
    other = run_stage(read, Config(text="other"), inputs={}, context=road.context).artifact
    # Steps above the given one are not needed; steps below it see other content.
    assert road.run(use={"left": other.key}) == ["join"]
    assert road.last.folder.read("rows.txt") == b"join(other,right(c,a))"
    planner = Planner(road.context, StepHistory(road.home / "recipes", "toy"), Selection(use={"left": other.key}))
    flow(planner)
    given = planner.steps["left"].artifact
    assert given is not None and given.key == other.key and planner.steps["left"].reason == "given by --use"
    assert planner.complete


def test_a_given_artifact_lets_a_step_run_without_what_lies_above(road: Road) -> None:
    other = run_stage(read, Config(text="other"), inputs={}, context=road.context).artifact
    assert road.run(only={"join"}, use={"left": other.key, "right": other.key}) == ["join"]
    assert road.last.folder.read("rows.txt") == b"join(other,other)"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("0" * 64, r"^--use left=0+ must name an artifact that is there; .* holds none of key 0+"),
        ("0" * 32, r"^--use left=0+ must be the id of an MLflow run of a step"),
        ("teacher", r"^--use left=\.\.\. must name an artifact by its key .* got 'teacher'"),
    ],
)
def test_a_given_artifact_must_be_there(road: Road, reference: str, message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        road.run(use={"left": reference})


def test_a_given_artifact_must_be_of_the_kind_that_the_step_makes(road: Road) -> None:
    other = run_stage(read_other, Config(text="a"), inputs={}, context=road.context).artifact
    with pytest.raises(CannotRun, match=r"^--use left=\w+: an artifact of kind Rows is needed; .* holds Others$"):
        road.run(use={"left": other.key})
