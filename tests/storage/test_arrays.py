"""Sharded arrays: one file a shard, equal writes are equal bytes, and damage is named instead of returned."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from storage import arrays
from storage.arrays import ArrayReader, ArrayWriter, read_group, write_array, write_group
from storage.errors import CorruptFile, StoreUnwritable
from storage.folder import Folder

ROWS, DIM, SHARD_ROWS = 10, 3, 4
SHARDS = range(3)


def some_rows(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(dtype)


def writer_of(folder: Folder, dtype: str = "float32") -> ArrayWriter:
    return ArrayWriter(folder, "conv4", shape=(ROWS, DIM), dtype=dtype, shard_rows=SHARD_ROWS)


def shard_of(values: np.ndarray, shard: int) -> np.ndarray:
    return values[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]


def write_all(folder: Folder, values: np.ndarray, shards=SHARDS) -> Folder:
    writer = writer_of(folder, str(values.dtype))
    for shard in shards:
        writer.write(shard, shard_of(values, shard))
    return folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.files()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kept")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_read_is_what_was_written(folder, dtype):
    values = some_rows(dtype)
    reader = ArrayReader(write_all(folder, values), "conv4")
    assert (reader.shape, reader.dtype, reader.shard_rows) == ((ROWS, DIM), np.dtype(dtype), SHARD_ROWS)
    for start, stop in [(0, ROWS), (4, 8), (3, 9), (9, 10), (5, 5)]:
        assert np.array_equal(reader.rows(start, stop), values[start:stop])
    assert reader.rows(0, ROWS).dtype == dtype


def test_special_numbers_survive(folder):
    values = some_rows()
    values[0] = [np.nan, np.inf, -0.0]
    read = ArrayReader(write_all(folder, values), "conv4").rows(0, ROWS)
    assert read.tobytes() == values.tobytes()


def test_a_shard_is_one_file_and_its_record_says_what_lies_there(folder):
    writer = writer_of(folder)
    for shard in SHARDS:
        records = writer.write(shard, shard_of(some_rows(), shard))
        assert [record.path for record in records] == [f"conv4/c/{shard}/0"]
        assert records == [folder.record(f"conv4/c/{shard}/0")]
    # Zarr makes the root of the store a group, too.
    assert {name for name in contents(folder) if "/c/" not in name} == {"zarr.json", "conv4/zarr.json"}


def test_a_shard_of_many_inner_chunks_is_one_file_too(folder, monkeypatch):
    monkeypatch.setattr(arrays, "INNER_CHUNK_BYTES", 2 * DIM * 4)
    values = some_rows()
    write_all(folder, values)
    description = folder.read_json("conv4/zarr.json")
    (sharding,) = [codec for codec in description["codecs"] if codec["name"] == "sharding_indexed"]
    assert sharding["configuration"]["chunk_shape"] == [2, DIM]
    assert sum("/c/" in name for name in folder.files()) == len(SHARDS)
    assert np.array_equal(ArrayReader(folder, "conv4").rows(3, 9), values[3:9])


def test_a_shard_of_zeros_is_written(folder):
    values = np.zeros((ROWS, DIM), np.float32)
    write_all(folder, values)
    assert sum("/c/" in name for name in folder.files()) == len(SHARDS)
    assert np.array_equal(ArrayReader(folder, "conv4").rows(0, ROWS), values)


def test_equal_writes_give_equal_bytes(tmp_path):
    values = some_rows()
    first = write_all(Folder(tmp_path / "first"), values)
    assert contents(first) == contents(write_all(Folder(tmp_path / "second"), values, shards=(2, 0, 1)))


def test_a_reopened_writer_goes_on(folder, tmp_path):
    values = some_rows()
    write_all(folder, values, shards=[0])
    kept = contents(folder)
    write_all(folder, values, shards=[1, 2])
    assert kept.items() <= contents(folder).items()
    assert contents(folder) == contents(write_all(Folder(tmp_path / "at once"), values))


def test_a_shard_that_is_written_again_is_replaced(folder):
    values = some_rows()
    write_all(folder, -values)
    write_all(folder, values)
    assert np.array_equal(ArrayReader(folder, "conv4").rows(0, ROWS), values)


def test_a_write_that_fails_leaves_no_shard(folder, monkeypatch):
    writer = writer_of(folder)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(StoreUnwritable, match="No space left"):
            writer.write(0, shard_of(some_rows(), 0))
    assert not any("/c/" in name for name in folder.files())
    with pytest.raises(CorruptFile, match="conv4/c/0/0 must be there"):
        ArrayReader(folder, "conv4").rows(0, 1)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_shard_that_is_gone_is_named_and_not_read_as_zeros(folder, damage):
    values = some_rows()
    write_all(folder, values)
    if damage == "missing":
        folder.remove("conv4/c/1/0")
    else:
        folder.write("conv4/c/1/0", b"")
    reader = ArrayReader(folder, "conv4")
    for start, stop in [(0, ROWS), (4, 5), (7, 9)]:
        with pytest.raises(CorruptFile, match=rf"{folder.path}/conv4/c/1/0 must be there.*--force"):
            reader.rows(start, stop)
    assert np.array_equal(reader.rows(0, 4), values[:4]) and np.array_equal(reader.rows(8, 10), values[8:])


def test_every_changed_byte_of_a_shard_is_named(folder):
    write_all(folder, some_rows())
    whole = folder.read("conv4/c/1/0")
    reader = ArrayReader(folder, "conv4")
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        (folder.path / "conv4/c/1/0").write_bytes(damaged)
        with pytest.raises(CorruptFile, match=rf"{folder.path}/conv4/c/1/0 must be as it was written.*--force"):
            reader.rows(2, 9)


def test_every_shortened_shard_is_named(folder):
    write_all(folder, some_rows())
    whole = folder.read("conv4/c/1/0")
    reader = ArrayReader(folder, "conv4")
    for size in range(0, len(whole), 5):
        (folder.path / "conv4/c/1/0").write_bytes(whole[:size])
        with pytest.raises(CorruptFile, match="conv4/c/1/0"):
            reader.rows(4, 8)


@pytest.mark.parametrize(
    "description", [None, b"", b'{"zarr_format": 3', b'{"zarr_format": 3, "node_type": "group"}', b"\xff\xfe"]
)
def test_a_damaged_description_is_named(folder, description):
    write_all(folder, some_rows())
    if description is None:
        folder.remove("conv4/zarr.json")
    else:
        folder.write("conv4/zarr.json", description)
    with pytest.raises(CorruptFile, match=r"conv4/zarr\.json must describe a Zarr array.*--force"):
        ArrayReader(folder, "conv4")


def test_small_arrays_are_one_shard(folder):
    for name, values in {"a": np.arange(5), "b": some_rows(), "none": np.zeros((0, DIM), np.float32)}.items():
        write_array(folder, name, values)
        reader = ArrayReader(folder, name)
        assert sum(file.startswith(f"{name}/c/") for file in folder.files()) == min(1, len(values))
        assert reader.dtype == values.dtype and np.array_equal(reader.rows(0, len(values)), values)


def test_a_group_keeps_its_attributes_in_order(folder):
    write_group(folder, {"layers": {"conv5": {"dim": 2}, "conv4": {"dim": 1}}, "num_rows": 10})
    assert list(read_group(folder)["layers"]) == ["conv5", "conv4"]
    assert read_group(folder)["num_rows"] == 10


@pytest.mark.parametrize("description", [None, b'{"attributes', json.dumps({"zarr_format": 3}).encode()])
def test_a_damaged_group_is_named(folder, description):
    write_group(folder, {"num_rows": 10})
    if description is None:
        folder.remove("zarr.json")
    else:
        folder.write("zarr.json", description)
    with pytest.raises(CorruptFile, match=r"zarr\.json"):
        read_group(folder)
