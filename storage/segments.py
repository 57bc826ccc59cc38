"""Metric rows in numbered files, each written once and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from storage.folder import Folder


class Row(NamedTuple):
    """One value of one metric: when it was measured (ms since 1970), and at which step."""

    key: str
    value: float
    timestamp: int
    step: int


class Segments:
    """A folder of such files, numbered from 1 on."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def numbers(self, *, after: int) -> Iterator[int]:
        """The numbers past one, in order."""
        numbers = (int(name.removesuffix(".jsonl")) for name in self._folder.files())
        return (number for number in numbers if number > after)

    def last(self) -> int:
        """The highest number; 0 when there is none."""
        return max(self.numbers(after=0), default=0)

    def write(self, number: int, rows: list[Row]) -> None:
        """Write the rows of one number."""
        self._folder.write(_name(number), "\n".join(json.dumps(row) for row in rows).encode())

    def read(self, number: int) -> list[Row]:
        """The rows of one number."""
        return [Row(*json.loads(line)) for line in self._folder.read(_name(number)).splitlines()]

    def remove(self, number: int) -> None:
        """Remove the rows of one number."""
        self._folder.remove(_name(number))


def _name(number: int) -> str:
    return f"{number:012d}.jsonl"
