"""A folder of kept files, and the one door through which Graft writes them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from storage.errors import CorruptFile, StoreUnwritable

TEMPORARY_PREFIX = ".writing-"


class FileRecord(NamedTuple):
    """One written file: its posix path relative to its folder, its size in bytes, its content's sha256."""

    path: str
    size: int
    sha256: str


class Usage(NamedTuple):
    """What a folder holds: bytes, and when a file in it was last written (seconds since 1970; 0 for none)."""

    size: int
    written: float


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, finite numbers only.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


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


class Folder:
    """A folder addressed by relative posix names. A file in it is whole or absent, never half."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.path / name)

    def __repr__(self) -> str:
        return f"Folder({str(self.path)!r})"

    def write(self, name: str, data: bytes | memoryview) -> FileRecord:
        """Write one file: under a temporary name, flushed to disk, then renamed into place.

        Raises:
            StoreUnwritable: the disk is full or not writable; the file of that name is as it was.
        """
        target = self.path / name
        temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
        with writing(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                with self._admitted():
                    os.replace(temporary, target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return FileRecord(name, memoryview(data).nbytes, hashlib.sha256(data).hexdigest())

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """The block in which a written file gets its name; a folder with one writer keeps others out of it."""
        yield

    def make(self) -> None:
        """Make the folder itself; nothing happens when it is there.

        Raises:
            StoreUnwritable: the system refuses.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)

    def write_json(self, name: str, value: Any) -> FileRecord:
        """Write a JSON value in its canonical spelling."""
        return self.write(name, canonical_json(value))

    def read(self, name: str) -> bytes:
        """All bytes of one file.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        return (self.path / name).read_bytes()

    def read_json(self, name: str) -> Any:
        """One JSON file's value.

        Raises:
            FileNotFoundError: there is none of that name.
            CorruptFile: the file is not JSON.
        """
        data = self.read(name)
        try:
            return json.loads(data)
        except ValueError as error:
            raise CorruptFile(f"{self.path / name} must hold JSON and does not: {error}") from error

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return (self.path / name).is_file()

    def has(self, record: FileRecord) -> bool:
        """Whether a file is there with the size that its record says."""
        path = self.path / record.path
        return path.is_file() and path.stat().st_size == record.size

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens when it is not there."""
        (self.path / name).unlink(missing_ok=True)

    def files(self) -> Iterator[str]:
        """The relative posix names of all files, sorted; writes under way are left out."""
        for parent, folders, names in os.walk(self.path):
            folders.sort()
            for name in sorted(names):
                if not name.startswith(TEMPORARY_PREFIX):
                    yield (Path(parent) / name).relative_to(self.path).as_posix()

    def folders(self) -> list[str]:
        """The names of the folders right in this one, sorted; none where it is not there."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def usage(self) -> Usage:
        """How much lies here, writes under way included, and how old it is."""
        size, written = 0, 0.0
        for parent, _, names in os.walk(self.path):
            for name in names:
                try:
                    status = (Path(parent) / name).stat()
                except FileNotFoundError:
                    # A write under way got its name meanwhile.
                    continue
                size, written = size + status.st_size, max(written, status.st_mtime)
        return Usage(size, written)

    def delete(self) -> None:
        """Remove the folder with all that is in it; nothing happens when it is not there.

        Raises:
            StoreUnwritable: the system refuses.
        """
        with writing(self.path):
            try:
                shutil.rmtree(self.path)
            except FileNotFoundError:
                # Another process is at the same: what one misses, the other removes.
                shutil.rmtree(self.path, ignore_errors=True)

    def record(self, name: str) -> FileRecord:
        """Size and sha256 of a file as it lies there now."""
        path = self.path / name
        return FileRecord(name, path.stat().st_size, sha256_of(path))
