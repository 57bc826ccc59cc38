"""The shards of a stage that makes one file a shard: which are left to do, who does them, how far all are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from models.collective import mine, world_size
from storage.folder import FileRecord
from tasks.stage import Work

# Its number, its first row, the row after its last.
Shard = tuple[int, int, int]


class OpenShards:
    """What a piece of work has committed of its shards, and what is left.

    Attributes:
        committed: numbers of the shards that were committed before.
        mine: this rank's part of the others.
    """

    def __init__(self, work: Work, shards: Iterable[Shard], *, unit: str) -> None:
        every = list(shards)
        missing = [shard for shard in every if str(shard[0]) not in work.ledger]
        self.committed = [number for number, _, _ in every if str(number) in work.ledger]
        self.mine = mine(missing)
        self._work = work
        self._unit = unit
        self._total = sum(stop - start for _, start, stop in every)
        self._done = self._total - sum(stop - start for _, start, stop in missing)

    def commit(self, shard: Shard, *, records: list[FileRecord], **facts: Any) -> None:
        """Say that a shard of `mine` is done and kept; see Work.commit."""
        number, start, stop = shard
        # The other ranks are about as far.
        self._done = min(self._done + world_size() * (stop - start), self._total)
        self._work.progress(self._done, self._total, unit=self._unit)
        self._work.commit(str(number), records=records, **facts)
