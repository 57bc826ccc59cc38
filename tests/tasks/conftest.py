"""A workshop of toy stages, in which a test says what shall happen on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from storage.artifact import Artifact
from storage.encoders import Encoder
from storage.store import Store
from tasks.extract_features import extract_features
from tasks.index_dataset import IndexDatasetConfig, index_dataset
from tasks.recording import NoRecorder, Recorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, StageResult, Work, run_stage, stage
from tasks.train_pretext import train_pretext
from tests.tasks.rank_bench import EXTRACT, TRAIN, Bench, draw_images


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
        kind: what both produce.
        units: the units of `write_rows`, in order.
        done: the units that were computed, `stage/unit`.
        before: called with `stage/unit` before a unit is written.
        between: called after a unit is written and before it is committed.
    """

    kind = Rows
    units = tuple(f"write/{unit}" for unit in range(4))

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[str] = []
        self.before: Callable[[str], None] = lambda unit: None
        self.between: Callable[[str], None] = lambda unit: None
        self.write_rows = self._write_rows()
        self.spell_rows = self._spell_rows()

    def context(self, *, recorder: Recorder | None = None, **changes: Any) -> Context:
        runtime = Runtime(**{"home": self.folder / "home", "device": "cpu", **changes})
        store = Store(runtime.store_root, cache=runtime.read_cache)
        return Context(runtime, store, recorder or NoRecorder(), Silent())

    @property
    def store(self) -> Store:
        return self.context().store

    def left(self) -> list[str]:
        """What lies in the store besides artifacts and the locks of leases."""
        root = self.store.root
        names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        kept = ("artifacts/",)
        return sorted(name for name in names if not name.startswith(kept) and not name.endswith(".lock"))

    def write(
        self,
        *,
        context: Context | None = None,
        force: bool = False,
        step: str | None = None,
        **settings: Any,
    ) -> StageResult[Rows]:
        config, context = WriteConfig(**settings), context or self.context()
        return run_stage(self.write_rows, config, inputs={}, context=context, step=step, force=force)

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


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path / "home"))
    return Workshop(tmp_path)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    images = tmp_path_factory.mktemp("toys")
    draw_images(images)
    return Bench(tmp_path_factory.mktemp("home"), images)


@pytest.fixture(scope="module")
def index(bench: Bench) -> Any:
    return bench.run(index_dataset, IndexDatasetConfig(name="toys", format="image_folder"))


@pytest.fixture(scope="module")
def encoder(bench: Bench, index: Any) -> Any:
    return bench.run(train_pretext, TRAIN.model_copy(update={"epochs": 0}), images=index)


@pytest.fixture(scope="module")
def features(bench: Bench, index: Any, encoder: Encoder) -> Any:
    return bench.run(extract_features, EXTRACT, encoder=encoder, images=index)
