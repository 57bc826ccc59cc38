"""A place in an object store: the same files by the same names, each an object of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from storage.bucket import Bucket
from storage.errors import CorruptFile
from storage.places import Disk, FileRecord, Guard, Place, Usage, turn
from storage.read_cache import ReadCache

SCHEMES = ("s3", "gs", "az", "memory")
REMEDY = "recompute the step that wrote it (--force)"
# S3 takes no larger object in one request, and only a single request can have a condition.
MOST_BYTES_AT_ONCE = 4 * 2**30


class Objects(Place):
    """The objects of a bucket whose keys begin with a prefix. One PUT puts a file in place, whole.

    A process may stand still between its last look at the lease and its request, and there is no lock that would keep
    others out meanwhile, as there is on a disk. So a guarded write has a condition: it replaces nothing but what this
    holder wrote itself, or what it found there *before* it last made sure that the lease is its own. What another
    holder wrote after taking over is therefore never replaced by a late write, whatever the clocks say. That goes for
    the marker, too. What cannot be prevented: a late write of an object that the new holder has not written yet does
    land. It is whole, and work on the same key; the new holder replaces it when it comes to it. Should that be a late
    marker, its artifact is complete, as all its files were there before; a file that the new holder had by then made
    anew with other bytes is found by verification.
    """

    def __init__(self, bucket: Bucket, prefix: str, cache: ReadCache) -> None:
        self.bucket = bucket
        self.prefix = prefix
        self.cache = cache

    @property
    def name(self) -> str:
        return self.prefix.rpartition("/")[2]

    @property
    def parent(self) -> Objects:
        return Objects(self.bucket, self.prefix.rpartition("/")[0], self.cache)

    @property
    def uri(self) -> str:
        return quote(self.address(""), safe=":/")

    def __truediv__(self, name: str) -> Objects:
        return Objects(self.bucket, self.key(name), self.cache)

    def key(self, name: str) -> str:
        """The whole key of a file."""
        return "/".join(part for part in (self.prefix, name) if part)

    def address(self, name: str) -> str:
        return f"{self.bucket.url}/{self.key(name)}"

    def make(self) -> None:
        """An object store has no folders."""

    def write(self, name: str, data: bytes | memoryview, *, guard: Guard | None) -> None:
        key = self.key(name)
        if guard is None:
            self.bucket.put(key, data)
        elif memoryview(data).nbytes > MOST_BYTES_AT_ONCE:
            # Nothing but the lease itself can keep a late one out.
            with guard.held():
                guard.seen[key] = self.bucket.put(key, data)
        else:
            self._write_held(key, data, guard)

    def _write_held(self, key: str, data: bytes | memoryview, guard: Guard) -> None:
        version = guard.seen.get(key)
        while True:
            with guard.held():
                written = self.bucket.swap(key, data, version)
            if written is not None:
                guard.seen[key] = written
                return
            # Of an earlier holder; of a later one, then the lease is lost; or this write's own, whose answer was lost.
            found = self.bucket.head(key)
            version = found[1] if found else None

    def read(self, name: str, *, known: FileRecord | None) -> bytes:
        if known is None:
            return self.bucket.get(self.key(name)).data
        with self.local(name, known=known) as path:
            return path.read_bytes()

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        return self.bucket.get_all([self.key(name) for name in names])

    @contextmanager
    def local(self, name: str, *, known: FileRecord | None) -> Iterator[Path]:
        if known is None:
            with self._fetched(self.key(name)) as (path, _):
                yield path
            return
        with self.cache.find(known) as found:
            if found is not None:
                yield found
                return
        with ExitStack() as stack:
            try:
                path, record = stack.enter_context(self._fetched(self.key(name)))
            except FileNotFoundError:
                raise CorruptFile(f"{self.address(name)} must be there, and is missing; {REMEDY}") from None
            if record[1:] != known[1:]:
                raise CorruptFile(
                    f"{self.address(name)} must be as it was written ({known.size} bytes, sha256 "
                    f"{known.sha256[:12]}...), and has {record.size} bytes, sha256 {record.sha256[:12]}...; {REMEDY}"
                )
            yield path

    @contextmanager
    def opened(self, address: str) -> Iterator[Path]:
        with self._fetched(address.removeprefix(f"{self.bucket.url}/")) as (path, _):
            yield path

    def record(self, name: str) -> FileRecord:
        with self._fetched(self.key(name)) as (_, record):
            return record._replace(path=name)

    def size(self, name: str) -> int | None:
        found = self.bucket.head(self.key(name))
        return found[0] if found else None

    def sizes(self) -> dict[str, int]:
        start = len(self.prefix) + 1 if self.prefix else 0
        return {key[start:]: size for key, size in self.bucket.sizes(self.prefix).items()}

    def folders(self) -> list[str]:
        return [prefix.rpartition("/")[2] for prefix in self.bucket.folders(self.prefix)]

    def usage(self) -> Usage:
        return Usage(*self.bucket.usage(self.prefix))

    def remove(self, name: str) -> None:
        self.bucket.delete([self.key(name)])

    def drop(self, *, last: str) -> None:
        keys = list(self.bucket.sizes(self.prefix))
        self.bucket.delete([key for key in keys if key != self.key(last)])
        self.bucket.delete([self.key(last)])

    def delete(self) -> None:
        self.bucket.delete(list(self.bucket.sizes(self.prefix)))

    def turn(self, name: str) -> AbstractContextManager[None]:
        locks = self.cache.folder.with_name("locks")
        return turn(locks / hashlib.sha256(self.address(name).encode()).hexdigest())

    @contextmanager
    def _fetched(self, key: str) -> Iterator[tuple[Path, FileRecord]]:
        with self.cache.add(key, lambda take: self.bucket.read(key, take)) as fetched:
            yield fetched


def place_at(where: str | Path, *, cache: ReadCache | None) -> Place:
    """The place that a path or a URL names; nothing is opened.

    Args:
        where: a folder, a file:// URL, or one of an object store: s3://bucket/prefix, gs://, az://, memory:///.
        cache: for what is read from an object store.
    Raises:
        ValueError: it names no place, or holds a secret.
    """
    parts = urlsplit(str(where))
    if "://" not in str(where):
        return Disk(Path(where).absolute())
    if "@" in parts.netloc or parts.query:
        raise ValueError("a store's URL must hold no key; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    path = unquote(parts.path).strip("/")
    if parts.scheme == "file":
        return Disk(Path("/" + path))
    if parts.scheme not in SCHEMES:
        raise ValueError(
            f"a store must be a folder or begin with one of {', '.join(SCHEMES)} and ://, got {str(where)!r}"
        )
    if not parts.netloc and parts.scheme != "memory":
        raise ValueError(f"a store's URL must name a bucket, such as s3://bucket/graft, got {str(where)!r}")
    if cache is None:
        raise ValueError(f"to read from {where} a cache on this machine is needed, and there is none")
    return Objects(Bucket.of(f"{parts.scheme}://{parts.netloc}"), path, cache)
