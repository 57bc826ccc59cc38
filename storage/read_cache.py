"""Local copies of objects, named by their content, so that none is ever stale; the least recently used go first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from storage.places import FileRecord, turn, writing

TOTAL = ".total"
LOCK = ".lock"
# Room is made for more than one file at once: to look through all of them takes time.
KEPT_SHARE = 0.9


class _Copy(NamedTuple):
    used: int
    size: int
    path: Path


class ReadCache:
    """A folder of copies that any process of this machine may use, and that may be removed at any time.

    Args:
        folder: where the copies lie.
        limit_bytes: how much they may take together. A file that is in use is never removed, so a limit that is
            smaller than what is open at one time is passed by that much.
    """

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self.folder = folder
        self._limit = limit_bytes

    @contextmanager
    def find(self, record: FileRecord) -> Iterator[Path | None]:
        """A block in which the copy of a file stays; None when there is none."""
        path = self._path(record.sha256, record.path)
        try:
            stream = path.open("rb")
        except FileNotFoundError:
            yield None
            return
        with stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            if not _is_still(path, stream.fileno()) or os.fstat(stream.fileno()).st_size != record.size:
                yield None
                return
            os.utime(stream.fileno())
            yield path

    @contextmanager
    def add(
        self, name: str, read: Callable[[Callable[[Iterator[Any]], int]], int]
    ) -> Iterator[tuple[Path, FileRecord]]:
        """A block in which there is a copy of what `read` gives, block by block.

        Args:
            name: of the file; only its suffix counts.
            read: calls what it is given with the blocks, again from the beginning when it has to.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}"
        with writing(self.folder):
            stream = temporary.open("w+b")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            digest = hashlib.sha256()

            def take(blocks: Iterator[Any]) -> int:
                nonlocal digest
                digest = hashlib.sha256()
                stream.seek(0)
                stream.truncate()
                for block in blocks:
                    digest.update(block)
                    with writing(self.folder):
                        stream.write(block)
                with writing(self.folder):
                    stream.flush()
                return stream.tell()

            try:
                size = read(take)
                path = self._path(digest.hexdigest(), name)
                with writing(self.folder), turn(self.folder / LOCK):
                    self._make_room(size, coming=temporary)
                    path.parent.mkdir(exist_ok=True)
                    os.replace(temporary, path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            yield path, FileRecord(name, size, digest.hexdigest())

    def _path(self, sha256: str, name: str) -> Path:
        # With its suffix: a browser wants to be told that a page is one.
        return self.folder / sha256[:2] / f"{sha256}{Path(name).suffix}"

    def _make_room(self, size: int, *, coming: Path) -> None:
        total = self._total()
        if total is None or total + size > self._limit:
            copies = sorted(copy for copy in self._copies() if copy.path != coming)
            total = sum(copy.size for copy in copies)
            for copy in copies:
                if total <= KEPT_SHARE * self._limit - size:
                    break
                if _remove_unless_used(copy.path):
                    total -= copy.size
        (self.folder / TOTAL).write_text(str(total + size))

    def _total(self) -> int | None:
        """What lies here, or more, for a process that was killed, or a file that was there already, may be counted."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / TOTAL).read_text())
        return None

    def _copies(self) -> Iterator[_Copy]:
        for path in self.folder.rglob("*"):
            # Also what a killed process left half fetched.
            with suppress(FileNotFoundError):
                if path.is_file() and path.name not in (LOCK, TOTAL):
                    status = path.stat()
                    yield _Copy(status.st_mtime_ns, status.st_size, path)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file is the one that bears the name: it may have been removed before it was locked."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_unless_used(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
