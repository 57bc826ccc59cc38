"""Where files lie: on a disk (here), or in an object store (storage/objects.py)."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from storage.errors import StoreUnwritable

TEMPORARY_PREFIX = ".writing-"
DROPPED_PREFIX = ".dropped-"


class FileRecord(NamedTuple):
    """One written file: its posix path relative to its folder, its size in bytes, its content's sha256."""

    path: str
    size: int
    sha256: str


class Usage(NamedTuple):
    """What a folder holds: bytes, and when a file in it was last written (seconds since 1970; 0 for none)."""

    size: int
    written: float


def sha256_of(path: Path) -> str:
    """The sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes at `path`; says what to do when the system refuses.

    Raises:
        StoreUnwritable: the disk is full, read-only or not permitted.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnwritable(
            f"{path} must be writable, but the system says: {error.strerror or error}. What was committed is kept. "
            "Free space there, or point GRAFT_HOME or GRAFT_STORE to another disk, and run the same command again"
        ) from error


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """A block that one thread of one process runs at a time; the lock on the file dies with its holder."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class Guard(Protocol):
    """Says who may write; see storage.lease.Lease.

    Attributes:
        seen: what an object store called the last version of each object that was written under this guard.
    """

    seen: dict[str, Any]

    def check(self) -> None: ...
    def held(self) -> AbstractContextManager[None]: ...


class Place(ABC):
    """Where files lie, by relative posix names. A file is whole or absent, never half."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The last part of its address."""

    @property
    @abstractmethod
    def parent(self) -> Place:
        """The place that this one lies in."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """What others find it by."""

    @abstractmethod
    def __truediv__(self, name: str) -> Place: ...

    @abstractmethod
    def address(self, name: str) -> str:
        """Where a file lies, as people write it; `opened` takes it."""

    @abstractmethod
    def make(self) -> None:
        """Prepare to be written to; nothing happens when it is."""

    @abstractmethod
    def write(self, name: str, data: bytes | memoryview, *, guard: Guard | None) -> None:
        """Put one file in place, whole; with a guard only while it is held."""

    @abstractmethod
    def read(self, name: str, *, known: FileRecord | None) -> bytes:
        """All bytes of one file. A copy with the digest of its record is as good."""

    @abstractmethod
    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """All bytes of each of these files."""

    @abstractmethod
    def local(self, name: str, *, known: FileRecord | None) -> AbstractContextManager[Path]:
        """A block in which a file can be read by its path on this machine."""

    @abstractmethod
    def opened(self, address: str) -> AbstractContextManager[Path]:
        """The same, of any file of the same store."""

    @abstractmethod
    def record(self, name: str) -> FileRecord:
        """Size and sha256 of a file as it lies there now."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The size of a file in bytes; None when it is not there."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """The sizes of all files by name, at any depth, always in the same order."""

    @abstractmethod
    def folders(self) -> list[str]:
        """The names of the folders that lie right below, sorted."""

    @abstractmethod
    def usage(self) -> Usage:
        """How much lies here, writes under way included, and when it was last written to."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove one file; nothing happens when it is not there."""

    @abstractmethod
    def drop(self, *, last: str) -> None:
        """Remove all files at once; where that cannot be, the file `last` after all others."""

    @abstractmethod
    def delete(self) -> None:
        """Remove all that is here; nothing happens when nothing is."""

    @abstractmethod
    def turn(self, name: str) -> AbstractContextManager[None]:
        """A block that one thread of one process of this machine runs at a time."""


class Disk(Place):
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> Disk:
        return Disk(self.path.parent)

    @property
    def uri(self) -> str:
        return self.path.as_uri()

    def __truediv__(self, name: str) -> Disk:
        return Disk(self.path / name)

    def address(self, name: str) -> str:
        return str(self.path / name)

    def make(self) -> None:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes | memoryview, *, guard: Guard | None) -> None:
        target = self.path / name
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        if guard is not None:
            guard.check()
        with writing(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                # The process may have stood still since the check, in the middle of the write.
                with guard.held() if guard is not None else nullcontext():
                    os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _flush_folder(target.parent)

    def read(self, name: str, *, known: FileRecord | None) -> bytes:
        return (self.path / name).read_bytes()

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        return ((self.path / name).read_bytes() for name in names)

    @contextmanager
    def local(self, name: str, *, known: FileRecord | None) -> Iterator[Path]:
        yield self.path / name

    @contextmanager
    def opened(self, address: str) -> Iterator[Path]:
        path = Path(address)
        if not path.is_file():
            raise FileNotFoundError(address)
        yield path

    def record(self, name: str) -> FileRecord:
        path = self.path / name
        return FileRecord(name, path.stat().st_size, sha256_of(path))

    def size(self, name: str) -> int | None:
        path = self.path / name
        return path.stat().st_size if path.is_file() else None

    def sizes(self) -> dict[str, int]:
        found = {}
        for parent, folders, names in os.walk(self.path):
            folders.sort()
            for name in sorted(names):
                path = Path(parent) / name
                # A file that was removed meanwhile is not there.
                with suppress(FileNotFoundError):
                    if not name.startswith(TEMPORARY_PREFIX):
                        found[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return found

    def folders(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def usage(self) -> Usage:
        size, written = 0, 0.0
        for parent, _, names in os.walk(self.path):
            for name in names:
                # A write under way may have got its name meanwhile.
                with suppress(FileNotFoundError):
                    status = (Path(parent) / name).stat()
                    size, written = size + status.st_size, max(written, status.st_mtime)
        return Usage(size, written)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def drop(self, *, last: str) -> None:
        if self.path.is_dir():
            with writing(self.path):
                self.path.rename(self.path.with_name(f"{DROPPED_PREFIX}{uuid.uuid4().hex}"))
        # Also what a killed process left.
        for dropped in self.path.parent.glob(f"{DROPPED_PREFIX}*"):
            shutil.rmtree(dropped, ignore_errors=True)

    def delete(self) -> None:
        with writing(self.path):
            try:
                shutil.rmtree(self.path)
            except FileNotFoundError:
                # Another process is at the same: what one misses, the other removes.
                shutil.rmtree(self.path, ignore_errors=True)

    def turn(self, name: str) -> AbstractContextManager[None]:
        return turn(self.path / name)


def _flush_folder(path: Path) -> None:
    """A name outlives the machine's sudden end only when its folder was flushed, too."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
