"""What of a store may go, for people: looked at, removed, and shown."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, Field
from rich.filesize import decimal

from flows.pipeline import open_store, settle
from storage.collection import Collector, Garbage
from tasks.runtime import Runtime


class CollectRequest(BaseModel, frozen=True, extra="forbid"):
    """What may go, and whether it does."""

    days: float = Field(30, ge=0, description="Data stays that was made or used by a run in the last so many days.")
    work_days: float = Field(7, ge=0, description="Work stays that was written to in the last so many days.")
    delete: bool = Field(False, description="Remove it; without, it is only listed.")


class Collection(NamedTuple):
    """What a collection found, and what of it went: all of it, or none where it was only listed.

    Attributes:
        found: what may go, the largest first.
        removed: what is gone.
    """

    found: list[Garbage]
    removed: list[Garbage]

    def rows(self) -> list[dict[str, str]]:
        """A table of it: what, kind, name, size, why."""
        return [
            {
                "what": garbage.what,
                "kind": garbage.kind,
                "name": garbage.name[:12],
                "size": decimal(garbage.size),
                "why": garbage.reason,
            }
            for garbage in self.found
        ]

    def __str__(self) -> str:
        may = f"{len(self.found)} things may go, {decimal(sum(garbage.size for garbage in self.found))}"
        gone = f"{len(self.removed)} were removed, {decimal(sum(garbage.size for garbage in self.removed))}"
        return f"{may}; {gone}"


def collect(request: CollectRequest, *, runtime: Runtime) -> Collection:
    """Look for what may go in the store, and remove it if that is asked for.

    Raises:
        CorruptFile: the record of a run cannot be read.
        NewerArtifact: a newer Graft works in this store.
        StoreUnwritable: the system refuses.
    """
    if request.delete:
        # Work whose end MLflow has not heard of waits for that alone.
        settle(runtime)
    collector = Collector(open_store(runtime), days=request.days, work_days=request.work_days)
    found = collector.look()
    return Collection(found, [garbage for garbage in found if request.delete and collector.remove(garbage)])
