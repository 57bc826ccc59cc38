"""A copy of a dataset's encoded images in a few large files, for formats that cannot be read row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from storage.datasets.source import CorruptSource, Source
from storage.folder import Folder
from storage.images import HASH_DIGITS, image_hash

# One piece is held in memory while it is made.
PIECE_BYTES = 64 * 2**20


class PackedRows(NamedTuple):
    """Where the rows of an index lie in its packed copy; R rows in the order of the index.

    Attributes:
        row_id: (R,) of bytes; begins with the hash of the encoded image.
        order: number of the row's entry in its source, (R,) int64.
        size: of the encoded image in bytes, (R,) int64.
        piece: number of the file, (R,) int32.
        offset: first byte in it, (R,) int64.
    """

    row_id: np.ndarray
    order: np.ndarray
    size: np.ndarray
    piece: np.ndarray
    offset: np.ndarray


def plan_pieces(
    *, order: np.ndarray, size: np.ndarray, piece_bytes: int = PIECE_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Lay rows end to end in the order of their source, and begin a new piece where one is full.

    Args:
        order: number of the row's entry in its source, (R,) int64.
        size: of the encoded image in bytes, (R,) int64.
        piece_bytes: a piece is larger only when a single row is.
    Returns:
        The piece of each row, (R,) int32, and its offset in the piece, (R,) int64.
    """
    pieces, offsets = np.zeros(len(order), dtype=np.int32), np.zeros(len(order), dtype=np.int64)
    piece, offset = 0, 0
    for row in np.argsort(order, kind="stable"):
        if offset and offset + size[row] > piece_bytes:
            piece, offset = piece + 1, 0
        pieces[row], offsets[row] = piece, offset
        offset += int(size[row])
    return pieces, offsets


class ImageCache:
    """The packed images of one dataset index. It may be removed at any time, and is then made again.

    Processes may fill it at once: a piece is put in place whole, and all of them make the same bytes.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def missing(self, rows: PackedRows) -> list[int]:
        """The pieces that are not there, or not of their size."""
        return [piece for piece, size in enumerate(_piece_sizes(rows)) if self._size(piece) != size]

    def fill(self, rows: PackedRows, *, source: Source) -> None:
        """Copy what is missing from the source, one piece in memory at a time.

        Raises:
            CorruptSource: the source holds other bytes than when it was indexed.
        """
        for piece, size in enumerate(_piece_sizes(rows)):
            # Asked piece by piece: another process may be filling the same cache.
            if self._size(piece) != size:
                packed = bytearray()
                for image in _copy(rows, piece=piece, source=source):
                    packed += image
                self._folder.write(_file(piece), memoryview(packed))

    def read(self, piece: int, *, offset: int, size: int) -> bytes:
        """Bytes of one row.

        Raises:
            CorruptSource: the piece is gone; opening the images again makes it anew.
        """
        try:
            with (self._folder.path / _file(piece)).open("rb") as stream:
                stream.seek(offset)
                return stream.read(size)
        except FileNotFoundError:
            raise CorruptSource(
                f"the copy of the images in {self._folder.path} must stay while it is read, and was removed. "
                "Run the same command again: it makes the copy anew and goes on"
            ) from None

    def path(self, piece: int) -> str:
        """Where a piece lies."""
        return str(self._folder.path / _file(piece))

    def _size(self, piece: int) -> int | None:
        try:
            return (self._folder.path / _file(piece)).stat().st_size
        except FileNotFoundError:
            return None


def _piece_sizes(rows: PackedRows) -> list[int]:
    return [int(size) for size in np.bincount(rows.piece, weights=rows.size)]


def _copy(rows: PackedRows, *, piece: int, source: Source) -> Iterator[bytes]:
    members = np.flatnonzero(rows.piece == piece)
    members = members[np.argsort(rows.offset[members], kind="stable")]
    number = int(rows.order[members[0]])
    entries = source.entries(start=number)
    for row in members:
        # Quarantined entries lie between the rows and are not copied.
        for _ in range(int(rows.order[row]) - number):
            next(entries, None)
        entry = next(entries, None)
        number = int(rows.order[row]) + 1
        expected = bytes(rows.row_id[row][:HASH_DIGITS]).decode()
        if entry is None or image_hash(entry.data) != expected:
            name = entry.name if entry else f"entry {rows.order[row]}"
            raise CorruptSource(
                f"{name} of dataset {source.config.name!r} must hold the image indexed as {expected}; "
                f"it holds another. If the dataset at {source.place} changed on purpose, run the recipe again"
            )
        yield entry.data


def _file(piece: int) -> str:
    return f"{piece:06d}.bin"
