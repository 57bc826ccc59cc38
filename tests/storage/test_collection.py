"""Collection: what nothing uses goes, what anything uses stays, and a marker outlives its data."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from storage.artifact import Artifact, Marker, content_digest
from storage.collection import Collector, Garbage
from storage.errors import CorruptFile, DataCollected, NewerArtifact
from storage.folder import Folder
from storage.pins import pin, pinned, unpin
from storage.runs import OpenRun, RunRecords
from storage.store import COLLECTED, MARKER, Store, open_artifact

KEYS = ["a" * 64, "b" * 64, "c" * 64]
KEY = KEYS[0]
OLD = timedelta(days=40)


class Rows(Artifact):
    kind = "Rows"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def make(store: Store, key: str = KEY, *, content: bytes = b"abc", age: timedelta = OLD) -> None:
    """Make an artifact as a stage does, some time ago."""
    with store.lease(key) as lease:
        data = store.open_attempt(key, lease=lease)
        data.write("rows.txt", content)
        files = [data.record("rows.txt")]
        marker = Marker(
            kind="Rows",
            stage="write_rows",
            stage_version="1",
            key=key,
            digest=content_digest(files),
            data=data.path.name,
            config={},
            inputs={},
            external={},
            files=files,
            environment={},
            seconds=0.5,
            created=(datetime.now(UTC) - age).isoformat(),
        )
        store.commit(marker, lease=lease)
    store.drop_work(key)


def begin(store: Store, key: str, *, age: timedelta) -> None:
    """Begin an artifact, and leave it."""
    with store.lease(key) as lease:
        store.open_attempt(key, lease=lease).write("half.txt", b"half")
        store.work_folder(key).write("state/ledger/0.json", b"{}")
    for folder in (store.work_folder(key), store.artifact_folder(key)):
        for name in folder.files():
            written = time.time() - age.total_seconds()
            os.utime(folder.path / name, (written, written))


def note_run(store: Store, key: str, *, age: timedelta) -> None:
    """The record of a run that used a key and ended some time ago."""
    with OpenRun(store, "toy", {"step": key}):
        pass
    records = store.folder / "runs"
    for name in records.files():
        record = records.read_json(name)
        if record["steps"] == {"step": key}:
            records.write_json(name, record | {"noted": (datetime.now(UTC) - age).isoformat()})


def collector(store: Store, *, days: float = 30, work_days: float = 7) -> Collector:
    return Collector(store, days=days, work_days=work_days)


def found(store: Store, **settings: float) -> list[tuple[str, str]]:
    return [(garbage.what, garbage.name) for garbage in collector(store, **settings).look()]


def collect(store: Store, **settings: float) -> list[Garbage]:
    """Collect all that may go; gives what went."""
    one = collector(store, **settings)
    return [garbage for garbage in one.look() if one.remove(garbage)]


def files(store: Store) -> set[str]:
    names = (path.relative_to(store.root).as_posix() for path in store.root.rglob("*") if path.is_file())
    return {name for name in names if not name.endswith(".lock")}


def test_a_look_writes_nothing(store: Store) -> None:
    assert found(store) == [] and not store.root.exists()
    make(store)
    begin(store, KEYS[1], age=OLD)
    before = files(store)
    assert {what for what, _ in found(store)} == {"data", "work"} and files(store) == before


def test_data_that_nothing_uses_goes_and_its_marker_stays(store: Store) -> None:
    make(store, content=b"12345")
    marker = store.marker(KEY)
    (garbage,) = collect(store)
    assert (garbage.what, garbage.kind, garbage.size) == ("data", "Rows", 5)
    assert garbage.reason == "no run of the last 30 days and no pin names it"
    assert files(store) == {f"artifacts/{KEY}/{MARKER}", f"artifacts/{KEY}/{COLLECTED}"}
    assert store.marker(KEY) == marker and collect(store) == []


def test_a_collected_artifact_is_told_from_a_damaged_one(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    make(store)
    digest = store.marker(KEY).digest
    collect(store)
    assert store.find(Rows, KEY) is None and caplog.messages == []
    assert store.is_collected(KEY) and not store.is_collected(KEYS[1])
    known = store.find_collected(Rows, KEY)
    assert known is not None and known.digest == digest
    with pytest.raises(DataCollected):
        open_artifact(Rows, store.artifact_folder(KEY))


@pytest.mark.parametrize(
    ("use", "goes"),
    [
        (lambda store: None, True),
        (lambda store: note_run(store, KEY, age=timedelta(days=29)), False),
        (lambda store: note_run(store, KEY, age=timedelta(days=31)), True),
        (lambda store: note_run(store, KEYS[1], age=timedelta(0)), True),
        (lambda store: pin(store, KEY, reason="published"), False),
        (lambda store: (pin(store, KEY, reason="published"), unpin(store, KEY)), True),
    ],
    ids=["unused", "recent run", "old run", "another's run", "pinned", "unpinned"],
)
def test_data_stays_while_a_recent_run_or_a_pin_names_it(
    store: Store, use: Callable[[Store], object], goes: bool
) -> None:
    make(store)
    use(store)
    assert (("data", KEY) in found(store)) is goes
    collect(store)
    assert (store.find(Rows, KEY) is None) is goes


def test_data_that_was_made_lately_stays(store: Store) -> None:
    """What was made by hand, without a run, has no record."""
    make(store, age=timedelta(days=2))
    assert found(store) == [] and found(store, days=1) == [("data", KEY)]


def test_nothing_goes_that_a_living_run_names_however_long_it_lives(store: Store) -> None:
    make(store)
    begin(store, KEYS[1], age=OLD)
    with OpenRun(store, "toy", {"first": KEY}) as run:
        run.note("second", KEYS[1])
        records = store.folder / "runs"
        (name,) = records.files()
        records.write_json(name, records.read_json(name) | {"noted": (datetime.now(UTC) - OLD).isoformat()})
        assert found(store) == [] and found(store, days=0, work_days=0) == []
    # Its end counts, not its beginning.
    assert found(store) == [("work", KEYS[1])]
    assert ("data", KEY) in found(store, days=0)


def test_a_run_that_names_the_data_while_it_is_collected_keeps_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(store)
    one = collector(store)
    (garbage,) = one.look()
    write = Folder.write_json

    def name_it_first(folder: Folder, name: str, value: object) -> object:
        if name == COLLECTED:
            note_run(store, KEY, age=timedelta(0))
        return write(folder, name, value)

    monkeypatch.setattr(Folder, "write_json", name_it_first)
    assert not one.remove(garbage)
    artifact = store.find(Rows, KEY)
    assert artifact is not None and artifact.folder.read("rows.txt") == b"abc"


def test_what_was_made_anew_or_is_being_made_since_the_look_stays(store: Store) -> None:
    make(store)
    begin(store, KEYS[1], age=OLD)
    one = collector(store)
    garbage = one.look()
    with store.lease(KEY), store.lease(KEYS[1]):
        assert [one.remove(item) for item in garbage] == [False, False]
    make(store, age=timedelta(0))
    make(store, KEYS[1], age=timedelta(0))
    # The attempt that the new one took the place of is another find.
    assert [one.remove(item) for item in garbage] == [False, False]
    assert store.find(Rows, KEY) and store.find(Rows, KEYS[1])


def test_a_collected_artifact_is_made_again_in_an_attempt_of_its_own(store: Store) -> None:
    """The work of the new attempt must not be taken for that of the collected one, which is committed."""
    make(store)
    collect(store)
    begin(store, KEY, age=timedelta(0))
    assert store.committed_attempt(KEY) is None
    make(store, content=b"again")
    artifact = store.find(Rows, KEY)
    assert artifact is not None and artifact.folder.path.name == "1" and not store.is_collected(KEY)
    assert found(store, days=100) == []
    assert [garbage.what for garbage in collect(store)] == ["data"]
    assert store.is_collected(KEY)


def test_killed_in_the_middle_the_artifact_counts_as_collected_and_the_rest_goes_next_time(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(store)

    def killed(folder: Folder) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            collect(store)
    assert store.find(Rows, KEY) is None and store.is_collected(KEY) and caplog.messages == []
    with OpenRun(store, "toy", {"step": KEY}):
        assert found(store) == []
    # Also when a run named it since: what was said to be collected is.
    note_run(store, KEY, age=timedelta(0))
    (garbage,) = collect(store)
    assert garbage.reason == "collected before, and not to the end"
    assert f"artifacts/{KEY}/0/rows.txt" not in files(store)


def test_an_attempt_that_another_took_the_place_of_goes(store: Store) -> None:
    make(store, content=b"old", age=timedelta(0))
    make(store, content=b"newer", age=timedelta(0))
    (garbage,) = collector(store).look()
    assert (garbage.what, garbage.part, garbage.size) == ("old attempt", "0", 3)
    with OpenRun(store, "toy", {"step": KEY}):
        # It may have been opened before the newer one was there.
        assert found(store) == []
    assert len(collect(store)) == 1
    artifact = store.find(Rows, KEY)
    assert artifact is not None and artifact.folder.read("rows.txt") == b"newer"


def test_work_that_nobody_goes_on_with_goes_with_its_data(store: Store) -> None:
    begin(store, KEYS[0], age=timedelta(days=8))
    begin(store, KEYS[1], age=timedelta(days=6))
    (garbage,) = collector(store).look()
    assert (garbage.what, garbage.name) == ("work", KEYS[0])
    assert garbage.size == store.work_folder(KEYS[0]).usage().size + len(b"half")
    collect(store)
    assert not store.work_folder(KEYS[0]).path.exists() and store.artifact_folder(KEYS[0]).folders() == []
    assert store.work_folder(KEYS[1]).path.exists() and store.artifact_folder(KEYS[1]).folders() == ["0"]


def test_work_that_is_gone_on_with_for_days_stays(store: Store) -> None:
    begin(store, KEY, age=OLD)
    with store.lease(KEY):
        assert found(store) == []
    assert found(store) == [("work", KEY)]
    store.artifact_folder(KEY).write("0/newest.txt", b"")
    assert found(store) == []


def test_the_work_of_a_committed_artifact_stays_until_mlflow_has_heard_of_it(store: Store) -> None:
    make(store, age=timedelta(0))
    begin(store, KEY, age=OLD)
    store.work_folder(KEY).write_json("attempt.json", {"data": store.marker(KEY).data})
    assert ("work", KEY) not in found(store, work_days=0)


def test_data_whose_work_was_dropped_before_a_kill_goes(store: Store) -> None:
    begin(store, KEY, age=timedelta(0))
    shutil.rmtree(store.work_folder(KEY).path)
    assert [(garbage.what, garbage.reason) for garbage in collect(store)] == [
        ("old attempt", "given up, and its work is gone")
    ]
    assert store.artifact_folder(KEY).folders() == []


def test_what_was_dropped_and_old_records_go(store: Store) -> None:
    store.work_folder(".dropped-1").write("ledger.json", b"{}")
    note_run(store, KEYS[0], age=OLD)
    note_run(store, KEYS[1], age=timedelta(0))
    assert sorted(garbage.what for garbage in collect(store)) == ["dropped", "run record"]
    records = RunRecords(store)
    assert [records.read(run).steps for run in records.names()] == [{"step": KEYS[1]}]
    assert collect(store) == []


def test_nothing_goes_where_a_record_cannot_be_read(store: Store) -> None:
    make(store)
    (store.folder / "runs").write("broken.json", b"{")
    with pytest.raises(CorruptFile, match=r"broken\.json must be the record of a run"):
        collect(store)
    assert store.find(Rows, KEY)


def test_nothing_goes_where_a_newer_graft_works_and_damage_is_left_alone(store: Store) -> None:
    make(store, KEYS[0])
    make(store, KEYS[1])
    store.artifact_folder(KEYS[1]).write(MARKER, b"{")
    assert found(store) == [("data", KEYS[0])]
    store.artifact_folder(KEYS[1]).write(MARKER, b'{"schema_version": 99}')
    with pytest.raises(NewerArtifact):
        collect(store)
    assert store.find(Rows, KEYS[0])


def test_a_pin_needs_data_that_is_there(store: Store) -> None:
    make(store)
    pin(store, KEY, reason="published")
    assert pinned(store) == {KEY: "published"}
    unpin(store, KEY)
    with pytest.raises(ValueError, match=r"must be pinned to be unpinned; pinned are: none"):
        unpin(store, KEY)
    collect(store)
    for key in (KEY, KEYS[1]):
        with pytest.raises(ValueError, match=r"must be there to be pinned, and .* has no data of it"):
            pin(store, key, reason="late")
    with pytest.raises(ValueError, match=r"must be 64 hexadecimal digits.*'\.\./x'"):
        pin(store, "../x", reason="elsewhere")
    assert pinned(store) == {}
