"""What of a stage's work is done and kept: one small file for each committed unit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from storage.folder import FileRecord, Folder


class Ledger:
    """The committed units of one piece of work. A unit that is in the ledger is never done again.

    Args:
        folder: where the ledger's own files lie.
        data: the folder that the files of the units were written to. A unit whose files are not all there is not done:
            somebody removed them, or they belong to an older attempt.
    """

    def __init__(self, folder: Folder, *, data: Folder) -> None:
        self._folder = folder
        self._entries: dict[str, dict[str, Any]] = {}
        names, sizes = list(folder.files()), data.place.sizes()
        for name, content in zip(names, folder.place.read_all(names), strict=True):
            # Of an entry that cannot be read the unit is done again; that is always allowed.
            with suppress(ValueError):
                entry = json.loads(content)
                if all(sizes.get(path) == size for path, size, _ in entry["files"]):
                    self._entries[name.removesuffix(".json")] = entry

    def __contains__(self, unit: str) -> bool:
        return unit in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def commit(self, unit: str, *, records: Sequence[FileRecord], **facts: Any) -> None:
        """Say that a unit is done: the files it made, and facts that the end of the work needs."""
        entry = {"files": [list(record) for record in records], "facts": facts}
        self._folder.write_json(f"{unit}.json", entry)
        self._entries[unit] = entry

    def facts(self, unit: str) -> dict[str, Any]:
        """The facts given with a unit's commit.

        Raises:
            KeyError: the unit is not committed.
        """
        facts: dict[str, Any] = self._entries[unit]["facts"]
        return facts

    def records(self) -> dict[str, FileRecord]:
        """All files of committed units by path, with the digests they had when they were written."""
        files = (FileRecord(*file) for entry in self._entries.values() for file in entry["files"])
        return {record.path: record for record in files}
