"""A place in an object store: what is written is whole, what is read is what was written, and trouble has a name."""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.bucket import Bucket
from storage.errors import CorruptFile, StoreAway
from storage.folder import FileRecord, Folder
from storage.objects import Objects, place_at
from storage.read_cache import ReadCache
from tests.object_store import BREAK_OFF, ObjectServer, Request


@pytest.fixture
def cache(tmp_path: Path) -> ReadCache:
    return ReadCache(tmp_path / "cache" / "objects", limit_bytes=10**6)


@pytest.fixture
def folder(object_server: ObjectServer, cache: ReadCache) -> Folder:
    return Folder(place_at(f"{object_server.new_bucket()}/a place", cache=cache))


def place_of(folder: Folder) -> Objects:
    assert isinstance(folder.place, Objects)
    return folder.place


def test_a_record_says_what_lies_in_the_store(folder: Folder) -> None:
    record = folder.write("a/b/rows.bin", b"some rows")
    assert record == ("a/b/rows.bin", 9, hashlib.sha256(b"some rows").hexdigest())
    assert record == folder.record("a/b/rows.bin")
    assert folder.read("a/b/rows.bin") == (folder / "a" / "b").read("rows.bin") == b"some rows"
    assert folder.has(record) and not folder.has(record._replace(size=8))
    assert folder.at("a/b/rows.bin").endswith("/a place/a/b/rows.bin")


def test_files_and_folders_are_listed_by_their_whole_names(folder: Folder) -> None:
    for name in ("b.bin", "a/z.bin", "a/y.bin", "ab/x.bin"):
        folder.write(name, b"x")
    assert list(folder.files()) == ["a/y.bin", "a/z.bin", "ab/x.bin", "b.bin"]
    assert list((folder / "a").files()) == ["y.bin", "z.bin"]
    assert folder.place.folders() == ["a", "ab"]
    assert list((folder / "nothing").files()) == (folder / "nothing").place.folders() == []


def test_what_is_not_there_is_not_found_and_can_be_removed(folder: Folder) -> None:
    folder.write("a.bin", b"x")
    for _ in range(2):
        folder.remove("a.bin")
    assert not folder.exists("a.bin")
    for read in (folder.read, folder.read_json, folder.record, lambda name: folder.local(name).__enter__()):
        with pytest.raises(FileNotFoundError):
            read("a.bin")


def test_a_file_of_several_requests_is_whole(folder: Folder) -> None:
    data = bytes(range(256)) * 40_000
    folder.write("large.bin", memoryview(data))
    assert folder.read("large.bin") == data
    with folder.local("large.bin") as path:
        assert path.read_bytes() == data and path.suffix == ".bin"


def test_a_dropped_folder_loses_the_file_that_names_it_last(folder: Folder, object_server: ObjectServer) -> None:
    work = folder / "work"
    for name in ("attempt.json", "state/0.json", "z.bin"):
        work.write(name, b"{}")
    deleted: list[Request] = []

    def killed(request: Request) -> int | None:
        if request.method in ("POST", "DELETE"):
            deleted.append(request)
            return 403 if len(deleted) == 2 else None
        return None

    with object_server.answering(killed), pytest.raises(StoreAway):
        work.place.drop(last="attempt.json")
    assert list(work.files()) == ["attempt.json"]
    work.place.drop(last="attempt.json")
    work.place.drop(last="attempt.json")
    assert list(work.files()) == []


class Held:
    """A guard that is held until it is lost."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}
        self.lost = False

    def check(self) -> None: ...

    def held(self) -> Held:
        if self.lost:
            raise RuntimeError("lost")
        return self

    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


def guarded(folder: Folder, guard: Held) -> Folder:
    return Folder(folder.place, guard=guard)


def test_a_late_write_replaces_nothing_that_the_next_holder_wrote(folder: Folder) -> None:
    """Whether it was a file of its own before, or none at all; and though nobody noticed in time that it was late."""
    late, taker = Held(), Held()
    guarded(folder, late).write("checkpoint", b"first")
    assert guarded(folder, late).write("checkpoint", b"second") == folder.record("checkpoint")
    for name in ("checkpoint", "shard"):
        guarded(folder, taker).write(name, b"the taker's")

    def stand_still_and_lose(self: Bucket, key: str) -> None:
        late.lost = True

    with pytest.MonkeyPatch.context() as patch:
        # It looked at the lease before it stood still, and sends its request now.
        patch.setattr(Bucket, "head", stand_still_and_lose)
        for name in ("checkpoint", "shard"):
            late.lost = False
            with pytest.raises(RuntimeError, match="lost"):
                guarded(folder, late).write(name, b"late")
    assert folder.read("checkpoint") == folder.read("shard") == b"the taker's"


def test_a_holder_goes_on_with_files_that_an_earlier_one_left(folder: Folder) -> None:
    folder.write("checkpoint", b"of the one before")
    holder = guarded(folder, Held())
    for content in (b"mine", b"mine again"):
        holder.write("checkpoint", content)
        assert folder.read("checkpoint") == content


def test_a_write_whose_answer_gets_lost_is_no_conflict(folder: Folder, object_server: ObjectServer) -> None:
    def written_but_not_told(request: Request) -> int | None:
        if request.method == "PUT" and not folder.exists("a.bin"):
            folder.write("a.bin", b"new")
            return 503
        return None

    holder = guarded(folder, Held())
    once = iter([written_but_not_told])

    def answer(request: Request) -> int | None:
        if request.method == "PUT" and (act := next(once, None)):
            return act(request)
        return None

    with object_server.answering(answer):
        holder.write("a.bin", b"new")
    assert folder.read("a.bin") == b"new"


@pytest.mark.parametrize("status", [500, 503])
def test_a_store_that_is_away_for_a_while_is_waited_for(
    folder: Folder, object_server: ObjectServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    folder.write("a.bin", b"old")
    refused: list[Request] = []

    def busy(request: Request) -> int | None:
        refused.append(request)
        return status if len(refused) <= 2 else None

    with caplog.at_level(logging.WARNING):
        for act in (lambda: folder.write("a.bin", b"new"), lambda: folder.read("a.bin"), lambda: list(folder.files())):
            refused.clear()
            with object_server.answering(busy):
                act()
    assert folder.read("a.bin") == b"new"
    assert [f"does not answer (HTTP {status}" in message for message in caplog.messages] == [True] * 3


def test_an_answer_that_breaks_off_is_asked_for_again(folder: Folder, object_server: ObjectServer) -> None:
    record = folder.write("a.bin", bytes(100_000))
    broken: list[Request] = []

    def break_off(request: Request) -> int | None:
        broken.append(request)
        return BREAK_OFF if len(broken) == 1 else None

    for read in (folder.read, folder.record):
        broken.clear()
        with object_server.answering(break_off):
            assert read("a.bin") in (bytes(100_000), record)
        assert len(broken) == 2


def test_a_store_that_hangs_is_given_up_and_asked_again(
    object_server: ObjectServer, cache: ReadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bucket.SILENCE_SECONDS", 1)
    folder = Folder(place_at(object_server.new_bucket(), cache=cache), guard=Held())
    folder.write("a.bin", b"old")
    object_server.process.send_signal(signal.SIGSTOP)
    waker = threading.Timer(1.5, object_server.process.send_signal, [signal.SIGCONT])
    waker.start()
    try:
        # The first request was taken in, and is answered when nobody listens any more.
        folder.write("a.bin", b"new")
    finally:
        waker.join()
    assert folder.read("a.bin") == b"new"


def test_a_store_that_stays_away_is_an_error_that_says_what_to_do(folder: Folder, object_server: ObjectServer) -> None:
    folder.write("a.bin", b"old")
    place = place_of(folder)
    impatient = Folder(Objects(place.bucket.patient(0.5), place.prefix, place.cache))
    began = time.monotonic()
    with object_server.answering(lambda request: 503), pytest.raises(StoreAway) as away:
        impatient.write("a.bin", b"new")
    assert time.monotonic() - began < 5
    assert "\n" not in str(away.value)
    for part in (object_server.endpoint, "HTTP 503", "AWS_ENDPOINT_URL", "run the same command again"):
        assert part in str(away.value)
    assert folder.read("a.bin") == b"old"


def test_what_is_wrong_from_the_beginning_is_said_at_once(
    object_server: ObjectServer, cache: ReadCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = object_server.new_bucket()
    monkeypatch.setattr("storage.bucket.FIRST_PATIENCE_SECONDS", 0.5)

    def complaint(where: str) -> str:
        with pytest.raises(StoreAway) as away:
            Folder(place_at(where, cache=cache)).exists("marker.json")
        message = str(away.value)
        assert "\n" not in message and "a-secret-key" not in message and "an-access-key" not in message
        return message

    assert "there is no such bucket. Create it, or correct GRAFT_STORE" in complaint(f"{bucket}-of-nobody")
    for status in (401, 403):
        with object_server.answering(lambda request, status=status: status):
            assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in complaint(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 must answer, and did not" in complaint(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL must be an address"):
        place_at(bucket, cache=cache)


def committed(folder: Folder, *records: FileRecord) -> Folder:
    return Folder(folder.place, records=records)


def test_what_is_committed_is_fetched_once(folder: Folder, object_server: ObjectServer) -> None:
    artifact = committed(folder, folder.write("a.bin", b"abc"), folder.write("copy of a.bin", b"abc"))
    object_server.requests.clear()
    for _ in range(3):
        for name in ("a.bin", "copy of a.bin"):
            assert artifact.read(name) == b"abc"
            with artifact.local(name) as path:
                assert path.read_bytes() == b"abc"
    assert len(object_server.requests) == 1
    # A check of what lies there asks the store.
    assert artifact.record("a.bin").size == 3
    assert len(object_server.requests) == 2


@pytest.mark.parametrize("damage", [b"abX", b"ab", None])
def test_a_committed_file_that_is_not_as_it_was_written_is_named(folder: Folder, damage: bytes | None) -> None:
    artifact = committed(folder, folder.write("a.bin", b"abc"))
    if damage is None:
        folder.remove("a.bin")
    else:
        folder.write("a.bin", damage)
    for read in (artifact.read, lambda name: artifact.local(name).__enter__()):
        with pytest.raises(CorruptFile, match=r"a place/a\.bin must be .*--force"):
            read("a.bin")


def test_a_place_can_be_sent_to_another_process_and_holds_no_secret(folder: Folder) -> None:
    import pickle

    sent = pickle.dumps(folder)
    assert b"secret" not in sent and b"access" not in sent
    folder.write("a.bin", b"abc")
    assert pickle.loads(sent).read("a.bin") == b"abc"


def test_one_thread_of_this_machine_has_the_turn(folder: Folder) -> None:
    order: list[str] = []

    def second() -> None:
        with folder.place.turn("lock"):
            order.append("second")

    with folder.place.turn("lock"), (folder / "other").place.turn("lock"):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.fixture
def memory(cache: ReadCache) -> Iterator[Folder]:
    yield Folder(place_at("memory:///place", cache=cache))


def test_other_stores_of_the_library_work_alike(memory: Folder) -> None:
    guard = Held()
    for content in (b"abc", b"abcd"):
        guarded(memory, guard).write("a/b.bin", content)
    assert memory.read("a/b.bin") == b"abcd" and list(memory.files()) == ["a/b.bin"]
    assert committed(memory, memory.record("a/b.bin")).read("a/b.bin") == b"abcd"
    memory.place.drop(last="b.bin")
    memory.remove("a/b.bin")
    assert list(memory.files()) == []
