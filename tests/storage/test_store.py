"""The store: an artifact is complete when its marker is there, and only its lease's holder puts it there."""

import logging
import re
import shutil
from pathlib import Path

import pytest

from storage.artifact import Artifact, Marker, content_digest
from storage.errors import CorruptFile, LeaseLost
from storage.folder import Folder
from storage.read_cache import ReadCache
from storage.store import MARKER, Store, open_artifact, read_marker
from tests.object_store import ObjectServer

KEY = "0" * 64


class Rows(Artifact):
    kind = "Rows"
    undigested = frozenset({"places.txt"})


class Pages(Artifact):
    kind = "Pages"


@pytest.fixture
def cache(tmp_path: Path) -> ReadCache:
    return ReadCache(tmp_path / "cache", limit_bytes=10**6)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, cache: ReadCache) -> Store:
    """The same promises hold wherever the artifacts lie."""
    if request.param == "local":
        found: Store = request.getfixturevalue("local")
        return found
    server: ObjectServer = request.getfixturevalue("object_server")
    return Store(f"{server.new_bucket()}/with a blank", cache=cache)


def marker_of(data: Folder, *, key: str = KEY, **changes) -> Marker:
    files = [data.record(name) for name in data.files()]
    fields = {
        "kind": "Rows",
        "stage": "write_rows",
        "stage_version": "1",
        "key": key,
        "digest": content_digest(files, undigested=Rows.undigested),
        "data": data.place.name,
        "config": {"units": 2},
        "inputs": {},
        "external": {},
        "files": files,
        "environment": {},
        "seconds": 0.5,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Marker.model_validate(fields | changes)


def make(store: Store, files: dict[str, bytes], *, key: str = KEY) -> Rows:
    """Make an artifact as a stage does."""
    with store.lease(key) as lease:
        data = store.open_attempt(key, lease=lease)
        for name, content in files.items():
            data.write(name, content)
        store.commit(marker_of(data, key=key), lease=lease)
    store.drop_work(key)
    found = store.find(Rows, key)
    assert found is not None
    return found


def test_looking_writes_nothing(store):
    assert store.find(Rows, KEY) is None and list(store.complete()) == []
    with pytest.raises(FileNotFoundError):
        store.marker(KEY)
    assert store.committed_attempt(KEY) is None
    assert list(store.folder.files()) == []


def test_what_is_found_is_what_was_committed(store):
    artifact = make(store, {"0.txt": b"a", "deep/1.txt": b"bb"})
    assert (artifact.key, artifact.folder.read("deep/1.txt")) == (KEY, b"bb")
    assert store.marker(KEY) == artifact.marker == read_marker(store.artifact_folder(KEY))
    assert list(store.complete()) == [KEY]
    artifact.verify(deep=True)


def test_without_a_marker_there_is_no_artifact(store):
    with store.lease(KEY) as lease:
        store.open_attempt(KEY, lease=lease).write("0.txt", b"a")
    assert store.find(Rows, KEY) is None and list(store.complete()) == []


def test_a_marker_that_is_interrupted_is_no_marker(local, monkeypatch):
    with local.lease(KEY) as lease:
        data = local.open_attempt(KEY, lease=lease)
        data.write("0.txt", b"a")
        marker = marker_of(data)

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", interrupted)
            with pytest.raises(KeyboardInterrupt):
                local.commit(marker, lease=lease)
    assert local.find(Rows, KEY) is None


def test_who_lost_the_lease_cannot_commit(store):
    with store.lease(KEY) as lease:
        data = store.open_attempt(KEY, lease=lease)
        data.write("0.txt", b"a")
        (store.folder / "leases").write_json(f"{KEY}.json", {"token": "other", "released": False})
        with pytest.raises(LeaseLost):
            store.commit(marker_of(data), lease=lease)
    assert store.find(Rows, KEY) is None


def test_work_goes_on_in_the_attempt_that_it_began_in(store):
    for content in (b"a", b"b"):
        with store.lease(KEY) as lease:
            data = store.open_attempt(KEY, lease=lease)
            assert data.place.name == "0"
            data.write(f"{content.decode()}.txt", content)
    assert list(data.files()) == ["a.txt", "b.txt"]


def test_a_second_attempt_leaves_the_first_readable(store):
    old = make(store, {"0.txt": b"old"})
    with store.lease(KEY) as lease:
        data = store.open_attempt(KEY, lease=lease)
        assert str(data) != str(old.folder) and not list(data.files())
        data.write("0.txt", b"new")
        found = store.find(Rows, KEY)
        assert found is not None and found.folder.read("0.txt") == b"old"
        store.commit(marker_of(data), lease=lease)
    found = store.find(Rows, KEY)
    assert found is not None and found.folder.read("0.txt") == b"new"
    old.verify(deep=True)


def test_the_work_of_a_committed_attempt_is_known(store):
    with store.lease(KEY) as lease:
        data = store.open_attempt(KEY, lease=lease)
        assert store.committed_attempt(KEY) is None
        store.commit(marker_of(data), lease=lease)
        assert store.committed_attempt(KEY) == store.marker(KEY)
        store.drop_work(KEY)
        assert store.committed_attempt(KEY) is None
        store.open_attempt(KEY, lease=lease)
        # The work that is there now belongs to another attempt.
        assert store.committed_attempt(KEY) is None


def test_work_is_dropped_as_a_whole_even_by_a_process_that_is_killed_at_it(local, monkeypatch):
    """A ledger without the attempt that it speaks of would be taken for that of the next attempt."""
    with local.lease(KEY) as lease:
        local.open_attempt(KEY, lease=lease)
    local.work_folder(KEY).write("state/ledger/0.json", b"{}")

    def killed(path, **_):
        (Path(path) / "attempt.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            local.drop_work(KEY)
    assert not local.work_folder(KEY).path.exists()
    local.drop_work("1" * 64)
    left = [path.relative_to(local.root).as_posix() for path in local.root.rglob("*") if path.is_file()]
    assert [name for name in left if not name.startswith("leases/")] == []


def test_work_on_what_is_committed_is_known_until_the_last_of_it_is_gone(store):
    """Where it cannot be dropped as a whole: whoever finds a part of it drops the rest."""
    with store.lease(KEY) as lease:
        data = store.open_attempt(KEY, lease=lease)
        store.commit(marker_of(data), lease=lease)
    store.work_folder(KEY).write("state/ledger/0.json", b"{}")
    assert store.begun() == [KEY]
    store.work_folder(KEY).remove("state/ledger/0.json")
    assert store.committed_attempt(KEY) == store.marker(KEY)
    store.drop_work(KEY)
    store.drop_work(KEY)
    assert store.begun() == [] and list(store.work_folder(KEY).files()) == []


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_an_artifact_that_is_not_whole_is_not_found_and_a_warning_says_why(store, caplog, damage):
    artifact = make(store, {"0.txt": b"abc"})
    artifact.folder.remove("0.txt") if damage == "missing" else artifact.folder.write("0.txt", b"ab")
    with caplog.at_level(logging.WARNING):
        assert store.find(Rows, KEY) is None
    (message,) = caplog.messages
    assert message.startswith("not reused: ") and artifact.folder.at("0.txt") in message and "--force" in message


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"kind": "Rows"}'])
def test_a_marker_that_cannot_be_read_is_no_artifact_and_a_warning_says_why(store, caplog, content):
    make(store, {"0.txt": b"abc"})
    store.artifact_folder(KEY).write(MARKER, content)
    with caplog.at_level(logging.WARNING):
        assert store.find(Rows, KEY) is None
    assert store.artifact_folder(KEY).at(MARKER) in caplog.text
    with pytest.raises(CorruptFile, match=r"marker\.json must be a marker"):
        store.marker(KEY)


@pytest.mark.parametrize("kind", ["folder", "objects"])
def test_an_artifact_is_opened_from_another_store_by_its_uri(kind, tmp_path, cache, object_server):
    where = tmp_path if kind == "folder" else object_server.new_bucket()
    artifact = make(Store(f"{where}/with a blank & more", cache=cache), {"0.txt": b"abc"})
    opened = open_artifact(Rows, Store(tmp_path / "own", cache=cache).folder_at(artifact.uri))
    assert opened.marker == artifact.marker and opened.folder.read("0.txt") == b"abc"


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("s3:///key", "must name a bucket"),
        ("ftp://host/key", "begin with one of s3, gs"),
        ("s3://name:secret@bucket/key", "must hold no key"),
        ("s3://bucket/key?signature=secret", "must hold no key"),
        ("s3://bucket/key", "a cache on this machine is needed"),
    ],
)
def test_a_place_where_no_artifact_can_lie_is_refused_without_telling_its_secret(local, where, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        local.folder_at(where)
    assert "secret" not in str(refusal.value)


def test_an_artifact_of_another_kind_is_refused(store):
    make(store, {"0.txt": b"abc"})
    with pytest.raises(ValueError, match="an artifact of kind Pages is needed; .* holds Rows"):
        store.find(Pages, KEY)


def test_every_byte_counts_in_a_deep_look_and_only_sizes_in_a_quick_one(store):
    artifact = make(store, {"0.txt": b"abc", "1.txt": b"def"})
    artifact.folder.write("1.txt", b"deF")
    path = re.escape(artifact.folder.at("1.txt"))
    artifact.verify(deep=False)
    with pytest.raises(CorruptFile, match=rf"{path} of Rows\(0{{12}}\) differs .*--force .*stage write_rows"):
        artifact.verify(deep=True)


def test_the_digest_is_of_paths_and_contents_alone(tmp_path):
    def digest(name: str, files: dict[str, bytes]) -> str:
        return make(Store(tmp_path / name), files).digest

    usual = digest("a", {"0.txt": b"a", "1.txt": b"b"})
    assert usual == digest("b", {"1.txt": b"b", "0.txt": b"a"})
    assert usual == digest("c", {"0.txt": b"a", "1.txt": b"b", "places.txt": b"where they lie"})
    changes = [
        {"0.txt": b"a", "1.txt": b"B"},
        {"0.txt": b"a", "2.txt": b"b"},
        {"0.txt": b"b", "1.txt": b"a"},
        {"0.txt": b"a"},
        {"0.txt": b"a", "1.txt": b"b", "2.txt": b""},
    ]
    others = [digest(f"changed-{number}", files) for number, files in enumerate(changes)]
    assert len({usual, *others}) == len(changes) + 1
