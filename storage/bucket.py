"""The only door to obstore: the objects of one bucket, by key."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import uuid4

from storage.patience import FIRST_PATIENCE_SECONDS, PATIENCE_SECONDS, patiently

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

T = TypeVar("T")

SILENCE_SECONDS = 30
# Larger objects are read for longer, as long as something comes.
LONGEST_READ_SECONDS = 6 * 3600
# An upload that is slower than this is taken for one that hangs.
SLOWEST_BYTES_PER_SECOND = 2**20
READ_BYTES = 8 * 2**20
READERS = 16
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")

Version = dict[str, str]


class Found(NamedTuple):
    """An object as it was read.

    Attributes:
        data: its bytes.
        version: what the store calls this version of it.
        modified: seconds since 1970 by the store's clock, as fine as the store tells it.
    """

    data: bytes
    version: Version
    modified: float


@dataclass(frozen=True)
class Bucket:
    """One bucket. Making one opens nothing; it can be sent to other processes, and holds no secret.

    Every request is made again, for as long as `patience` says, while the server does not answer or says that it
    cannot (5xx). All methods raise StoreAway after that, and at once when the server refuses or knows no such bucket.

    Attributes:
        url: scheme and name, such as s3://bucket.
        endpoint: the server, where it is not the one that the scheme stands for.
        patience: seconds for which a server may be away before it is an error.
    """

    url: str
    endpoint: str | None
    patience: float = PATIENCE_SECONDS

    @classmethod
    def of(cls, url: str) -> Bucket:
        """The bucket of a URL, at the server that the AWS_* variables name.

        Raises:
            ValueError: obstore is not installed, or one of these variables is no address.
        """
        for name in ENDPOINTS:
            if not os.environ.get(name, "http://").startswith(("http://", "https://")):
                raise ValueError(f"{name} must be an address such as https://s3.example:9000, or not be set at all")
        if find_spec("obstore") is None:
            raise ValueError(f"a store at {url} needs the package obstore: pip install 'graft-ssl[object-store]'")
        named = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), None)
        return cls(url, named if url.startswith("s3") else None)

    def patient(self, seconds: float) -> Bucket:
        """The same bucket, with another patience."""
        return replace(self, patience=seconds)

    def __str__(self) -> str:
        return f"the object store of {self.url}" + (f" at {self.endpoint}" if self.endpoint else "")

    def get(self, key: str) -> Found:
        """An object with its version.

        Raises:
            FileNotFoundError: there is none.
        """
        import obstore

        def read(store: ObjectStore) -> Found:
            answer = obstore.get(store, key)
            data = answer.bytes().to_bytes()
            return Found(data, _version(answer.meta), answer.meta["last_modified"].timestamp())

        return self._do(read)

    def get_all(self, keys: list[str]) -> Iterator[bytes]:
        """The bytes of several objects, in their order; some are asked for at a time."""
        with ThreadPoolExecutor(READERS) as pool:
            yield from (found.data for found in pool.map(self.get, keys))

    def read(self, key: str, take: Callable[[Iterator[Any]], T]) -> T:
        """Give an object to `take` in blocks; from the beginning again when the connection breaks.

        Raises:
            FileNotFoundError: there is none.
        """
        import obstore

        return self._do(lambda store: take(iter(obstore.get(store, key).stream(min_chunk_size=READ_BYTES))))

    def put(self, key: str, data: bytes | memoryview) -> Version:
        """Put an object in place, whole, whatever is there."""
        import obstore

        raw = memoryview(data).cast("B")
        return self._do(lambda store: _version(obstore.put(store, key, raw)), upload=raw.nbytes)

    def swap(self, key: str, data: bytes | memoryview, version: Version | None) -> Version | None:
        """Put an object in place if what is there is of this version or, with None, if nothing is.

        Returns:
            The new version; None when there is something else. That may be this very object, when it was written and
            the answer got lost.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        raw = memoryview(data).cast("B")
        mode: Any = version or "create"
        try:
            # Only a single request can have a condition.
            return self._do(
                lambda store: _version(obstore.put(store, key, raw, mode=mode, use_multipart=False)), upload=raw.nbytes
            )
        except (AlreadyExistsError, PreconditionError):
            return None

    def head(self, key: str) -> tuple[int, Version] | None:
        """Size and version of an object; None when there is none."""
        import obstore

        try:
            meta = self._do(lambda store: obstore.head(store, key))
        except FileNotFoundError:
            return None
        return meta["size"], _version(meta)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Key -> size of all objects below a prefix, sorted."""
        return dict(sorted((one["path"], one["size"]) for one in self._list(prefix)))

    def usage(self, prefix: str) -> tuple[int, float]:
        """Bytes of all objects below a prefix, and when the last was written (seconds since 1970; 0 for none)."""
        found = self._list(prefix)
        written = max((one["last_modified"].timestamp() for one in found), default=0.0)
        return sum(one["size"] for one in found), written

    def _list(self, prefix: str) -> list[Any]:
        import obstore

        return self._do(lambda store: [one for page in obstore.list(store, prefix) for one in page])

    def folders(self, prefix: str) -> list[str]:
        """The prefixes right below a prefix, sorted."""
        import obstore

        return sorted(self._do(lambda store: obstore.list_with_delimiter(store, prefix))["common_prefixes"])

    def delete(self, keys: list[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        import obstore

        def remove(store: ObjectStore) -> None:
            try:
                obstore.delete(store, keys)
            except FileNotFoundError:
                # Some stores tell, S3 does not; what comes after it is still there.
                if len(keys) > 1:
                    for key in keys:
                        self.delete([key])

        self._do(remove)

    def now(self, prefix: str) -> float:
        """Seconds since 1970 by the store's clock: it is asked once, by an object below `prefix` that goes again."""
        return time.monotonic() + _clock_offset(self, prefix)

    def _do(self, call: Callable[[ObjectStore], T], *, upload: int | None = None) -> T:
        _meet(self.url, self.endpoint)
        return patiently(lambda: call(_client(self, upload)), seconds=self.patience, whom=str(self))


def _version(meta: Any) -> Version:
    """Which of the two a store gives, and wants back, is its own affair."""
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _client(bucket: Bucket, upload: int | None) -> ObjectStore:
    if upload is None:
        return _open(bucket.url, bucket.endpoint, None)
    # A power of two, so that uploads of about a size share a client and its connections.
    seconds = SILENCE_SECONDS << (upload // (SILENCE_SECONDS * SLOWEST_BYTES_PER_SECOND)).bit_length()
    return _open(bucket.url, bucket.endpoint, seconds)


@cache
def _open(url: str, endpoint: str | None, upload_seconds: int | None) -> ObjectStore:
    from obstore.store import MemoryStore, from_url

    if url.startswith("memory:"):
        return _memory(url, MemoryStore)
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=5),
        # Only where the endpoint itself says so.
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "timeout": timedelta(seconds=upload_seconds or LONGEST_READ_SECONDS),
    }
    if upload_seconds is None:
        options["read_timeout"] = timedelta(seconds=SILENCE_SECONDS)
    config: Any = {"endpoint": endpoint} if endpoint else None
    # Trying again is `patiently`'s.
    return from_url(url, config=config, client_options=options, retry_config={"max_retries": 0})


@cache
def _memory(_url: str, kind: Callable[[], ObjectStore]) -> ObjectStore:
    """All of a process see one memory."""
    return kind()


@cache
def _meet(url: str, endpoint: str | None) -> None:
    """The first request of a process: a wrong address, bucket or key is told at once, and not after minutes."""
    import obstore

    bucket = Bucket(url, endpoint)
    client = _open(url, endpoint, None)
    patiently(
        lambda: obstore.list_with_delimiter(client, "graft-first-request"),
        seconds=FIRST_PATIENCE_SECONDS,
        whom=str(bucket),
    )


@cache
def _clock_offset(bucket: Bucket, prefix: str) -> float:
    key = f"{prefix}/.clock-{uuid4().hex}"
    bucket.put(key, b"")
    asked = time.monotonic()
    modified = bucket.get(key).modified
    bucket.delete([key])
    return modified - asked
