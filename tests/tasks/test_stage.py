"""The stage engine: what is there is reused, and what was begun goes on where it stopped."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecord, NoRecorder
from tasks.stage import Work, run_stage, stage


def test_a_second_run_reuses(shop) -> None:
    first, second = shop.write(), shop.write()
    assert (first.reused, second.reused) == (False, True)
    assert first.artifact.marker == second.artifact.marker
    assert second.artifact.read() == ["a0", "a1", "a2", "a3"]
    assert shop.done == list(shop.units) and shop.left() == []


def test_the_marker_says_what_was_made_of_what(shop) -> None:
    rows = shop.write(units=2).artifact
    marker = shop.spell(rows).artifact.marker
    assert (marker.kind, marker.stage, marker.stage_version) == ("Rows", "spell_rows", "1")
    assert marker.config == {"mark": "!"} and marker.inputs == {"rows": rows.ref()}
    assert [file.path for file in marker.files] == ["0.txt", "1.txt"]
    data = shop.store.artifact_folder(marker.key) / marker.data
    assert marker.files == [data.record(file.path) for file in marker.files]
    assert marker.environment["device"] == "cpu" and "python" in marker.environment


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 5},
        {"batch_rows": 1},
        {"kmeans_engine": "faiss"},
        {"checkpoint_seconds": 0},
        {"lease_seconds": 9},
    ],
)
def test_runtime_changes_nothing(shop, changes: dict[str, Any]) -> None:
    first = shop.write(context=shop.context())
    second = shop.write(context=shop.context(**changes))
    assert second.reused and second.artifact.key == first.artifact.key


def test_a_new_config_runs_anew_and_the_old_result_stays(shop) -> None:
    first = shop.write()
    assert not shop.write(text="b").reused and not shop.write(units=3).reused
    assert shop.write().reused and first.artifact.read()[0] == "a0"


def test_a_new_version_runs_anew(shop) -> None:
    shop.write()
    shop.write_rows = replace(shop.write_rows, version=2)
    assert not shop.write().reused and shop.write().reused


def test_new_bytes_of_a_source_run_anew(shop) -> None:
    digests = {"source": "aa"}
    shop.write_rows = replace(shop.write_rows, ingredients=lambda config, runtime: dict(digests))
    assert not shop.write().reused and shop.write().reused
    digests["source"] = "bb"
    assert not shop.write().reused
    digests["source"] = "aa"
    assert shop.write().reused


def test_two_names_of_a_step_are_one_artifact(shop) -> None:
    assert [shop.write(step=step).reused for step in ("index_a", "index_b")] == [False, True]


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_after_a_stop_only_the_missing_units_run(shop, error, written) -> None:
    expected = shop.write(context=shop.context(home=shop.folder / "other")).artifact.digest
    shop.go_on()
    shop.stop_at("write/2", error, written=written)
    with pytest.raises(error, match="stopped at write/2"):
        shop.write()
    assert shop.done == list(shop.units[:2])
    shop.go_on()
    result = shop.write()
    assert shop.done == list(shop.units[2:]) and not result.reused
    assert result.artifact.digest == expected and shop.left() == []


def test_a_stopped_step_leaves_no_artifact(shop) -> None:
    shop.stop_at("write/3", RuntimeError)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            shop.write()
    store = shop.store
    assert list(store.complete()) == [] and shop.done == list(shop.units[:3])


def test_a_stop_between_the_last_unit_and_the_marker_computes_nothing_again(
    shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            shop.write()
    shop.go_on()
    assert shop.write().artifact.read() == ["a0", "a1", "a2", "a3"] and shop.done == []


def test_a_stop_after_the_marker_is_done(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NoRecord, "finished", stopped)
        with pytest.raises(KeyboardInterrupt):
            shop.write()
    shop.go_on()
    assert shop.write().reused and shop.done == []
    # Its scratch is still there; a new attempt must not take it for its own.
    forced = shop.write(force=True)
    assert shop.done == list(shop.units) and forced.artifact.read() == ["a0", "a1", "a2", "a3"]


def test_units_whose_files_are_gone_run_again(shop) -> None:
    """Someone threw away the unfinished artifact, and not the ledger that says what it held."""
    shop.stop_at("write/2")
    with pytest.raises(KeyboardInterrupt):
        shop.write()
    shop.go_on()
    shutil.rmtree(shop.store.root / "artifacts")
    assert shop.write().artifact.read() == ["a0", "a1", "a2", "a3"] and shop.done == list(shop.units)


def test_a_process_killed_while_it_drops_its_scratch_spoils_no_later_attempt(
    shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, **_: Any) -> None:
        for attempt in Path(path).rglob("attempt.json"):
            attempt.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.write()
    shop.go_on()
    assert shop.write().reused
    forced = shop.write(force=True)
    assert shop.done == list(shop.units) and forced.artifact.read() == ["a0", "a1", "a2", "a3"]
    assert shop.left() == []


def test_equal_bytes_cut_off_early(shop) -> None:
    below = shop.spell(shop.write(text="a").artifact)
    upper = shop.write(text="A")
    again = shop.spell(upper.artifact)
    assert not upper.reused and again.reused and again.artifact.key == below.artifact.key
    other = shop.spell(shop.write(text="b").artifact)
    assert not other.reused and other.artifact.read()[0] == "b0!"


def test_force_makes_a_new_attempt_and_the_old_one_stays_readable(shop) -> None:
    old = shop.write().artifact
    seen: list[list[str]] = []

    def look(unit: str) -> None:
        found = shop.store.find(shop.kind, old.key)
        assert found is not None and found.marker == old.marker
        seen.append(found.read())

    shop.go_on()
    shop.before = look
    new = shop.write(force=True)
    assert not new.reused and shop.done == list(shop.units) and seen == [["a0", "a1", "a2", "a3"]] * 4
    assert new.artifact.folder.path != old.folder.path and new.artifact.digest == old.digest
    assert old.read() == new.artifact.read() and new.artifact.marker.created > old.marker.created
    found = shop.store.find(shop.kind, old.key)
    assert found is not None and found.marker == new.artifact.marker


def test_a_forced_step_that_is_stopped_keeps_the_old_artifact_and_goes_on_later(shop) -> None:
    old = shop.write().artifact
    shop.go_on()
    shop.stop_at("write/2")
    with pytest.raises(KeyboardInterrupt):
        shop.write(force=True)
    shop.go_on()
    kept = shop.write()
    assert kept.reused and kept.artifact.marker == old.marker
    assert not shop.write(force=True).reused and shop.done == list(shop.units[2:])


class TrainConfig(BaseModel, frozen=True, extra="forbid"):
    steps: int = 4


class Outbox(NoRecord):
    """Counts what is logged, as the outbox of MLflow does."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.released = 0

    def log(self, metrics: Any, *, step: int) -> None:
        self.rows.append(dict(metrics))

    def commit(self) -> int:
        return len(self.rows)

    def release(self, position: int) -> None:
        self.released = position

    def truncate(self, position: int) -> None:
        del self.rows[position:]


class Recording(NoRecorder):
    def __init__(self) -> None:
        self.outbox = Outbox()

    def open(self, folder: Folder, *, step: str, look: Any) -> NoRecord:
        return self.outbox


def test_a_resume_goes_on_from_the_checkpoint_with_the_metrics_of_it(shop) -> None:
    @stage(produces=shop.kind, version=1)
    def train(config: TrainConfig, work: Work) -> None:
        checkpoint = work.load()
        for step in range(checkpoint["step"] if checkpoint else 0, config.steps):
            shop.before(f"train/{step}")
            shop.done.append(f"train/{step}")
            work.log({"loss": float(step)}, step=step)
            if step % 2:
                work.save({"step": step + 1})
        work.data.write("rows.txt", b"trained")

    recorder = Recording()
    context = shop.context(recorder=recorder)
    shop.stop_at("train/3")
    with pytest.raises(KeyboardInterrupt):
        run_stage(train, TrainConfig(), inputs={}, context=context)
    # Step 2 was logged, and no checkpoint knows of it.
    assert recorder.outbox.released == 2 and len(recorder.outbox.rows) == 3
    shop.go_on()
    result = run_stage(train, TrainConfig(), inputs={}, context=context)
    assert shop.done == ["train/2", "train/3"] and result.artifact.read() == ["trained"]
    assert recorder.outbox.rows == [{"loss": float(step)} for step in range(4)]
    assert recorder.outbox.released == 4
