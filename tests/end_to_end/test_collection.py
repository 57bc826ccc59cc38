"""`graft gc` as its users run it: beside a run, after it, and what the next run makes of it."""

from __future__ import annotations

import json
from pathlib import Path

from storage.collection import Collector
from storage.runs import RunRecords
from storage.store import Store
from tests.end_to_end.command import ALONE, RECIPE, WarmGraft, environment, eventually, keys_of_steps, only

ALL = ("gc", "--days", "0", "--work-days", "0")


def made_long_ago(home: Path) -> None:
    """Let everything in the home's store be of last year."""
    (record,) = (home / "store" / "runs").iterdir()
    for place, name in [(record, "noted"), *((one, "created") for one in home.glob("store/artifacts/*/marker.json"))]:
        place.write_text(json.dumps(json.loads(place.read_text()) | {name: "2025-01-01T00:00:00+00:00"}))


def test_nothing_that_a_run_needs_goes_while_it_runs(home: Path, warm: WarmGraft) -> None:
    made_long_ago(home)
    store, before = Store(home / "store"), keys_of_steps(home)
    wanted = ("cluster_features", "assign_labels")
    changed = ("--set", "cluster_features.num_clusters=4", *only(wanted))
    running = warm.start("run", RECIPE, ALONE, *changed, env=environment(home))
    eventually(lambda: len(RunRecords(store).names()) == 2, what="the record of the run")
    removed = set()
    for _ in range(10):
        collector = Collector(store, days=1, work_days=0)
        removed |= {garbage.name for garbage in collector.look() if collector.remove(garbage)}
    result = running.finish()
    assert (result.code, result.stderr, result.computed) == (0, "", list(wanted))
    # What the run does not name went: what was clustered and labelled before.
    assert {before[step] for step in wanted} <= removed
    # What it names stayed, those steps as well that it found and did not make.
    assert not any(store.is_collected(before[step]) for step in ("train_pretext", "extract_cluster", "index_student"))
    record = max(map(RunRecords(store).read, RunRecords(store).names()), key=lambda one: one.noted)
    assert {step: record.steps[step] for step in wanted} == {step: keys_of_steps(home)[step] for step in wanted}


def test_it_lists_and_then_removes_and_the_next_run_makes_what_it_needs(home: Path, warm: WarmGraft) -> None:
    env = environment(home)
    keys = keys_of_steps(home)
    assert warm("gc", env=env).stdout.startswith("0 things may go, 0 bytes; 0 were removed")
    pinned = warm("pin", keys["train_pretext"], "--reason", "the teacher of the paper", env=env)
    assert pinned.code == 0 and "the teacher of the paper" in warm("pins", env=env).stdout
    listed = warm(*ALL, env=env)
    assert "no run of the last 0 days and no pin names it" in listed.stdout
    assert "graft gc --days 0 --work-days 0 --delete" in listed.stdout
    assert warm("verify", RECIPE, env=env).stdout.startswith("30 of 30 artifacts are intact")

    gone = warm(*ALL, "--delete", env=env)
    # Some steps are one artifact. The record of the run that made them goes, too.
    assert gone.code == 0 and f"{len(set(keys.values())) - 1 + 1} were removed" in gone.stdout.splitlines()[-1]
    again = warm("run", RECIPE, ALONE, "--only", "probe_photographs_teacher", env=env)
    assert again.code == 1 and "whose data was collected" in again.stderr
    assert "collected, and who runs it needs it" in warm("status", RECIPE, env=env).stdout

    above = ("index_photographs_*", "extract_photographs_teacher_*")
    done = warm("run", RECIPE, ALONE, *only([*above, "probe_photographs_teacher"]), env=env)
    assert (done.code, done.stderr) == (0, "")
    assert done.computed[-1] == "probe_photographs_teacher" and "train_pretext" not in done.computed
    assert keys_of_steps(home) == keys
    assert warm("verify", RECIPE, env=env).stdout == "8 of 8 artifacts are intact; 22 are not made yet\n"
    assert warm("unpin", keys["train_pretext"], env=env).code == 0
