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
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from storage.artifact import Artifact, Marker
from storage.errors import CorruptFile, DataCollected
from storage.folder import Folder, writing
from storage.lease import Lease, LeasedFolder
from storage.upgrades import parse_marker

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Artifact)

MARKER = "marker.json"
ATTEMPT = "attempt.json"
COLLECTED = "collected.json"
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

    def folder(self, name: str) -> Folder:
        """A folder of the store: artifacts, work, leases, runs, pins, watch."""
        return Folder(self.root / name)

    def lease(self, key: str, *, wait: float | None = None) -> Lease:
        """The right to make the artifact of a key; see Lease."""
        return Lease(Folder(self.root / "leases"), key, seconds=self._lease_seconds, wait=wait)

    def find(self, kind: type[A], key: str) -> A | None:
        """The complete artifact of a key, or None.

        Files that are missing or of another size make it incomplete: it is then made again, and a warning says why.

        Raises:
            NewerArtifact: a newer Graft made it.
        """
        try:
            return open_artifact(kind, self.artifact_folder(key).path)
        except FileNotFoundError:
            return None
        except CorruptFile as error:
            log.warning("not reused: %s", error)
            return None

    def is_collected(self, key: str) -> bool:
        """Whether the artifact of a key was made, and its data removed since."""
        if not self.artifact_folder(key).exists(COLLECTED):
            return False
        try:
            return is_collected(self.artifact_folder(key), self.marker(key))
        except (FileNotFoundError, CorruptFile):
            return False

    def find_collected(self, kind: type[A], key: str) -> A | None:
        """The artifact of a key whose data was removed: it has a key, a digest and a marker, and nothing to read."""
        if not self.is_collected(key):
            return None
        marker = self.marker(key)
        return kind(self.artifact_folder(key) / marker.data, marker)

    def open_attempt(self, key: str, *, lease: Lease) -> Folder:
        """The data folder that the work on a key writes to; work that was begun before goes on in the same one.

        A finished attempt of the same key is left alone.
        """
        work = LeasedFolder(self.work_folder(key).path, lease=lease)
        artifacts = self.artifact_folder(key)
        if not work.exists(ATTEMPT):
            work.write_json(ATTEMPT, {"data": self._next_attempt(key)})
        data = LeasedFolder(artifacts.path / work.read_json(ATTEMPT)["data"], lease=lease)
        data.make()
        return data

    def _next_attempt(self, key: str) -> str:
        """A name that no attempt of the key has, nor had the one that the marker names: its data may be collected."""
        taken = set(self.artifact_folder(key).folders())
        with suppress(FileNotFoundError, CorruptFile):
            taken.add(self.marker(key).data)
        return str(next(number for number in range(len(taken) + 1) if str(number) not in taken))

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
            NewerArtifact: a newer Graft wrote it.
        """
        return read_marker(self.artifact_folder(key).path)


def read_marker(folder: Path) -> Marker:
    """The marker in an artifact's folder.

    Raises:
        FileNotFoundError: there is none: no such artifact, or an incomplete one.
        CorruptFile: it cannot be read.
        NewerArtifact: a newer Graft wrote it.
    """
    return parse_marker(Folder(folder).read(MARKER), place=str(folder / MARKER))


def is_collected(folder: Folder, marker: Marker) -> bool:
    """Whether the data that this very marker lists was removed; what was made anew since has another marker."""
    try:
        return bool(folder.read_json(COLLECTED)["created"] == marker.created)
    except (FileNotFoundError, CorruptFile):
        return False


def open_artifact(kind: type[A], folder: Path) -> A:
    """Open a complete artifact from its folder, in this store or in another.

    Raises:
        DataCollected: its data was removed, as nothing used it.
        FileNotFoundError: there is no marker.
        CorruptFile: a data file is missing or has another size.
        NewerArtifact: a newer Graft made it.
    """
    marker = read_marker(folder)
    if is_collected(Folder(folder), marker):
        raise DataCollected(f"the data of {folder} was collected")
    artifact = kind(Folder(folder / marker.data), marker)
    artifact.verify(deep=False)
    return artifact
