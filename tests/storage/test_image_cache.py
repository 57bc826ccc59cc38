"""The packed copy: the same bytes whenever and by whomever it is made."""

import hashlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets.source import CorruptSource, DatasetConfig, Source, open_source
from storage.folder import Folder
from storage.image_cache import ImageCache, PackedRows, plan_pieces
from storage.images import image_hash

NUM_ENTRIES = 23
QUARANTINED = {0, 7, 8, 22}


def image(number: int) -> bytes:
    return f"image {number} ".encode() * (number + 1)


def opened(place: Path, *, numbers=range(NUM_ENTRIES)) -> Source:
    images = [{"bytes": image(number), "path": ""} for number in numbers]
    path = place / "train.parquet"
    place.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images}), path, row_group_size=5)
    return open_source(DatasetConfig(name="x", format="parquet", options={"label": None}), place=place)


def packed_rows(*, piece_bytes: int = 600) -> PackedRows:
    """Rows in the order of an index, which is that of their hashes."""
    ids = [(f"{image_hash(image(number))}-0", number) for number in range(NUM_ENTRIES)]
    kept = sorted(pair for pair in ids if pair[1] not in QUARANTINED)
    order = np.array([number for _, number in kept])
    size = np.array([len(image(number)) for number in order])
    row_id = np.array([one.encode() for one, _ in kept])
    piece, offset = plan_pieces(order=order, size=size, piece_bytes=piece_bytes)
    return PackedRows(row_id, order, size, piece, offset)


def contents(folder: Folder) -> dict[str, str]:
    return {name: hashlib.sha256(folder.read(name)).hexdigest() for name in folder.files()}


def read_all(cache: ImageCache, rows: PackedRows) -> list[bytes]:
    pairs = zip(rows.piece, rows.offset, rows.size, strict=True)
    return [cache.read(int(piece), offset=int(offset), size=int(size)) for piece, offset, size in pairs]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "cache")


def test_rows_are_laid_in_the_order_of_their_source():
    piece, offset = plan_pieces(order=np.array([2, 0, 1]), size=np.array([30, 50, 50]), piece_bytes=100)
    assert (piece.tolist(), offset.tolist()) == ([1, 0, 0], [0, 0, 50])


def test_a_row_above_the_limit_is_a_piece_of_its_own():
    piece, offset = plan_pieces(order=np.arange(3), size=np.array([10, 500, 10]), piece_bytes=100)
    assert (piece.tolist(), offset.tolist()) == ([0, 1, 2], [0, 0, 0])


def test_every_row_is_read_back_and_quarantined_entries_are_not_copied(tmp_path, folder):
    rows, cache = packed_rows(), ImageCache(folder)
    cache.fill(rows, source=opened(tmp_path / "data"))
    assert read_all(cache, rows) == [image(number) for number in rows.order]
    assert len(list(folder.files())) == rows.piece.max() + 1 > 3
    assert sum(len(folder.read(name)) for name in folder.files()) == rows.size.sum()
    assert cache.missing(rows) == []


def test_what_was_evicted_or_cut_is_made_again_with_equal_bytes(tmp_path, folder):
    rows, cache, source = packed_rows(), ImageCache(folder), opened(tmp_path / "data")
    cache.fill(rows, source=source)
    before = contents(folder)
    first, second, *_, last = folder.files()
    folder.remove(second)
    folder.write(last, folder.read(last)[:-1])
    kept = (folder.path / first).stat().st_ino
    assert cache.missing(rows) == [1, int(rows.piece.max())]
    cache.fill(rows, source=source)
    assert contents(folder) == before
    assert (folder.path / first).stat().st_ino == kept


def fill(folder: Path, place: Path) -> None:
    rows, cache = packed_rows(piece_bytes=60), ImageCache(Folder(folder))
    source = open_source(DatasetConfig(name="x", format="parquet", options={"label": None}), place=place)
    for _ in range(5):
        cache.fill(rows, source=source)
        assert read_all(cache, rows) == [image(number) for number in rows.order]


def test_two_processes_may_fill_it_at_once(tmp_path, folder):
    opened(tmp_path / "data")
    context = get_context("fork")
    processes = [context.Process(target=fill, args=(folder.path, tmp_path / "data")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert not [path for path in folder.path.rglob("*") if path.suffix != ".bin"]


def test_a_source_with_other_bytes_is_refused_and_nothing_is_kept(tmp_path, folder):
    numbers = [*range(4), 1, *range(5, NUM_ENTRIES)]
    with pytest.raises(CorruptSource, match="train.parquet#4 of dataset 'x' must hold the image indexed as"):
        ImageCache(folder).fill(packed_rows(), source=opened(tmp_path / "data", numbers=numbers))
    assert list(folder.files()) == []


def test_a_source_that_has_become_shorter_is_refused(tmp_path, folder):
    with pytest.raises(CorruptSource, match="entry 20 of dataset 'x' must hold"):
        ImageCache(folder).fill(packed_rows(), source=opened(tmp_path / "data", numbers=range(20)))


def test_a_copy_that_goes_while_it_is_read_says_what_to_do(tmp_path, folder):
    rows, cache = packed_rows(), ImageCache(folder)
    cache.fill(rows, source=opened(tmp_path / "data"))
    folder.remove("000000.bin")
    with pytest.raises(CorruptSource, match="was removed. Run the same command again"):
        cache.read(0, offset=0, size=1)
