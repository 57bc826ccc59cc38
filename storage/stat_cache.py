"""The digests of files that have not changed since they were last read."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from storage.errors import CorruptFile
from storage.folder import Folder, sha256_of

# What a killed run has to hash again is at most this many files.
SAVE_FILES = 20_000
# A file can change twice within one tick of a file system's clock (2 s on FAT) and keep its time.
RACY_NANOSECONDS = 2 * 10**9
HASH_THREADS = 8


class _Known(NamedTuple):
    """What is remembered of one file."""

    size: int
    mtime_ns: int
    sha256: str


class StatCache:
    """Remembers the sha256 of files by path, size and modification time, in one JSON file for each folder.

    Processes may share a cache: a file of it is replaced whole, the last writer wins, and what is lost that
    way is hashed again. A damaged file counts as empty.

    Attributes:
        hashed: how many files were read since this object was made.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self.hashed = 0

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """The sha256 of each file, in hexadecimal; reads only files whose size or modification time is new.

        Raises:
            ValueError: a file is missing or cannot be read.
        """
        found: dict[Path, str] = {}
        by_folder = sorted(set(paths), key=lambda path: (str(path.parent), path.name))
        for parent, members in groupby(by_folder, key=lambda path: path.parent):
            found.update(self._digests_of(parent, list(members)))
        return [found[path] for path in paths]

    def _digests_of(self, parent: Path, paths: list[Path]) -> dict[Path, str]:
        name = f"{hashlib.sha256(os.fsencode(parent.absolute())).hexdigest()[:32]}.json"
        known = self._load(name)
        unchanged: dict[Path, str] = {}
        for path in paths:
            entry = known.get(path.name)
            status = _stat(path)
            if entry is not None and (entry.size, entry.mtime_ns) == (status.st_size, status.st_mtime_ns):
                unchanged[path] = entry.sha256
        changed = [path for path in paths if path not in unchanged]
        hashed: dict[Path, str] = {}
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for start in range(0, len(changed), SAVE_FILES):
                part = changed[start : start + SAVE_FILES]
                entries = dict(zip(part, pool.map(_hash, part), strict=True))
                self.hashed += len(part)
                hashed.update((path, entry.sha256) for path, entry in entries.items())
                self._save(name, {path.name: entry for path, entry in entries.items() if _is_settled(entry)})
        return unchanged | hashed

    def _load(self, name: str) -> dict[str, _Known]:
        try:
            return {file: _Known(*entry) for file, entry in self._folder.read_json(name).items()}
        except (FileNotFoundError, CorruptFile, TypeError, AttributeError):
            return {}

    def _save(self, name: str, entries: dict[str, _Known]) -> None:
        # Read again: another process may have written since.
        self._folder.write_json(name, self._load(name) | entries)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise ValueError(f"the file {path} must be readable; the system says: {error.strerror}") from None


def _hash(path: Path) -> _Known:
    # The time is taken before the bytes: a file that changes meanwhile looks changed next time.
    status = _stat(path)
    try:
        return _Known(status.st_size, status.st_mtime_ns, sha256_of(path))
    except OSError as error:
        raise ValueError(f"the file {path} must be readable; the system says: {error.strerror}") from None


def _is_settled(entry: _Known) -> bool:
    return abs(time.time_ns() - entry.mtime_ns) > RACY_NANOSECONDS
