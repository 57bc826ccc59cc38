"""A lease in an object store, where nothing can be locked: it changes hands by conditional writes alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Self
from uuid import uuid4

from storage.bucket import Bucket, Version
from storage.errors import StoreAway
from storage.lease import Lease, died_here, process_identity
from storage.objects import Objects

# S3 tells times to the second.
CLOCK_SECONDS = 1.0


class ObjectLease(Lease):
    """The right to write one artifact whose place is an object store.

    The lease is one object. It is taken, renewed and given back by writes that replace only the version that was read
    (If-None-Match, If-Match), so of two that want it one gets it. A holder on this machine that died is seen at once;
    one elsewhere is taken for dead when the object has not changed for the seconds that its holder wrote into it, both
    times told by the store's clock: no two machines' clocks are compared.

    That nothing is overwritten by a holder that stood still and lost its lease is the affair of Objects.write.

    Args:
        place: where leases lie.
        name: what is leased.
        seconds: how long the lease lives without renewal; a thread renews it three times as often.
        wait: how long to wait for another holder before giving up; None waits for ever.
        token: see Lease.
    Raises:
        TimeoutError: on entering, when the wait was not long enough; names the holder.
        ValueError: on entering, when the store does not heed the conditions of a write.
    """

    poll_seconds = 1.0

    def __init__(
        self, place: Objects, name: str, *, seconds: float = 60.0, wait: float | None = None, token: str | None = None
    ) -> None:
        super().__init__(name, seconds=seconds, wait=wait, token=token)
        self._bucket = place.bucket
        # A renewal that fails is tried again at its next turn, and a lease that is not given back runs out by itself.
        self._hasty = place.bucket.patient(seconds / 3)
        self._place = place
        self._key = place.key(self._name)
        self._version: Version | None = None
        self._modified = 0.0
        self._one_at_a_time = threading.RLock()

    def __enter__(self) -> Self:
        _require_conditions(self._place.bucket, self._place.prefix)
        return super().__enter__()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """The thread that renews and the one that works look at the same object."""
        with self._one_at_a_time:
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that begins while the lease is held; what is written in it needs a condition of its own."""
        with self._guard():
            self._require_mine()
        yield

    def _holder(self) -> dict[str, Any] | None:
        return self._look(self._bucket)

    def _look(self, bucket: Bucket) -> dict[str, Any] | None:
        try:
            found = bucket.get(self._key)
        except FileNotFoundError:
            self._version = None
            return None
        self._version, self._modified = found.version, found.modified
        with suppress(ValueError):
            content: dict[str, Any] = json.loads(found.data)
            return None if content["released"] else content
        return None

    def _is_over(self, holder: dict[str, Any]) -> bool:
        if died_here(holder):
            return True
        age = self._bucket.now(self._place.prefix) - self._modified
        return bool(age > holder["seconds"] + CLOCK_SECONDS)

    def _write(self) -> bool:
        return self._swap(self._bucket, released=False)

    def _renew(self) -> bool:
        holder = self._look(self._hasty)
        return holder is not None and holder["token"] == self.token and self._swap(self._hasty, released=False)

    def _give_back(self) -> None:
        with suppress(StoreAway):
            holder = self._look(self._hasty)
            if holder is not None and holder["token"] == self.token:
                # Not removed: no condition could be put to that.
                self._swap(self._hasty, released=True)

    def forget(self) -> None:
        with suppress(StoreAway):
            self._hasty.delete([self._key])

    def _swap(self, bucket: Bucket, *, released: bool) -> bool:
        begun = time.time()
        beat = uuid4().hex
        content = {"token": self.token, "beat": beat, "seconds": self._seconds, "released": released}
        data = json.dumps(content | process_identity()).encode()
        if bucket.swap(self._key, data, self._version) is None:
            # Somebody was faster; or the write went through and its answer got lost.
            now = self._look(bucket)
            if now is None or now["beat"] != beat:
                return False
        self._expires = begun + self._seconds
        return True


@cache
def _require_conditions(bucket: Bucket, prefix: str) -> None:
    """A store that passes over the conditions of a write would let everybody in."""
    key = f"{prefix}/.conditions-{uuid4().hex}"
    first = bucket.swap(key, b"1", None)
    second = bucket.swap(key, b"2", first) if first else None
    heeded = second and bucket.swap(key, b"3", None) is None and bucket.swap(key, b"3", first) is None
    bucket.delete([key])
    if not heeded:
        raise ValueError(
            f"{bucket} must refuse a write whose condition does not hold (If-None-Match, If-Match), and does not: two "
            "machines could make one artifact at once. Use a store that has conditional writes"
        )
