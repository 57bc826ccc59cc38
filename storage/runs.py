"""What runs name, so that nothing of it is collected: a small record in the store for each run of a pipeline.

    runs/<id>.json                 the recipe, and the key of every step
    leases/run-<id>.json           held while the run lives

A run writes a key down before it looks for its artifact, and a collector says that an artifact is collected before it
looks at the records. So one of the two always sees the other.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import CorruptFile
from storage.lease import Lease
from storage.store import Store

log = logging.getLogger(__name__)

RUNS = "runs"


class RunRecord(BaseModel):
    """One run of a pipeline.

    Attributes:
        recipe: its name.
        noted: when it was last heard of, ISO 8601.
        steps: step -> key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    noted: str
    steps: dict[str, str]

    def noted_at(self) -> datetime:
        return datetime.fromisoformat(self.noted)


class RunRecords:
    """The records of a store's runs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.folder / RUNS

    def write(self, run: str, recipe: str, steps: Mapping[str, str]) -> None:
        """Write or replace the record of a run.

        Raises:
            StoreUnwritable: the disk is full or not writable.
        """
        record = RunRecord(recipe=recipe, noted=datetime.now(UTC).isoformat(), steps=dict(steps))
        self._folder.write(f"{run}.json", record.model_dump_json().encode())

    def lease(self, run: str) -> Lease:
        """Held while a run lives."""
        return self._store.lease(f"run-{run}", wait=0)

    def names(self) -> list[str]:
        """The ids of all runs that have a record."""
        return [name.removesuffix(".json") for name in self._folder.files()]

    def read(self, run: str) -> RunRecord | None:
        """The record of a run; None if it was removed.

        Raises:
            CorruptFile: it cannot be read, so nobody knows what that run needs.
        """
        name = f"{run}.json"
        try:
            return RunRecord.model_validate_json(self._folder.read(name))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise CorruptFile(
                f"{self._folder.at(name)} must be the record of a run: {error.errors()[0]['msg']}. Remove the file "
                "if nothing is needed of that run"
            ) from error

    def remove(self, run: str) -> None:
        """Remove the record of a run that has ended."""
        self.lease(run).forget()
        self._folder.remove(f"{run}.json")


class OpenRun:
    """A run under way: while this block lasts, nothing that it names is collected.

    Args:
        steps: step -> key, as far as they are known at the start.
    """

    def __init__(self, store: Store, recipe: str, steps: Mapping[str, str]) -> None:
        self._records = RunRecords(store)
        self._recipe = recipe
        self._steps = dict(steps)
        self._id = uuid.uuid4().hex
        self._lease = self._records.lease(self._id)

    def __enter__(self) -> OpenRun:
        # The lease comes first: a record without one is that of a run that has ended.
        self._lease.__enter__()
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # It says when the run ended.
            self._write()
        except OSError as refused:
            log.warning("the end of the run could not be noted: %s", refused)
        finally:
            self._lease.__exit__(kind, error, trace)
            self._lease.forget()

    def note(self, step: str, key: str) -> None:
        """Write down the key of a step; to be called before its artifact is looked for."""
        if self._steps.get(step) != key:
            self._steps[step] = key
            self._write()

    def _write(self) -> None:
        self._records.write(self._id, self._recipe, self._steps)
