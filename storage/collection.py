"""What of a store may go, and letting it go: safe beside runs, and to kill in the middle.

Markers stay: a marker whose data is gone still names the artifact, so what was made of it is found and reused. The file
collected.json beside it is written before the data is removed, so that half of it is never taken for damage.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from storage.artifact import Marker
from storage.errors import CorruptFile
from storage.folder import Folder, Usage
from storage.lease import Lease
from storage.pins import pinned
from storage.places import DROPPED_PREFIX
from storage.runs import RunRecord, RunRecords
from storage.store import ATTEMPT, COLLECTED, Store, is_collected

What = Literal["data", "old attempt", "work", "dropped", "run record"]


class Garbage(NamedTuple):
    """Something that may go.

    Attributes:
        what: data of an artifact, an attempt that is not the marker's, work that nobody goes on with, what was dropped
            before, or the record of a run.
        name: the artifact's key, or the name of what lies in the store.
        part: the attempt, where it is one.
        kind: of the artifact, where that is known.
        size: bytes.
        reason: why it may go.
    """

    what: What
    name: str
    part: str
    kind: str
    size: int
    reason: str


class Reached(NamedTuple):
    """Keys that are kept: `live` of runs under way, `recent` of these and of runs and pins that count."""

    live: frozenset[str]
    recent: frozenset[str]


class Collector:
    """Looks for garbage in a store, and removes it.

    Args:
        days: data is kept that was made, or named by a run, in the last so many days.
        work_days: work is kept that was written to in the last so many days.
    """

    def __init__(self, store: Store, *, days: float, work_days: float) -> None:
        self._store = store
        self._records = RunRecords(store)
        now = datetime.now(UTC)
        self._days, self._since = days, now - timedelta(days=days)
        self._work_days, self._work_since = work_days, now - timedelta(days=work_days)
        self._ended: dict[str, RunRecord] = {}

    def look(self) -> list[Garbage]:
        """All that may go, the largest first; writes nothing.

        Raises:
            CorruptFile: the record of a run cannot be read, so nobody knows what is needed.
            NewerArtifact: a newer Graft works in this store.
        """
        reached = self._reached()
        keys = {*(self._store.folder / "artifacts").folders(), *self._store.begun()}
        unmade = [key for key in sorted(keys) if not self._store.lease(key).is_taken()]
        found = [garbage for key in unmade for garbage in self._of_key(key, reached)]
        for name in (self._store.folder / "work").folders():
            if name.startswith(DROPPED_PREFIX):
                size = self._store.work_folder(name).usage().size
                found.append(Garbage("dropped", name, "", "", size, "a process was killed while it removed this"))
        for run, record in self._ended.items():
            if record.noted_at() < self._since:
                size = len(record.model_dump_json())
                found.append(Garbage("run record", run, "", record.recipe, size, f"older than {self._days:g} days"))
        return sorted(found, key=lambda garbage: (-garbage.size, garbage))

    def remove(self, garbage: Garbage) -> bool:
        """Remove one thing that `look` found; gives whether it is gone. It stays if a run took it up meanwhile.

        Raises:
            StoreUnwritable: the system refuses.
        """
        if garbage.what == "dropped":
            self._store.work_folder(garbage.name).delete()
            return True
        if garbage.what == "run record":
            self._records.remove(garbage.name)
            return True
        try:
            with self._store.lease(garbage.name, wait=0) as lease:
                return self._remove_of_key(garbage, lease)
        except TimeoutError:
            # It is being made.
            return False

    def _remove_of_key(self, garbage: Garbage, lease: Lease) -> bool:
        key = garbage.name
        if (garbage.what, garbage.part) not in [(one.what, one.part) for one in self._of_key(key, self._reached())]:
            return False
        folder = self._store.artifact_folder(key)
        if garbage.what == "work":
            self._store.drop_work(key)
        elif garbage.what == "data" and not self._give_up(folder, self._store.marker(key), lease):
            return False
        if garbage.part:
            (folder / garbage.part).delete()
        return True

    def _give_up(self, folder: Folder, marker: Marker, lease: Lease) -> bool:
        """Say that the data of a marker is collected; not if a run, or a pin, names it by now."""
        if is_collected(folder, marker):
            return True
        with lease.held():
            folder.write_json(COLLECTED, {"created": marker.created, "collected": datetime.now(UTC).isoformat()})
        if marker.key not in self._reached().recent:
            return True
        with lease.held():
            folder.remove(COLLECTED)
        return False

    def _of_key(self, key: str, reached: Reached) -> Iterator[Garbage]:
        folder = self._store.artifact_folder(key)
        try:
            marker = self._store.marker(key)
        except FileNotFoundError:
            marker = None
        except CorruptFile:
            # To be looked at by somebody, not to be removed.
            return
        kind = marker.kind if marker else ""
        work = self._store.work_folder(key)
        begun = work.exists(ATTEMPT)
        for attempt in folder.folders():
            data = folder / attempt
            if marker and attempt == marker.data:
                if reason := self._why_data(folder, marker, reached):
                    yield Garbage("data", key, attempt, kind, data.usage().size, reason)
            elif not begun and key not in reached.live:
                reason = "a later attempt took its place" if marker else "given up, and its work is gone"
                yield Garbage("old attempt", key, attempt, kind, data.usage().size, reason)
        # The work of a committed artifact waits for MLflow to hear of it.
        if begun and key not in reached.live and not self._store.committed_attempt(key):
            yield from self._of_work(key, work, kind)

    def _why_data(self, folder: Folder, marker: Marker, reached: Reached) -> str:
        if is_collected(folder, marker):
            # A run that names it may have begun to read before the collector that was killed said so.
            return "" if marker.key in reached.live else "collected before, and not to the end"
        if marker.key in reached.recent or datetime.fromisoformat(marker.created) >= self._since:
            return ""
        return f"no run of the last {self._days:g} days and no pin names it"

    def _of_work(self, key: str, work: Folder, kind: str) -> Iterator[Garbage]:
        attempt = self._attempt_of(work)
        used = work.usage()
        data = (self._store.artifact_folder(key) / attempt).usage() if attempt else Usage(0, 0.0)
        if max(used.written, data.written) < self._work_since.timestamp():
            reason = f"nobody went on with it for {self._work_days:g} days"
            yield Garbage("work", key, attempt, kind, used.size + data.size, reason)

    @staticmethod
    def _attempt_of(work: Folder) -> str:
        try:
            return str(work.read_json(ATTEMPT)["data"])
        except (FileNotFoundError, CorruptFile):
            return ""

    def _reached(self) -> Reached:
        """What the records and the pins name now. Records of runs that have ended change no more."""
        live: set[str] = set()
        recent = set(pinned(self._store))
        for run in self._records.names():
            if run not in self._ended:
                # Asked first: who ends between the two has written its last word.
                alive = self._records.lease(run).is_taken()
                record = self._records.read(run)
                if record is None:
                    continue
                if alive:
                    live.update(record.steps.values())
                    continue
                self._ended[run] = record
            if self._ended[run].noted_at() >= self._since:
                recent.update(self._ended[run].steps.values())
        return Reached(frozenset(live), frozenset(recent | live))
