"""Leases in an object store: one holder at a time, by conditional writes and the store's clock alone."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import bucket as door
from storage import lease as module
from storage.bucket import Bucket
from storage.errors import LeaseLost
from storage.lease import LeasedFolder
from storage.object_lease import ObjectLease
from storage.objects import Objects, place_at
from storage.read_cache import ReadCache
from tests.object_store import ObjectServer, Request

ELSEWHERE = "another machine/boot/pid namespace"


@pytest.fixture
def place(object_server: ObjectServer, tmp_path: Path) -> Objects:
    found = place_at(f"{object_server.new_bucket()}/leases", cache=ReadCache(tmp_path / "cache", limit_bytes=10**6))
    assert isinstance(found, Objects)
    return found


def lease_of(place: Objects, *, seconds: float = 60.0, wait: float | None = 0) -> ObjectLease:
    return ObjectLease(place, "key", seconds=seconds, wait=wait)


def content(place: Objects) -> dict:
    return json.loads(place.read("key.json", known=None))


def leave(place: Objects, **changes: object) -> None:
    """A lease as another process would have left it."""
    holder = {"token": "other", "beat": "b", "seconds": 60.0, "released": False}
    identity = {"host": ELSEWHERE, "pid": 1, "started": "1"}
    place.write("key.json", json.dumps(holder | identity | changes).encode(), guard=None)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """The store's clock goes on; this machine's does not."""
    now = Bucket.now
    monkeypatch.setattr(Bucket, "now", lambda self, prefix: now(self, prefix) + seconds)


def test_it_is_held_and_given_back(place: Objects) -> None:
    for _ in range(2):
        with lease_of(place) as lease:
            held = content(place)
            assert (held["released"], held["pid"], held["seconds"]) == (False, os.getpid(), 60.0)
            with pytest.raises(TimeoutError, match=f"another process is making this artifact: .*{os.getpid()}"):
                lease_of(place).__enter__()
            lease.check()
        assert content(place)["released"] is True


def test_of_many_that_want_it_one_at_a_time_has_it(place: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectLease, "poll_seconds", 0.01)
    inside, most = 0, 0

    def want() -> None:
        nonlocal inside, most
        with lease_of(place, wait=None):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert most == 1 and inside == 0


def test_two_that_find_it_free_at_once_do_not_both_get_it(place: Objects) -> None:
    for state in ("absent", "released"):
        if state == "released":
            leave(place, released=True)
        first, second = lease_of(place), lease_of(place)
        assert first._holder() is None and second._holder() is None
        assert [first._write(), second._write()] == [True, False]
        place.remove("key.json")


def test_it_is_renewed_while_its_holder_lives(place: Objects) -> None:
    with lease_of(place, seconds=0.6) as lease:
        first = content(place)["beat"]
        deadline = time.monotonic() + 10
        while content(place)["beat"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        lease.check()


def test_an_outage_that_ends_in_time_does_not_cost_the_lease(place: Objects, object_server: ObjectServer) -> None:
    with lease_of(place, seconds=3.0) as lease:
        refused: list[Request] = []

        def busy(request: Request) -> int | None:
            refused.append(request)
            return 503

        with object_server.answering(busy):
            while len(refused) < 2:
                time.sleep(0.02)
        first = content(place)["beat"]
        deadline = time.monotonic() + 20
        while content(place)["beat"] == first:
            assert time.monotonic() < deadline, "it is not renewed any more"
            time.sleep(0.05)
        with lease.held():
            pass


def test_a_holder_elsewhere_keeps_it_until_the_store_s_clock_says_that_it_is_over(
    place: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(place, seconds=30.0)
    # Whatever this machine thinks of the time.
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(TimeoutError):
        lease_of(place).__enter__()
    later(monkeypatch, 25.0)
    with pytest.raises(TimeoutError):
        lease_of(place).__enter__()
    later(monkeypatch, 10.0)
    with lease_of(place):
        assert content(place)["token"] != "other"


def test_the_store_s_clock_is_no_second_ahead(place: Objects) -> None:
    """S3 tells whole seconds; a lease must not end early for that."""
    leave(place)
    since = time.monotonic()
    age = place.bucket.now(place.prefix) - place.bucket.get(place.key("key.json")).modified
    assert -1.0 <= age <= time.monotonic() - since + 1.0


def test_a_dead_holder_of_this_machine_is_taken_over_at_once(place: Objects) -> None:
    leave(place, pid=os.getpid(), started="0", host=module._host_identity())
    with lease_of(place):
        assert content(place)["pid"] == os.getpid()


@pytest.mark.parametrize("damage", [b"", b"{", b"no json"])
def test_a_lease_that_cannot_be_read_holds_nothing(place: Objects, damage: bytes) -> None:
    place.write("key.json", damage, guard=None)
    with lease_of(place):
        assert content(place)["pid"] == os.getpid()


def test_who_lost_it_is_told_who_has_it_and_leaves_it_alone(place: Objects) -> None:
    data = place.parent / "data"
    with lease_of(place) as lease:
        leased = LeasedFolder(data, lease=lease)
        leased.write("a.bin", b"first")
        leave(place)
        lease._expires = 0.0
        acts: list[Callable[[], object]] = [
            lease.check,
            lambda: lease.held().__enter__(),
            lambda: leased.write("a.bin", b"late"),
            lambda: (leased / "b").write("b.bin", b"late"),
        ]
        for act in acts:
            with pytest.raises(LeaseLost, match=r"key\.json .*another machine.*Run the same command again"):
                act()
    assert content(place)["token"] == "other"
    assert data.sizes() == {"a.bin": 5}


def test_a_renewal_whose_answer_got_lost_is_one(place: Objects, object_server: ObjectServer) -> None:
    with lease_of(place) as lease:
        swap, lost = Bucket.swap, iter([True])

        def swap_and_lose(self: Bucket, key: str, data: bytes, version: Any) -> Any:
            written = swap(self, key, data, version)
            return None if next(lost, False) else written

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bucket, "swap", swap_and_lose)
            assert lease._renew()
        with lease.held():
            pass


def test_a_store_that_does_not_heed_conditions_is_refused(place: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bucket, "swap", lambda self, key, data, version: self.put(key, data))
    with pytest.raises(ValueError, match=r"must refuse a write whose condition does not hold .*conditional writes"):
        lease_of(place).__enter__()
    assert place.sizes() == {}


def test_leaving_does_not_wait_for_a_store_that_is_away(place: Objects, object_server: ObjectServer) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="inside"), lease_of(place, seconds=1.5):
        object_server.answer = lambda request: 503
        began = time.monotonic()
        raise RuntimeError("inside")
    object_server.answer = lambda request: None
    assert time.monotonic() - began < door.SILENCE_SECONDS
