"""The store: artifacts found by key, work folders that survive a kill, and the commit.

    artifacts/<key>/marker.json      written last: the artifact is complete
    artifacts/<key>/<attempt>/...    its data files
    work/<key>/...                   ledger, checkpoints and outbox of what is being made
    leases/<key>.json                who makes it

All of it lies in a local folder or, by the same names, in an object store. A forced recomputation writes a new
attempt beside the old one, which stays readable until the new marker is in place.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from storage.artifact import Artifact, Marker
from storage.errors import CorruptFile, DataCollected
from storage.folder import Folder
from storage.lease import FileLease, Lease, LeasedFolder, leased_names
from storage.object_lease import ObjectLease
from storage.objects import Objects, place_at
from storage.places import DROPPED_PREFIX
from storage.read_cache import ReadCache
from storage.upgrades import parse_marker

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Artifact)

MARKER = "marker.json"
ATTEMPT = "attempt.json"
COLLECTED = "collected.json"


class Store:
    """A folder of artifacts. Opening a store writes nothing, and asks no server.

    Args:
        root: a local folder, or a URL such as s3://bucket/prefix.
        lease_seconds: how long a lease lives without a sign of its holder.
        cache: for what is read from an object store, be it this one or another that MLflow knows of; without, there are
            only local folders.
    """

    def __init__(self, root: Path | str, *, lease_seconds: float = 60.0, cache: ReadCache | None = None) -> None:
        self._cache = cache
        self.folder = self.folder_at(root)
        self._lease_seconds = lease_seconds

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    @property
    def root(self) -> Path:
        """The folder of a store that is local; see Folder.path."""
        return self.folder.path

    def folder_at(self, where: Path | str) -> Folder:
        """The folder that a path or a URI names, in this store or in another.

        Raises:
            ValueError: it names no place where artifacts can lie.
        """
        return Folder(place_at(where, cache=self._cache))

    def artifact_folder(self, key: str) -> Folder:
        """Where the marker and the attempts of a key lie."""
        return self.folder / "artifacts" / key

    def work_folder(self, key: str) -> Folder:
        """Where the scratch state of a key lies while it is being made."""
        return self.folder / "work" / key

    def lease(self, key: str, *, wait: float | None = None, token: str | None = None) -> Lease:
        """The right to make the artifact of a key; see Lease."""
        leases = self.folder / "leases"
        if isinstance(leases.place, Objects):
            return ObjectLease(leases.place, key, seconds=self._lease_seconds, wait=wait, token=token)
        return FileLease(leases, key, seconds=self._lease_seconds, wait=wait, token=token)

    def find(self, kind: type[A], key: str) -> A | None:
        """The complete artifact of a key, or None.

        Files that are missing or of another size make it incomplete: it is then made again, and a warning says why.

        Raises:
            NewerArtifact: a newer Graft made it.
        """
        try:
            return open_artifact(kind, self.artifact_folder(key))
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
        work = LeasedFolder(self.work_folder(key).place, lease=lease)
        artifacts = self.artifact_folder(key)
        if not work.exists(ATTEMPT):
            work.write_json(ATTEMPT, {"data": self._next_attempt(key)})
        data = LeasedFolder(artifacts.place / work.read_json(ATTEMPT)["data"], lease=lease)
        data.make()
        return data

    def _next_attempt(self, key: str) -> str:
        """A name that no attempt of the key has, nor had the one that the marker names: its data may be collected."""
        # An attempt without files has no folder in an object store.
        taken = set(self.artifact_folder(key).folders())
        with suppress(FileNotFoundError, CorruptFile):
            taken.add(self.marker(key).data)
        return str(next(number for number in range(len(taken) + 1) if str(number) not in taken))

    def commit(self, marker: Marker, *, lease: Lease) -> None:
        """Write the marker: from here on the artifact is complete.

        Raises:
            LeaseLost: another process took over; nothing was written.
        """
        artifacts = LeasedFolder(self.artifact_folder(marker.key).place, lease=lease)
        artifacts.write(MARKER, marker.model_dump_json(indent=1).encode())

    def committed_attempt(self, key: str) -> Marker | None:
        """The marker of a key, when it names the very attempt that the work folder belongs to."""
        try:
            marker, attempt = self.marker(key), self.work_folder(key).read_json(ATTEMPT)
        except (FileNotFoundError, CorruptFile):
            return None
        return marker if marker.data == attempt["data"] else None

    def drop_work(self, key: str) -> None:
        """Remove the scratch state of a key, so that no later work goes on from a part of it.

        An object store cannot remove all of it at once. Who is killed at it leaves, until the very last, the name of
        the attempt: the next one sees that the work belongs to what is committed, and drops the rest.
        """
        self.work_folder(key).place.drop(last=ATTEMPT)

    def begun(self) -> list[str]:
        """The keys that there is scratch state of, sorted."""
        return [name for name in (self.folder / "work").folders() if not name.startswith(DROPPED_PREFIX)]

    def leases(self) -> dict[str, Lease]:
        """All that is leased, or was and has left something."""
        return {name: self.lease(name) for name in leased_names(self.folder / "leases")}

    def complete(self) -> Iterator[str]:
        """The keys of all artifacts that have a marker."""
        return (key for key in (self.folder / "artifacts").place.folders() if self.artifact_folder(key).exists(MARKER))

    def marker(self, key: str) -> Marker:
        """The marker of a key.

        Raises:
            FileNotFoundError: there is none.
            CorruptFile: it cannot be read.
            NewerArtifact: a newer Graft wrote it.
        """
        return read_marker(self.artifact_folder(key))


def read_marker(folder: Folder) -> Marker:
    """The marker in an artifact's folder.

    Raises:
        FileNotFoundError: there is none: no such artifact, or an incomplete one.
        CorruptFile: it cannot be read.
        NewerArtifact: a newer Graft wrote it.
    """
    return parse_marker(folder.read(MARKER), place=folder.at(MARKER))


def is_collected(folder: Folder, marker: Marker) -> bool:
    """Whether the data that this very marker lists was removed; what was made anew since has another marker."""
    try:
        return bool(folder.read_json(COLLECTED)["created"] == marker.created)
    except (FileNotFoundError, CorruptFile):
        return False


def open_artifact(kind: type[A], folder: Folder) -> A:
    """Open a complete artifact from its folder, in this store or in another.

    Raises:
        DataCollected: its data was removed, as nothing used it.
        FileNotFoundError: there is no marker.
        CorruptFile: a data file is missing or has another size.
        NewerArtifact: a newer Graft made it.
    """
    marker = read_marker(folder)
    if is_collected(folder, marker):
        raise DataCollected(f"the data of {folder} was collected")
    artifact = kind(Folder(folder.place / marker.data, records=marker.files), marker)
    artifact.verify(deep=False)
    return artifact
