"""Leases: one writer at a time, a dead one is taken over, and one that lost its lease writes nothing more."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from storage import lease as module
from storage.errors import LeaseLost, StoreUnwritable
from storage.folder import FileRecord, Folder
from storage.lease import FileLease, Lease, LeasedFolder

ELSEWHERE = "another machine/boot/pid namespace"


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "leases")


@pytest.fixture
def data(tmp_path) -> Folder:
    return Folder(tmp_path / "data")


def lease_of(folder: Folder, *, seconds: float = 60.0, wait: float | None = 0) -> Lease:
    return FileLease(folder, "key", seconds=seconds, wait=wait)


def leave(folder: Folder, **changes) -> None:
    """A lease file as another process would have left it."""
    holder = {"token": "other", "expires": time.time() + 60, "host": ELSEWHERE, "pid": 1, "started": "1"}
    folder.write_json("key.json", holder | changes)


def take_over(folder: Folder, lease: Lease) -> None:
    """Another process took the lease while this one stood still for longer than it lives."""
    leave(folder)
    lease._expires = 0.0


def dead_process() -> dict:
    """The pid and the start of a process that lived and does no more."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    holder = {
        "pid": process.pid,
        "started": module._process_start(process.pid),
        "host": module._host_identity(),
    }
    process.communicate()
    return holder


def test_it_is_there_while_held_and_gone_afterwards(folder):
    with lease_of(folder):
        holder = folder.read_json("key.json")
        assert holder["pid"] == os.getpid() and holder["expires"] > time.time() + 50
    assert not folder.exists("key.json")
    with lease_of(folder):
        assert folder.exists("key.json")


def test_an_error_in_the_block_gives_it_back(folder):
    with pytest.raises(RuntimeError, match="inside"), lease_of(folder):
        raise RuntimeError("inside")
    assert not folder.exists("key.json")


def test_who_does_not_want_to_wait_is_told_the_holder(folder):
    with lease_of(folder):
        with pytest.raises(TimeoutError, match=f"another process is making this artifact: .*'pid': {os.getpid()}"):
            lease_of(folder).__enter__()
        # Leases of other names do not mind.
        with FileLease(folder, "other key", wait=0):
            pass


def test_who_waits_gets_it_when_the_holder_leaves(folder):
    order = []

    def second() -> None:
        with lease_of(folder, wait=None):
            order.append("second")

    with lease_of(folder):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.5)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_it_is_renewed_while_its_holder_lives(folder):
    with lease_of(folder, seconds=1.0):
        first = folder.read_json("key.json")["expires"]
        while time.time() < first + 0.1:
            time.sleep(0.05)
        assert folder.read_json("key.json")["expires"] > time.time()
        with pytest.raises(TimeoutError):
            lease_of(folder).__enter__()


def test_a_disk_that_is_full_for_a_while_does_not_stop_the_renewal(folder, monkeypatch):
    full = threading.Event()
    write = Folder.write

    def refuse(self: Folder, name: str, data: bytes) -> FileRecord:
        if full.is_set():
            raise StoreUnwritable(errno.ENOSPC, "No space left on device")
        return write(self, name, data)

    with lease_of(folder, seconds=0.6):
        monkeypatch.setattr(Folder, "write", refuse)
        full.set()
        time.sleep(0.4)
        full.clear()
        before, deadline = folder.read_json("key.json")["expires"], time.monotonic() + 5
        while folder.read_json("key.json")["expires"] == before:
            assert time.monotonic() < deadline, "it is not renewed any more"
            time.sleep(0.05)


def test_a_holder_elsewhere_keeps_it_until_it_expires(folder):
    leave(folder)
    with pytest.raises(TimeoutError):
        lease_of(folder, wait=0.3).__enter__()
    leave(folder, expires=time.time() - 0.1)
    with lease_of(folder):
        assert folder.read_json("key.json")["token"] != "other"


def test_a_dead_holder_of_this_machine_is_taken_over_at_once(folder):
    leave(folder, **dead_process())
    with lease_of(folder):
        assert folder.read_json("key.json")["pid"] == os.getpid()


def test_another_process_with_the_number_of_a_dead_one_is_not_the_holder(folder):
    leave(folder, pid=os.getpid(), started="0", host=module._host_identity())
    with lease_of(folder):
        pass


def test_an_equal_process_number_elsewhere_says_nothing(folder):
    leave(folder, **dead_process() | {"host": ELSEWHERE})
    with pytest.raises(TimeoutError):
        lease_of(folder).__enter__()


def test_where_nobody_can_tell_it_is_kept_until_it_expires(folder):
    leave(folder, pid=2**22 + 1, started=None, host=module._host_identity())
    with pytest.raises(TimeoutError):
        lease_of(folder).__enter__()


def test_a_lease_file_that_cannot_be_read_holds_nothing(folder):
    folder.write("key.json", b'{"token": "ot')
    with lease_of(folder):
        assert json.loads(folder.read("key.json"))["pid"] == os.getpid()


def test_a_check_costs_nothing_until_the_lease_could_have_expired(folder, monkeypatch):
    with lease_of(folder) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(FileLease, "_guard", lambda self: pytest.fail("the lease file was looked at"))
            lease.check()
        lease._expires = 0.0
        lease.check()


def test_who_lost_it_is_told_who_has_it_and_leaves_it_alone(folder):
    with lease_of(folder) as lease:
        take_over(folder, lease)
        for attempt in (lease.check, lambda: lease.held().__enter__()):
            with pytest.raises(LeaseLost, match=r"key\.json .*another machine.*Run the same command again"):
                attempt()
    assert folder.read_json("key.json")["token"] == "other"


def test_only_the_holder_writes_to_a_leased_folder(folder, data):
    with lease_of(folder) as lease:
        leased = LeasedFolder(data.path, lease=lease)
        assert leased.write("a/b.bin", b"first") == data.record("a/b.bin")
        take_over(folder, lease)
        for place, name in [(leased, "a/b.bin"), (leased / "a", "b.bin"), (leased, "c.bin")]:
            with pytest.raises(LeaseLost):
                place.write(name, b"late")
    assert list(data.files()) == ["a/b.bin"] and data.read("a/b.bin") == b"first"


def test_a_process_that_stood_still_inside_a_write_does_not_finish_it(folder, data, monkeypatch):
    """Its bytes are in the temporary file; the name they would get belongs to the one who took over."""
    with lease_of(folder) as lease:
        leased = LeasedFolder(data.path, lease=lease)

        def stand_still(number: int) -> None:
            monkeypatch.undo()
            take_over(folder, lease)
            data.write("shard", b"the taker's")

        monkeypatch.setattr(os, "fsync", stand_still)
        with pytest.raises(LeaseLost):
            leased.write("shard", b"late")
    assert data.read("shard") == b"the taker's"
    assert [path.name for path in Path(data.path).iterdir()] == ["shard"]


def test_nobody_takes_it_while_a_commit_is_under_way(folder):
    taken = threading.Event()

    def taker() -> None:
        with lease_of(folder, wait=None):
            taken.set()

    with lease_of(folder, seconds=0.2) as lease:
        lease._stop.set()  # as if this process had stood still
        with lease.held():
            thread = threading.Thread(target=taker)
            thread.start()
            assert not taken.wait(0.6)
        assert taken.wait(5)
        with pytest.raises(LeaseLost):
            lease.check()
    thread.join(timeout=10)


def test_who_has_the_token_writes_for_the_holder_until_the_lease_is_lost(folder, data):
    with lease_of(folder) as lease:
        rank = LeasedFolder(data.path, lease=FileLease(folder, "key", token=lease.token))
        rank.write("shard", b"1")
        take_over(folder, lease)
        with pytest.raises(LeaseLost):
            rank.write("shard", b"2")
    assert data.read("shard") == b"1"
