"""One step can be run again alone, or with all that lies below it; `graft status` says beforehand what is what."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from storage.store import Store
from tests.end_to_end.command import ALONE, RECIPE, Result, WarmGraft, environment, keys_of_steps

SIX = ("--set", "cluster_features.num_clusters=6")
BELOW_CLUSTERS = [
    "cluster_features",
    "assign_labels",
    "train_student",
    "extract_photographs_student_train",
    "extract_photographs_student_test",
    "probe_photographs_student",
    "finetune_photographs_student",
    "write_report",
]


def digests(home: Path) -> dict[str, str]:
    """Key -> content digest of every artifact."""
    store = Store(home / "store")
    return {key: store.marker(key).digest for key in store.complete()}


def status_lines(result: Result) -> dict[str, list[str]]:
    """Step -> the words of its line in a status table."""
    rows = (line.split() for line in result.stdout.splitlines()[1:])
    return {words[0]: words[1:] for words in rows if words}


def test_one_step_alone_is_run_with_another_setting(home: Path, warm: WarmGraft) -> None:
    before = digests(home)

    changed = status_lines(warm("status", RECIPE, *SIX, env=environment(home)))
    assert changed["extract_cluster"] == ["done"]
    assert changed["cluster_features"] == ["stale", "num_clusters", "5", "->", "6"]
    assert changed["assign_labels"] == ["waits", "for", "cluster_features"]
    assert changed["train_direct"] == ["done"]
    assert {step for step, words in changed.items() if words != ["done"]} == set(BELOW_CLUSTERS)

    alone = warm("run", RECIPE, "--only", "cluster_features", *SIX, ALONE, env=environment(home))
    assert (alone.code, alone.stderr) == (0, "")
    assert (alone.computed, alone.reused, alone.training_steps) == (["cluster_features"], [], 0)
    assert len(digests(home)) == len(before) + 1
    assert digests(home).items() >= before.items()

    after = status_lines(warm("status", RECIPE, *SIX, env=environment(home)))
    assert after["cluster_features"] == ["done"]
    assert after["assign_labels"] == ["stale", "input", "centroids", "has", "other", "content"]
    assert after["train_student"] == ["waits", "for", "assign_labels"]
    assert {step for step, words in after.items() if words != ["done"]} == set(BELOW_CLUSTERS[1:])
    # The recipe as it is written is as complete as before.
    as_written = status_lines(warm("status", RECIPE, env=environment(home)))
    assert all(words == ["done"] for words in as_written.values())


def test_a_step_and_all_below_it_are_run_anew(home: Path, warm: WarmGraft) -> None:
    before, steps = digests(home), set(keys_of_steps(home))
    anew = warm("run", RECIPE, "--from", "cluster_features", ALONE, env=environment(home))
    assert (anew.code, anew.stderr) == (0, "")
    assert anew.computed == BELOW_CLUSTERS
    assert set(anew.reused) == steps - set(BELOW_CLUSTERS)
    assert digests(home) == before


def test_a_step_whose_inputs_are_missing_says_which(home: Path, warm: WarmGraft) -> None:
    shutil.rmtree(home / "store" / "artifacts" / keys_of_steps(home)["assign_labels"])
    told = status_lines(warm("status", RECIPE, env=environment(home)))
    assert told["assign_labels"] == ["missing", "its", "artifact", "is", "gone", "or", "damaged"]
    assert told["train_student"] == ["waits", "for", "assign_labels"]
    alone = warm("run", RECIPE, "--only", "train_student", ALONE, env=environment(home))
    assert alone.code == 1
    assert alone.stderr.count("\n") == 1
    assert alone.stderr.startswith("error --only train_student needs assign_labels, which must be done")
    assert "--only assign_labels --only train_student" in alone.stderr
    assert alone.computed == []


def test_steps_asked_for_are_run_in_the_order_of_the_flow(home: Path, warm: WarmGraft) -> None:
    keys = keys_of_steps(home)
    before = digests(home)
    for step in ("assign_labels", "train_student"):
        shutil.rmtree(home / "store" / "artifacts" / keys[step])
    both = ("--only", "train_student", "--only", "assign_labels")
    result = warm("run", RECIPE, *both, ALONE, env=environment(home))
    assert (result.code, result.computed) == (0, ["assign_labels", "train_student"])
    assert digests(home) == before


@pytest.mark.parametrize("option", ["--only", "--from", "--force"])
def test_an_unknown_step_is_refused(smoke_home: Path, warm: WarmGraft, option: str) -> None:
    result = warm("run", RECIPE, option, "cluster_fetaures", ALONE, env=environment(smoke_home))
    assert result.code == 1
    assert result.stderr.startswith(
        "error cluster_fetaures must be a step of this recipe; its steps are index_pretext,"
    )
    assert result.stderr.count("\n") == 1


def test_an_unknown_option_is_refused_in_one_line(smoke_home: Path, warm: WarmGraft) -> None:
    result = warm("run", RECIPE, "--onyl", "cluster_features", env=environment(smoke_home))
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.startswith("error No such option: --onyl")
    assert result.stderr.count("\n") == 1


def test_a_report_that_is_not_written_is_an_error(smoke_home: Path, warm: WarmGraft) -> None:
    there = warm("report", RECIPE, env=environment(smoke_home))
    assert there.code == 0
    assert Path(there.stdout.strip()).is_file()
    missing = warm("report", RECIPE, *SIX, env=environment(smoke_home))
    assert (missing.code, missing.stdout) == (1, "")
    assert "must be written first" in missing.stderr
    assert missing.stderr.count("\n") == 1


def test_an_artifact_is_used_instead_of_a_steps_own(home: Path, warm: WarmGraft) -> None:
    env = environment(home)
    assert warm("run", RECIPE, "--only", "cluster_features", *SIX, ALONE, env=env).code == 0
    shown = status_lines(warm("status", RECIPE, "--keys", *SIX, env=env))
    assert shown["cluster_features"] == ["done", keys_of_steps(home)["cluster_features"]]
    given = ("--use", f"cluster_features={shown['cluster_features'][1]}")
    result = warm("run", RECIPE, "--only", "assign_labels", *given, ALONE, env=env)
    assert (result.code, result.computed) == (0, ["assign_labels"])


def test_an_artifact_that_is_not_there_cannot_be_used(smoke_home: Path, warm: WarmGraft) -> None:
    result = warm("run", RECIPE, "--use", f"cluster_features={'0' * 64}", ALONE, env=environment(smoke_home))
    assert result.code == 1 and len(result.stderr.splitlines()) == 1
    assert "must name an artifact that is there" in result.stderr and "leave --use out" in result.stderr
