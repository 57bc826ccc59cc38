"""The store: artifacts found by key, work folders that survive a kill, and the commit.

    artifacts/<key>/marker.json      written last: the artifact is complete
    artifacts/<key>/<attempt>/...    its data files
    work/<key>/...                   ledger, checkpoints and outbox of what is being made
    leases/<key>.json                who makes it

A forced recomputation writes a new attempt beside the old one, which stays readable until the new marker is in place.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from storage.artifact import Artifact, Marker
from storage.errors import CorruptFile
from storage.folder import Folder, writing
from storage.lease import Lease, LeasedFolder

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Artifact)

MARKER = "marker.json"
ATTEMPT = "attempt.json"
DROPPED_PREFIX = ".dropped-"


class Store:
    """A local folder of artifacts. Opening a store writes nothing."""

    def __init__(self, root: Path, *, lease_seconds: float = 60.0) -> None:
        self.root = Path(root)
        self._lease_seconds = lease_seconds

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def artifact_folder(self, key: str) -> Folder:
        """Where the marker and the attempts of a key lie."""
        return Folder(self.root / "artifacts" / key)

    def work_folder(self, key: str) -> Folder:
        """Where the scratch state of a key lies while it is being made."""
        return Folder(self.root / "work" / key)

    def lease(self, key: str, *, wait: float | None = None, token: str | None = None) -> Lease:
        """The right to make the artifact of a key; see Lease."""
        return Lease(Folder(self.root / "leases"), key, seconds=self._lease_seconds, wait=wait, token=token)

    def find(self, kind: type[A], key: str) -> A | None:
        """The complete artifact of a key, or None.

        Files that are missing or of another size make it incomplete: it is then made again, and a warning says why.
        """
        try:
            return open_artifact(kind, self.artifact_folder(key).path)
        except FileNotFoundError:
            return None
        except CorruptFile as error:
            log.warning("not reused: %s", error)
            return None

    def open_attempt(self, key: str, *, lease: Lease) -> Folder:
        """The data folder that the work on a key writes to; work that was begun before goes on in the same one.

        A finished attempt of the same key is left alone.
        """
        work = LeasedFolder(self.work_folder(key).path, lease=lease)
        artifacts = self.artifact_folder(key)
        if not work.exists(ATTEMPT):
            taken = {path.name for path in artifacts.path.iterdir()} if artifacts.path.is_dir() else set()
            number = next(number for number in range(len(taken) + 1) if str(number) not in taken)
            work.write_json(ATTEMPT, {"data": str(number)})
        data = LeasedFolder(artifacts.path / work.read_json(ATTEMPT)["data"], lease=lease)
        data.make()
        return data

    def commit(self, marker: Marker, *, lease: Lease) -> None:
        """Write the marker: from here on the artifact is complete.

        Raises:
            LeaseLost: another process took over; nothing was written.
        """
        with lease.held():
            self.artifact_folder(marker.key).write(MARKER, marker.model_dump_json(indent=1).encode())

    def committed_attempt(self, key: str) -> Marker | None:
        """The marker of a key, when it names the very attempt that the work folder belongs to."""
        try:
            marker, attempt = self.marker(key), self.work_folder(key).read_json(ATTEMPT)
        except (FileNotFoundError, CorruptFile):
            return None
        return marker if marker.data == attempt["data"] else None

    def drop_work(self, key: str) -> None:
        """Remove the scratch state of a key: all of it at once, so that no later work goes on from a part of it."""
        work = self.work_folder(key).path
        if work.is_dir():
            with writing(self.root):
                work.rename(self.root / f"{DROPPED_PREFIX}{uuid.uuid4().hex}")
        # Also what a killed process left.
        for dropped in self.root.glob(f"{DROPPED_PREFIX}*"):
            shutil.rmtree(dropped, ignore_errors=True)

    def complete(self) -> Iterator[str]:
        """The keys of all artifacts that have a marker."""
        folder = self.root / "artifacts"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if (path / MARKER).is_file():
                yield path.name

    def marker(self, key: str) -> Marker:
        """The marker of a key.

        Raises:
            FileNotFoundError: there is none.
            CorruptFile: it cannot be read.
        """
        return read_marker(self.artifact_folder(key).path)


def read_marker(folder: Path) -> Marker:
    """The marker in an artifact's folder.

    Raises:
        FileNotFoundError: there is none: no such artifact, or an incomplete one.
        CorruptFile: it cannot be read.
    """
    try:
        return Marker.model_validate_json(Folder(folder).read(MARKER))
    except ValidationError as error:
        raise CorruptFile(f"{folder / MARKER} must be a marker: {error.errors()[0]['msg']}") from error


def open_artifact(kind: type[A], folder: Path) -> A:
    """Open a complete artifact from its folder, in this store or in another.

    Raises:
        FileNotFoundError: there is no marker.
        CorruptFile: a data file is missing or has another size.
    """
    marker = read_marker(folder)
    artifact = kind(Folder(folder / marker.data), marker)
    artifact.verify(deep=False)
    return artifact
