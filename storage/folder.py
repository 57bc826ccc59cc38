"""A folder of kept files, and the one door through which Graft writes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from storage.errors import CorruptFile
from storage.places import TEMPORARY_PREFIX, Disk, FileRecord, Guard, Place, Usage, sha256_of, writing

__all__ = ["TEMPORARY_PREFIX", "FileRecord", "Folder", "Usage", "canonical_json", "sha256_of", "writing"]


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, finite numbers only.

    Raises:
        ValueError: the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class Folder:
    """A folder addressed by relative posix names. A file in it is whole or absent, never half.

    Args:
        place: where it lies; a path is a folder of this machine's disk.
        guard: what must be held to write.
        records: what is known of the files, because they were committed and stay as they are.
    """

    def __init__(
        self, place: Place | Path | str, *, guard: Guard | None = None, records: Iterable[FileRecord] = ()
    ) -> None:
        self.place = place if isinstance(place, Place) else Disk(Path(place))
        self._guard = guard
        self._records = {record.path: record for record in records}

    def __truediv__(self, name: str) -> Folder:
        return Folder(self.place / name, guard=self._guard)

    def __repr__(self) -> str:
        return f"Folder({str(self)!r})"

    def __str__(self) -> str:
        return self.place.address("")

    @property
    def path(self) -> Path:
        """The folder on this machine's disk.

        Raises:
            ValueError: it lies in an object store.
        """
        if not isinstance(self.place, Disk):
            raise ValueError(f"a folder of this machine is needed, and {self} lies in an object store")
        return self.place.path

    def write(self, name: str, data: bytes | memoryview) -> FileRecord:
        """Write one file. On a disk under a temporary name, flushed, then renamed into place.

        Raises:
            StoreUnwritable: the disk is full or not writable; the file of that name is as it was.
            StoreAway: the object store does not answer, or refuses; the file of that name is as it was, or whole.
            LeaseLost: there is a guard, and another process took over.
        """
        self.place.write(name, data, guard=self._guard)
        return FileRecord(name, memoryview(data).nbytes, hashlib.sha256(data).hexdigest())

    def make(self) -> None:
        """Make the folder itself; nothing happens when it is there.

        Raises:
            StoreUnwritable: the system refuses.
        """
        self.place.make()

    def write_json(self, name: str, value: Any) -> FileRecord:
        """Write a JSON value in its canonical spelling."""
        return self.write(name, canonical_json(value))

    def read(self, name: str) -> bytes:
        """All bytes of one file.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        return self.place.read(name, known=self._records.get(name))

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
            raise CorruptFile(f"{self.at(name)} must hold JSON and does not: {error}") from error

    def at(self, name: str) -> str:
        """Where a file lies, as people write it."""
        return self.place.address(name)

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A block in which a file can be read by its path on this machine; of a remote one it is a whole copy.

        Raises:
            FileNotFoundError: there is none of that name (of a local folder only when it is opened).
            CorruptFile: it differs from its record, or is missing though there is one.
        """
        return self.place.local(name, known=self._records.get(name))

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        return self.place.size(name) is not None

    def has(self, record: FileRecord) -> bool:
        """Whether a file is there with the size that its record says."""
        return self.place.size(record.path) == record.size

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens when it is not there."""
        self.place.remove(name)

    def files(self) -> Iterator[str]:
        """The relative posix names of all files, sorted; writes under way are left out."""
        yield from self.place.sizes()

    def folders(self) -> list[str]:
        """The names of the folders right in this one, sorted; none where it is not there."""
        return self.place.folders()

    def usage(self) -> Usage:
        """How much lies here, writes under way included, and when it was last written to."""
        return self.place.usage()

    def delete(self) -> None:
        """Remove the folder with all that is in it; nothing happens when it is not there.

        Raises:
            StoreUnwritable: the system refuses.
            StoreAway: the object store does not answer, or refuses.
        """
        self.place.delete()

    def record(self, name: str) -> FileRecord:
        """Size and sha256 of a file as it lies there now."""
        return self.place.record(name)
