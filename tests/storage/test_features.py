"""Features: shards of several layers, kept once, whole and in the rows' order."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from storage.artifact import Marker, content_digest
from storage.errors import CorruptFile
from storage.features import Features, FeaturesWriter
from storage.folder import Folder
from storage.tables import text_column

ROWS, SHARD_ROWS = 7, 3
LAYERS = {"conv5": {"dim": 4, "space": "space of conv5"}, "conv4": {"dim": 2, "space": "space of conv4"}}
ROW_IDS = text_column(hashlib.sha256(bytes([number])).hexdigest()[:32] + "-0" for number in range(ROWS))


def values_of(layer: str, dtype: str = "float16") -> np.ndarray:
    seed = list(LAYERS).index(layer)
    return np.random.default_rng(seed).normal(size=(ROWS, LAYERS[layer]["dim"])).astype(dtype)


def writer_in(folder: Folder, dtype: str = "float16") -> FeaturesWriter:
    return FeaturesWriter(folder, row_ids=ROW_IDS, layers=LAYERS, dtype=dtype, shard_rows=SHARD_ROWS)


def write(folder: Folder, shards=range(3), dtype: str = "float16") -> Folder:
    writer = writer_in(folder, dtype)
    for shard in shards:
        part = slice(shard * SHARD_ROWS, (shard + 1) * SHARD_ROWS)
        writer.write(shard, {layer: values_of(layer, dtype)[part] for layer in LAYERS})
    return folder


def features_in(folder: Folder) -> Features:
    files = [folder.record(name) for name in folder.files()]
    marker = Marker(
        kind="Features",
        stage="extract_features",
        stage_version="1",
        key="0" * 64,
        digest=content_digest(files),
        data=folder.path.name,
        config={},
        inputs={},
        external={},
        files=files,
        environment={},
        seconds=0.0,
        created="2026-01-01T00:00:00+00:00",
    )
    return Features(folder, marker)


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.files()}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "kept")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_read_is_what_was_written(folder, dtype):
    features = features_in(write(folder, dtype=dtype))
    assert (features.num_rows, features.shard_rows, features.layers) == (ROWS, SHARD_ROWS, tuple(LAYERS))
    assert np.array_equal(features.row_ids(), ROW_IDS)
    for layer, facts in LAYERS.items():
        assert (features.dim(layer), features.space(layer)) == (facts["dim"], facts["space"])
        rows = features.reader(layer).rows(0, ROWS)
        assert rows.dtype == dtype and np.array_equal(rows, values_of(layer, dtype))


def test_shards_cover_every_row_once(folder):
    assert list(features_in(write(folder)).shards()) == [(0, 0, 3), (1, 3, 6), (2, 6, 7)]


def test_a_shard_is_one_file_a_layer_and_the_records_name_them(folder):
    records = writer_in(folder).write(0, {layer: values_of(layer)[:SHARD_ROWS] for layer in LAYERS})
    assert [record.path for record in records] == ["conv5/c/0/0", "conv4/c/0/0"]
    assert records == [folder.record(record.path) for record in records]


def test_a_reopened_writer_goes_on_and_ends_with_equal_bytes(folder, tmp_path):
    write(folder, shards=[1])
    kept = contents(folder)
    write(folder, shards=[0, 2])
    assert kept.items() <= contents(folder).items()
    assert contents(folder) == contents(write(Folder(tmp_path / "at once")))


@pytest.mark.parametrize("killed_after", range(1, 6))
def test_a_writer_killed_while_it_opens_is_opened_again(folder, tmp_path, monkeypatch, killed_after):
    """Group, row ids and arrays are several files; any of them may be the last one written."""
    writes = []
    whole = Folder.write

    def failing(self, name, data):
        if len(writes) == killed_after:
            raise RuntimeError("killed")
        writes.append(name)
        return whole(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", failing)
        with pytest.raises(RuntimeError, match="killed"):
            write(folder)
    assert contents(write(folder)) == contents(write(Folder(tmp_path / "at once")))


def test_the_only_layer_needs_no_name(folder):
    features = features_in(write(folder))
    assert features.only_layer("conv4") == "conv4"
    for layer in (None, "conv9"):
        with pytest.raises(ValueError, match=f"layer must name one of conv5, conv4, got {layer!r}"):
            features.only_layer(layer)
    features._attributes["layers"].pop("conv5")
    assert features.only_layer(None) == "conv4"


def test_damaged_rows_are_named_when_they_are_read(folder):
    features = features_in(write(folder))
    path = folder.path / "conv5/c/1/0"
    damaged = bytearray(path.read_bytes())
    damaged[0] ^= 1
    path.write_bytes(damaged)
    features.verify(deep=features.verified_whole)
    reader = features.reader("conv5")
    assert np.array_equal(reader.rows(0, 3), values_of("conv5")[:3])
    with pytest.raises(CorruptFile, match=str(path)):
        reader.rows(3, 6)


@pytest.mark.parametrize("name", ["zarr.json", "conv4/zarr.json", "row_ids/zarr.json"])
def test_a_damaged_description_is_named_before_anything_is_read(folder, name):
    features = features_in(write(folder))
    path = folder.path / name
    # Another number of the same length: it still is a description, of something else.
    path.write_bytes(path.read_bytes().replace(b"7", b"6", 1))
    with pytest.raises(CorruptFile, match=rf"{path} of .* differs from what was written.*--force"):
        features.verify(deep=features.verified_whole)


def test_missing_and_short_shards_are_named_before_anything_is_read(folder):
    features = features_in(write(folder))
    path = folder.path / "conv4/c/2/0"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptFile, match=f"{path} of .* must have {len(whole)} bytes and has {len(whole) - 1}"):
        features.verify(deep=False)
    path.unlink()
    with pytest.raises(CorruptFile, match=f"{path}, which is missing"):
        features.verify(deep=False)
