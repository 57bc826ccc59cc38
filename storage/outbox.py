"""What MLflow shall know of one run, kept as files until it is sent. Nothing here talks to a server.

run.json                  who the run is; the first opening fixes it
metrics/000012.jsonl      the rows of one commit: [key, value, timestamp, step]
system/000012.jsonl       one sample of the machine, of step 12; no checkpoint stands for it
released.json             the last commit that a checkpoint on disk stands for: rows past it stay here
tags/<time>-<id>.json     tags in the order they were given; of one name the last counts
end.json                  how the run ended; away again when it goes on
delivered/<store>.json    what one MLflow has already (see storage.tracking)
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from storage.folder import Folder
from storage.limits import require_names
from storage.segments import Row, Segments

RUN = "run.json"
END = "end.json"
RELEASED = "released.json"


class RunInput(BaseModel):
    """A dataset that a run reads: its full content digest, and what it is read for ("training")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    uri: str
    context: str


class RunRecord(BaseModel):
    """Who a run is.

    Attributes:
        uid: the run's name for Graft, fixed before any server has heard of it.
        name: the step's name.
        parent: uid of the pipeline's run.
        start_time: ms since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: str = Field(pattern=r"^[\w-]+$")
    name: str
    experiment: str
    parent: str | None = None
    params: dict[str, str] = {}
    tags: dict[str, str] = {}
    inputs: tuple[RunInput, ...] = ()
    start_time: int

    @field_validator("params", "tags")
    @classmethod
    def _names(cls, values: dict[str, str]) -> dict[str, str]:
        require_names(values)
        return values

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        # It becomes a part of the parent's tag step.NAME.run_id.
        require_names([name])
        return name


class RunEnd(BaseModel):
    """How a run ended: `files` maps a path in MLflow's artifacts to the address of a file, see Place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["FINISHED", "FAILED", "KILLED"]
    end_time: int
    files: dict[str, str]


class OutboxState(BaseModel):
    """What there is to send: two equal states have the same to send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    released: int
    samples: int = 0
    last_tags: str
    end: RunEnd | None


class Outbox:
    """The files of one run. One process writes it; any process may send it.

    Args:
        folder: where the files lie; nothing is written before `open`.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._metrics = Segments(folder / "metrics")
        self._samples = Segments(folder / "system")
        self._rows: list[Row] = []
        self._position: int | None = None
        self._kept: set[tuple[str, int]] = set()

    def open(self, run: RunRecord) -> RunRecord:
        """Begin a run, or go on with the one that was begun here, whatever its end was.

        Returns:
            The record of the first opening, which stays.
        """
        first = self.record()
        if first is not None:
            self.folder.remove(END)
            return first
        self.folder.write(RUN, run.model_dump_json().encode())
        return run

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Take metric values, with the time of this call. They are in memory until the next commit.

        Raises:
            ValueError: MLflow would refuse a name.
        """
        require_names(metrics)
        now = now_ms()
        for key, value in metrics.items():
            if (key, step) not in self._kept:
                self._rows.append(Row(key, float(value), now, step))

    def commit(self) -> int:
        """Write the rows taken since the last commit to disk.

        Returns:
            The position to keep in the checkpoint. The rows are sent after `release` of it.
        """
        position = self._last()
        if self._rows:
            position += 1
            self._metrics.write(position, self._rows)
            self._rows.clear()
            self._position = position
        return position

    def release(self, position: int) -> None:
        """Say that the checkpoint of this position is on disk: no resume will log its rows again."""
        if position > self.released():
            self.folder.write_json(RELEASED, {"position": position})

    def truncate(self, position: int) -> None:
        """Drop the rows past the position of the checkpoint that a resume starts from.

        Released rows may have been sent, and MLflow forgets no row. When the resume starts before them (its
        checkpoint was lost), they stay, and `log` passes over the same metric at the same step.
        """
        self._rows.clear()
        self._kept.clear()
        self.release(position)
        released = self.released()
        for number in list(self._metrics.numbers(after=position)):
            if number > released:
                self._metrics.remove(number)
            else:
                self._kept.update((row.key, row.step) for row in self._metrics.read(number))
        self._position = released

    def sample(self, metrics: Mapping[str, float]) -> None:
        """Write what was measured of the machine just now, to be sent at once: no resume measures it again.

        Raises:
            ValueError: MLflow would refuse a name.
        """
        require_names(metrics)
        number, now = self._samples.last() + 1, now_ms()
        self._samples.write(number, [Row(key, float(value), now, number) for key, value in metrics.items()])

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags; a tag of the same name is replaced.

        Raises:
            ValueError: MLflow would refuse a name.
        """
        require_names(tags)
        if tags:
            # Several threads tag the run of a pipeline: a file a call needs no lock.
            self.folder.write_json(f"tags/{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json", dict(tags))

    def mark_step(self, step: str, *, key: str) -> None:
        """Say in the run of a pipeline that this step reuses what another run has made.

        Delivery adds the tag `step.STEP.run_id` when it finds the run that finished with this key.
        """
        self.add_tags({f"step.{step}.key": key})

    def mark_model(self, name: str, *, key: str) -> None:
        """Say in the run of a pipeline that what was made under this key is a version of a registered model.

        Delivery makes the version, once, when it finds the run that finished with this key, and adds the tag
        `model.NAME.version`.
        """
        self.add_tags({f"model.{name}.key": key})

    def finish(
        self,
        status: Literal["FINISHED", "FAILED", "KILLED"],
        *,
        tags: Mapping[str, str] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Record the end. Only FINISHED keeps rows past the last checkpoint: else a resume logs them again.

        Args:
            files: path in MLflow's artifacts -> address of a small file (Folder.at), read when the outbox is sent.
        """
        if status == "FINISHED":
            self.release(self.commit())
        self._rows.clear()
        self.add_tags(tags or {})
        end = RunEnd(status=status, end_time=now_ms(), files=dict(files or {}))
        self.folder.write(END, end.model_dump_json().encode())

    def record(self) -> RunRecord | None:
        """Who the run is, or None before the first opening."""
        try:
            return RunRecord.model_validate_json(self.folder.read(RUN))
        except FileNotFoundError:
            return None

    def end(self) -> RunEnd | None:
        """How the run ended, or None while it goes on."""
        try:
            return RunEnd.model_validate_json(self.folder.read(END))
        except FileNotFoundError:
            return None

    def tags(self) -> dict[str, str]:
        """All tags added since the opening."""
        tags: dict[str, str] = {}
        for name in self._tag_files():
            tags |= self.folder.read_json(f"tags/{name}")
        return tags

    def released(self) -> int:
        """The position up to which rows may be sent."""
        try:
            return int(self.folder.read_json(RELEASED)["position"])
        except FileNotFoundError:
            return 0

    def rows(self, *, after: int) -> Iterator[tuple[int, list[Row]]]:
        """The released rows of each commit past a position, with the commit's own position."""
        released = self.released()
        for number in self._metrics.numbers(after=after):
            if number <= released:
                yield number, self._metrics.read(number)

    def samples(self, *, after: int) -> Iterator[tuple[int, list[Row]]]:
        """The samples of the machine past a number, with their own."""
        for number in self._samples.numbers(after=after):
            yield number, self._samples.read(number)

    def state(self) -> OutboxState:
        """What there is to send now."""
        last_tags = max(self._tag_files(), default="")
        return OutboxState(released=self.released(), samples=self._samples.last(), last_tags=last_tags, end=self.end())

    def _tag_files(self) -> Iterator[str]:
        return (self.folder / "tags").files()

    def _last(self) -> int:
        if self._position is None:
            self._position = max(self.released(), self._metrics.last())
        return self._position


def now_ms() -> int:
    """The time as MLflow counts it: milliseconds since 1970."""
    return time.time_ns() // 1_000_000
