"""The stage engine: what is there is reused, what was begun goes on, what is damaged is named or made again."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from storage.artifact import Artifact
from storage.errors import CorruptFile, LeaseLost
from storage.folder import Folder
from storage.store import Store
from tasks.recording import NoRecord, NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, StageResult, Work, run_stage, stage


class Rows(Artifact):
    """Lines of text, one file a unit."""

    kind = "Rows"

    def read(self) -> list[str]:
        return [self.folder.read(name).decode() for name in self.folder.files()]


class WriteConfig(BaseModel, frozen=True, extra="forbid"):
    text: str = "a"
    units: int = 4


class SpellConfig(BaseModel, frozen=True, extra="forbid"):
    mark: str = "!"


class Workshop:
    """Two toy stages, what they did, and what shall happen to them on the way.

    Attributes:
        done: the units that were computed, `stage/unit`.
        before: called with `stage/unit` before a unit is written.
        between: called after a unit is written and before it is committed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.before: Callable[[str], None] = lambda unit: None
        self.between: Callable[[str], None] = lambda unit: None
        self.write_rows = self._write_rows()
        self.spell_rows = self._spell_rows()

    def context(self, **changes: Any) -> Context:
        runtime = Runtime(**{"home": self.folder / "home", "device": "cpu", **changes})
        return Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())

    def write(self, *, context: Context | None = None, force: bool = False, **settings: Any) -> StageResult[Rows]:
        context = context or self.context()
        return run_stage(self.write_rows, WriteConfig(**settings), inputs={}, context=context, force=force)

    def spell(self, rows: Rows, *, context: Context | None = None, **settings: Any) -> StageResult[Rows]:
        context = context or self.context()
        return run_stage(self.spell_rows, SpellConfig(**settings), inputs={"rows": rows}, context=context)

    def stop_at(self, unit: str, error: type[BaseException] = KeyboardInterrupt, *, written: bool = False) -> None:
        """Let the work end at a unit: before it is written, or after that and before its commit."""

        def stop(name: str) -> None:
            if name == unit:
                raise error(f"stopped at {name}")

        self.before, self.between = (lambda unit: None, stop) if written else (stop, lambda unit: None)

    def go_on(self) -> None:
        self.before = self.between = lambda unit: None
        self.done.clear()

    def _unit(self, work: Work, name: str, unit: int, text: str) -> None:
        if str(unit) in work.ledger:
            return
        self.before(f"{name}/{unit}")
        record = work.data.write(f"{unit}.txt", text.encode())
        self.between(f"{name}/{unit}")
        work.commit(str(unit), records=[record])
        self.done.append(f"{name}/{unit}")

    def _write_rows(self) -> Stage[Any, Rows]:
        @stage(produces=Rows, version=1)
        def write_rows(config: WriteConfig, work: Work) -> None:
            for unit in range(config.units):
                # "A" and "a" are two configs with one result.
                self._unit(work, "write", unit, f"{config.text.lower()}{unit}")

        return write_rows

    def _spell_rows(self) -> Stage[Any, Rows]:
        @stage(produces=Rows, version=1)
        def spell_rows(config: SpellConfig, work: Work, *, rows: Rows) -> None:
            for unit, row in enumerate(rows.read()):
                self._unit(work, "spell", unit, row + config.mark)

        return spell_rows


UNITS = [f"write/{unit}" for unit in range(4)]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return Workshop(tmp_path)


def damage(artifact: Artifact, name: str, content: bytes | None) -> Path:
    path = artifact.folder.path / name
    path.unlink() if content is None else path.write_bytes(content)
    return path


def left_in(store: Store) -> list[str]:
    """What lies in a store besides artifacts and the locks of leases."""
    names = (path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())
    return sorted(name for name in names if not name.startswith("artifacts/") and not name.endswith(".lock"))


def test_a_second_run_reuses(shop: Workshop) -> None:
    first, second = shop.write(), shop.write()
    assert (first.reused, second.reused) == (False, True)
    assert first.artifact.marker == second.artifact.marker and second.artifact.read() == ["a0", "a1", "a2", "a3"]
    assert shop.done == UNITS and left_in(shop.context().store) == []


def test_the_marker_says_what_was_made_of_what(shop: Workshop) -> None:
    rows = shop.write(units=2).artifact
    marker = shop.spell(rows).artifact.marker
    assert (marker.kind, marker.stage, marker.stage_version) == ("Rows", "spell_rows", "1")
    assert marker.config == {"mark": "!"} and marker.inputs == {"rows": rows.ref()}
    assert [file.path for file in marker.files] == ["0.txt", "1.txt"]
    assert all(Folder(shop.context().store.artifact_folder(marker.key).path / marker.data).has(file) for file in marker.files)
    assert marker.environment["device"] == "cpu" and "python" in marker.environment


@pytest.mark.parametrize(
    "changes", [{"workers": 5}, {"batch_rows": 1}, {"kmeans_engine": "faiss"}, {"checkpoint_seconds": 0}, {"lease_seconds": 9}]
)
def test_runtime_changes_nothing(shop: Workshop, changes: dict[str, Any]) -> None:
    first = shop.write(context=shop.context())
    second = shop.write(context=shop.context(**changes))
    assert second.reused and second.artifact.key == first.artifact.key


def test_a_new_config_runs_anew_and_the_old_result_stays(shop: Workshop) -> None:
    first = shop.write()
    assert not shop.write(text="b").reused and not shop.write(units=3).reused
    assert shop.write().reused and first.artifact.read()[0] == "a0"


def test_a_new_version_runs_anew(shop: Workshop) -> None:
    shop.write()
    old = shop.write_rows
    shop.write_rows = Stage(old.name, old.version + 1, old.produces, old.body, old.ingredients)
    assert not shop.write().reused and shop.write().reused


def test_new_bytes_of_a_source_run_anew(shop: Workshop) -> None:
    digests = {"source": "aa"}
    old = shop.write_rows
    shop.write_rows = Stage(old.name, old.version, old.produces, old.body, lambda config, runtime: dict(digests))
    assert not shop.write().reused and shop.write().reused
    digests["source"] = "bb"
    assert not shop.write().reused
    digests["source"] = "aa"
    assert shop.write().reused


def test_two_names_of_a_step_are_one_artifact(shop: Workshop) -> None:
    for reused, step in [(False, "index_a"), (True, "index_b")]:
        result = run_stage(shop.write_rows, WriteConfig(), inputs={}, context=shop.context(), step=step)
        assert result.reused is reused


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_after_a_stop_only_the_missing_units_run(shop: Workshop, error: type[BaseException], written: bool) -> None:
    expected = shop.write(context=shop.context(home=shop.folder / "other")).artifact.digest
    shop.go_on()
    shop.stop_at("write/2", error, written=written)
    with pytest.raises(error, match="stopped at write/2"):
        shop.write()
    assert shop.done == UNITS[:2]
    shop.go_on()
    result = shop.write()
    assert shop.done == UNITS[2:] and not result.reused
    assert result.artifact.digest == expected and left_in(shop.context().store) == []


def test_a_stopped_step_leaves_no_artifact(shop: Workshop) -> None:
    shop.stop_at("write/3", RuntimeError)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            shop.write()
    store = shop.context().store
    assert list(store.keys()) == [] and shop.done == UNITS[:3]


def test_a_stop_between_the_last_unit_and_the_marker_computes_nothing_again(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", stopped)
        with pytest.raises(KeyboardInterrupt):
            shop.write()
    shop.go_on()
    assert shop.write().artifact.read() == ["a0", "a1", "a2", "a3"] and shop.done == []


def test_a_stop_after_the_marker_is_done(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert shop.done == UNITS and forced.artifact.read() == ["a0", "a1", "a2", "a3"]


def test_units_whose_files_are_gone_run_again(shop: Workshop) -> None:
    """Someone threw away the unfinished artifact, and not the ledger that says what it held."""
    shop.stop_at("write/2")
    with pytest.raises(KeyboardInterrupt):
        shop.write()
    shop.go_on()
    shutil.rmtree(shop.context().store.root / "artifacts")
    assert shop.write().artifact.read() == ["a0", "a1", "a2", "a3"] and shop.done == UNITS


def test_a_process_killed_while_it_drops_its_scratch_spoils_no_later_attempt(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
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
    assert shop.done == UNITS and forced.artifact.read() == ["a0", "a1", "a2", "a3"]
    assert left_in(shop.context().store) == []


def test_equal_bytes_cut_off_early(shop: Workshop) -> None:
    below = shop.spell(shop.write(text="a").artifact)
    upper = shop.write(text="A")
    again = shop.spell(upper.artifact)
    assert not upper.reused and again.reused and again.artifact.key == below.artifact.key
    other = shop.spell(shop.write(text="b").artifact)
    assert not other.reused and other.artifact.read()[0] == "b0!"


def test_force_makes_a_new_attempt_and_the_old_one_stays_readable(shop: Workshop) -> None:
    old = shop.write().artifact
    seen: list[list[str]] = []

    def look(unit: str) -> None:
        found = shop.context().store.find(Rows, old.key)
        assert found is not None and found.marker == old.marker
        seen.append(found.read())

    shop.go_on()
    shop.before = look
    new = shop.write(force=True)
    assert not new.reused and shop.done == UNITS and seen == [["a0", "a1", "a2", "a3"]] * 4
    assert new.artifact.folder.path != old.folder.path and new.artifact.digest == old.digest
    assert old.read() == new.artifact.read() and new.artifact.marker.created > old.marker.created
    found = shop.context().store.find(Rows, old.key)
    assert found is not None and found.marker == new.artifact.marker


def test_a_forced_step_that_is_stopped_keeps_the_old_artifact_and_goes_on_later(shop: Workshop) -> None:
    old = shop.write().artifact
    shop.go_on()
    shop.stop_at("write/2")
    with pytest.raises(KeyboardInterrupt):
        shop.write(force=True)
    shop.go_on()
    kept = shop.write()
    assert kept.reused and kept.artifact.marker == old.marker
    assert not shop.write(force=True).reused and shop.done == UNITS[2:]


def test_a_damaged_input_is_named_before_anything_is_computed(shop: Workshop) -> None:
    rows = shop.write().artifact
    path = damage(rows, "2.txt", b"xx")
    with pytest.raises(CorruptFile, match=rf"{path} of Rows\(.*--force on the step that makes it \(stage write_rows\)"):
        shop.spell(rows)
    assert shop.done == UNITS and left_in(shop.context().store) == []
    shop.write(force=True)
    assert shop.spell(shop.write().artifact).artifact.read() == ["a0!", "a1!", "a2!", "a3!"]


@pytest.mark.parametrize("content", [None, b"", b"a", b"a22"])
def test_an_artifact_that_is_not_whole_is_made_again_and_a_warning_says_why(
    shop: Workshop, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    old = shop.write().artifact
    path = damage(old, "2.txt", content)
    shop.go_on()
    with caplog.at_level(logging.WARNING):
        again = shop.write()
    assert not again.reused and shop.done == UNITS and again.artifact.digest == old.digest
    assert caplog.messages and all(str(path) in message for message in caplog.messages)
    assert shop.write().reused


class Elsewhere(NoRecorder):
    """A MLflow that knows of artifacts."""

    def __init__(self, *uris: str) -> None:
        self._uris = uris

    def find(self, key: str) -> list[str]:
        return list(self._uris)


def knowing(context: Context, *uris: str) -> Context:
    return Context(context.runtime, context.store, Elsewhere(*uris), context.reporter)


def test_an_artifact_in_another_store_is_found_by_what_was_recorded(shop: Workshop) -> None:
    there = shop.write(context=shop.context(home=shop.folder / "another machine's")).artifact
    shop.go_on()
    here = shop.context()
    found = shop.write(context=knowing(here, there.uri))
    assert found.reused and shop.done == [] and found.artifact.marker == there.marker
    assert not here.store.root.exists(), "nothing was copied"
    below = shop.spell(found.artifact, context=here)
    assert below.artifact.read() == ["a0!", "a1!", "a2!", "a3!"]


@pytest.mark.parametrize("uri", ["file:///no/such/folder", "s3://bucket/artifacts/1234", "dbfs:/artifacts/1234"])
def test_a_record_of_what_cannot_be_had_is_passed_over_with_a_warning(
    shop: Workshop, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    with caplog.at_level(logging.WARNING):
        result = shop.write(context=knowing(shop.context(), uri))
    assert not result.reused and result.artifact.read()[0] == "a0"
    assert f"MLflow knows of {uri}, which is not usable" in caplog.text


def test_a_usable_record_behind_an_unusable_one_is_found(shop: Workshop) -> None:
    there = shop.write(context=shop.context(home=shop.folder / "another")).artifact
    broken = shop.write(context=shop.context(home=shop.folder / "broken")).artifact
    damage(broken, "0.txt", None)
    shop.go_on()
    found = shop.write(context=knowing(shop.context(), broken.uri, there.uri))
    assert found.reused and found.artifact.folder.path == there.folder.path


@pytest.mark.parametrize("force", [False, True])
def test_what_another_process_made_while_this_one_waited_is_taken(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    lease = Store.lease

    def late(self: Store, key: str, **settings: Any) -> Any:
        # Another process gets in between looking and locking.
        monkeypatch.setattr(Store, "lease", lease)
        shop.write(force=force)
        return lease(self, key, **settings)

    if force:
        shop.write()
        shop.go_on()
    monkeypatch.setattr(Store, "lease", late)
    result = shop.write(force=force)
    assert result.reused and shop.done == UNITS


def test_who_lost_the_lease_leaves_no_artifact(shop: Workshop) -> None:
    store = shop.context().store

    def lose(unit: str) -> None:
        if unit == "write/3":
            (lease,) = (store.root / "leases").glob("*.json")
            Folder(lease.parent).write_json(lease.name, {"token": "other"})

    shop.between = lose
    with pytest.raises(LeaseLost, match="Run the same command again"):
        shop.write()
    assert list(store.keys()) == []


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


def test_a_resume_goes_on_from_the_checkpoint_with_the_metrics_of_it(shop: Workshop) -> None:
    @stage(produces=Rows, version=1)
    def train(config: WriteConfig, work: Work) -> None:
        checkpoint = work.load()
        for step in range(checkpoint["step"] if checkpoint else 0, config.units):
            shop.before(f"train/{step}")
            shop.done.append(f"train/{step}")
            work.log({"loss": float(step)}, step=step)
            if step % 2:
                work.save({"step": step + 1})
        work.data.write("rows.txt", b"trained")

    recorder = Recording()
    usual = shop.context()
    context = Context(usual.runtime, usual.store, recorder, usual.reporter)
    shop.stop_at("train/3")
    with pytest.raises(KeyboardInterrupt):
        run_stage(train, WriteConfig(), inputs={}, context=context)
    # Step 2 was logged, and no checkpoint knows of it.
    assert recorder.outbox.released == 2 and len(recorder.outbox.rows) == 3
    shop.go_on()
    result = run_stage(train, WriteConfig(), inputs={}, context=context)
    assert shop.done == ["train/2", "train/3"] and result.artifact.read() == ["trained"]
    assert recorder.outbox.rows == [{"loss": float(step)} for step in range(4)] and recorder.outbox.released == 4
