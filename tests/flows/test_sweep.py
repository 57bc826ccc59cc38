"""A sweep: which combinations there are, what they share, and what becomes of one that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.recipe import RecipeError
from flows.sweep import SweepFailed, SweepRequest, SweepResult, parse_settings, plan_sweep, run_sweep
from tasks.runtime import Runtime

CLUSTERS, EPOCHS = "cluster_features.num_clusters", "train_student.epochs"


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(home=tmp_path / "home", device="cpu", workers=0)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2,4", [1, 2, 4]),
        ("a.b=x", ["x"]),
        (" a.b =x, y", ["x", "y"]),
        ("a.b=0.1,null,true", [0.1, None, True]),
        ("a.b=[1, 2],[3]", [[1, 2], [3]]),
        ("a.b={stride: 2, split: x},{}", [{"stride": 2, "split": "x"}, {}]),
        ('a.b="x, y",z', ["x, y", "z"]),
        ("a.b=c=d", ["c=d"]),
    ],
)
def test_the_values_are_the_inside_of_a_yaml_list(text: str, values: list[Any]) -> None:
    assert parse_settings([text]) == {"a.b": values}


@pytest.mark.parametrize("texts", [["a.b"], ["a.b="], ["=1"], ["a.b=1", "a.b=2"], ["a.b=[1"], ["a.b=1]"]])
def test_what_is_no_setting_is_refused(texts: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"--set"):
        parse_settings(texts)


def test_all_combinations_are_run_and_each_is_told_the_values_as_they_are() -> None:
    request = SweepRequest(recipe="smoke", settings={CLUSTERS: [4, 5], "train_data.name": ["1", None]})
    combinations = request.combinations()
    assert [str(one) for one in combinations] == [
        f"{CLUSTERS}=4 train_data.name=1",
        f"{CLUSTERS}=4 train_data.name=null",
        f"{CLUSTERS}=5 train_data.name=1",
        f"{CLUSTERS}=5 train_data.name=null",
    ]
    # A text that looks like a number stays a text.
    assert combinations[0].request.changes == (f"{CLUSTERS}=4", 'train_data.name="1"')
    assert {one.request.sweep for one in combinations} == {request.name}
    assert request.name.startswith("smoke-")
    assert request.name != SweepRequest(recipe="smoke", settings={CLUSTERS: [4, 6]}).name


def test_what_combinations_share_is_counted_once(runtime: Runtime) -> None:
    plan = plan_sweep(SweepRequest(recipe="smoke", settings={EPOCHS: [1, 2], CLUSTERS: [4, 5]}), runtime=runtime)
    first, second, third, fourth = plan.rows()
    assert (first["shared"], first["there"], first["own"]) == ("0", "0", first["steps"])
    # Other clusters: from the clustering on; another student of the same clusters: from the student on.
    assert int(second["own"]) > int(third["own"]) > 0
    # Student, its features, probe and finetuning, and the report.
    assert int(third["own"]) == int(fourth["own"]) == 6
    assert int(second["own"]) == int(third["own"]) + 2
    assert all(int(row["own"]) + int(row["shared"]) == int(row["steps"]) for row in plan.rows())
    own = sum(int(row["own"]) for row in plan.rows())
    assert str(plan).startswith("4 runs of ") and str(plan).endswith(f"{own} are to be computed")
    assert not runtime.store_root.exists()


def test_a_setting_that_does_not_exist_stops_all_before_anything_runs(runtime: Runtime) -> None:
    with pytest.raises(RecipeError, match=r"cluster_features.clusters is not a key"):
        plan_sweep(SweepRequest(recipe="smoke", settings={"cluster_features.clusters": [4]}), runtime=runtime)


def score(encoder: str, value: float) -> dict[str, Any]:
    return {"task": "t", "score": "knn", "encoder": encoder, "value": value, "low": value - 0.1, "high": value + 0.1}


def test_one_that_fails_does_not_stop_the_others_and_is_named(runtime: Runtime) -> None:
    request = SweepRequest(recipe="smoke", settings={CLUSTERS: [4, 80]})
    seen = []

    def run(one: Any) -> None:
        seen.append(one.changes)
        raise ValueError(f"no\n{one.changes[0]}")

    result = run_sweep(request, run, runtime=runtime)
    assert len(seen) == 2 and [row["encoder"] for row in result.rows()] == ["failed", "failed"]
    with pytest.raises(
        SweepFailed, match=rf"^2 of 2 combinations failed; {CLUSTERS}=4: no {CLUSTERS}=4; {CLUSTERS}=80"
    ):
        result.require_all()


def test_who_stops_a_sweep_stops_all_of_it(runtime: Runtime) -> None:
    def run(one: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(SweepRequest(recipe="smoke", settings={CLUSTERS: [4]}), run, runtime=runtime)


def test_the_table_has_a_row_an_encoder_with_settings_and_intervals() -> None:
    good, bad = SweepRequest(recipe="smoke", settings={CLUSTERS: [4, 80]}).combinations()
    result = SweepResult([(good, [score("teacher", 0.5), score("student", 0.4)]), (bad, [])], {str(bad): "too many"})
    assert result.rows() == [
        {CLUSTERS: "4", "encoder": "teacher", "t: knn": "50.0 (40.0 to 60.0)"},
        {CLUSTERS: "4", "encoder": "student", "t: knn": "40.0 (30.0 to 50.0)"},
        {CLUSTERS: "80", "encoder": "failed", "t: knn": ""},
    ]
