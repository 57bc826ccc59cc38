"""Hugging Face Parquet: shards, splits, class names, and tables that do not fit."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.datasets.parquet import BATCH_ROWS
from storage.datasets.source import DatasetConfig, Source, open_source
from storage.folder import Folder
from storage.stat_cache import StatCache

NAMES = ["cat", "dog"]


def put(path: Path, images: list, *, labels: list | None = None, names=NAMES, group_rows: int = 2) -> Path:
    columns = {"image": pa.array(images)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=group_rows)
    return path


def struct(*data: bytes | None) -> list[dict]:
    return [{"bytes": one, "path": "x.png"} for one in data]


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    config = DatasetConfig(name="tables", format="parquet", split=split, options=options)
    return open_source(config, place=place)


@pytest.fixture
def shards(tmp_path):
    put(tmp_path / "train-00000-of-00002.parquet", struct(b"0", b"1", b"2"), labels=[0, 1, 0])
    put(tmp_path / "train-00001-of-00002-0a1b2c.parquet", struct(b"3", b"4"), labels=[1, 1])
    put(tmp_path / "test.parquet", struct(b"5"), labels=[0])
    (tmp_path / "README.md").write_text("not a shard")
    return tmp_path


def test_the_shards_of_a_split_are_read_in_order(shards):
    source = opened(shards, split="train")
    first, second = "train-00000-of-00002.parquet", "train-00001-of-00002-0a1b2c.parquet"
    assert [entry[:4] for entry in source.entries()] == [
        (f"{first}#0", "train", 0, b"0"), (f"{first}#1", "train", 1, b"1"), (f"{first}#2", "train", 0, b"2"),
        (f"{second}#0", "train", 1, b"3"), (f"{second}#1", "train", 1, b"4"),
    ]  # fmt: skip
    assert (len(source), source.classes) == (5, ("cat", "dog"))


def test_a_shard_is_never_held_whole(tmp_path):
    rows, image_bytes = 40 * BATCH_ROWS, 1000
    images = [np.random.default_rng(row).bytes(image_bytes) for row in range(rows)]
    put(tmp_path / "train.parquet", struct(*images), labels=[0] * rows, group_rows=BATCH_ROWS)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in opened(tmp_path).entries()]
    assert len(held) == rows and max(held) < rows * image_bytes / 4


def test_no_split_reads_all_of_them(shards):
    assert [(entry.split, entry.data) for entry in opened(shards).entries()] == [
        ("test", b"5"), *(("train", data) for data in (b"0", b"1", b"2", b"3", b"4")),
    ]  # fmt: skip


@pytest.mark.parametrize("start", range(7))
def test_reading_can_begin_anywhere(shards, start):
    source = opened(shards)
    assert list(source.entries(start=start)) == list(source.entries())[start:]


def test_one_file_is_a_dataset(shards):
    source = opened(shards / "test.parquet")
    assert [(entry.name, entry.split) for entry in source.entries()] == [("test.parquet#0", "test")]


def test_images_may_be_plain_bytes_in_columns_of_any_name(tmp_path):
    path = tmp_path / "all.parquet"
    pq.write_table(pa.table({"img": [b"0", b"1"], "fine": pa.array([4, 2], pa.uint8())}), path)
    source = opened(path, image="img", label="fine")
    assert [(entry.data, entry.label) for entry in source.entries()] == [(b"0", 4), (b"1", 2)]
    assert source.classes is None


def test_labels_may_be_left_out_or_missing(tmp_path):
    path = put(tmp_path / "a.parquet", struct(b"0", b"1", b"2"), labels=[1, -1, None])
    assert [entry.label for entry in opened(path).entries()] == [1, None, None]
    source = opened(path, label=None)
    assert ([entry.label for entry in source.entries()], source.classes) == ([None] * 3, None)


def test_an_image_without_bytes_is_an_empty_one(tmp_path):
    path = put(tmp_path / "a.parquet", struct(None, b"1"), labels=[0, 1])
    assert [entry.data for entry in opened(path).entries()] == [b"", b"1"]


def test_a_label_above_the_classes_is_an_error(tmp_path):
    path = put(tmp_path / "a.parquet", struct(b"0", b"1"), labels=[0, 2])
    with pytest.raises(ValueError, match=r"must be below 2 \(classes\); got 2 at a.parquet#1"):
        list(opened(path).entries())


def test_shards_that_disagree_on_classes_are_an_error(tmp_path):
    put(tmp_path / "train-0.parquet", struct(b"0"), labels=[0])
    put(tmp_path / "train-1.parquet", struct(b"1"), labels=[0], names=["dog", "cat"])
    with pytest.raises(ValueError, match="must name the same classes; got different ones in train-0.parquet"):
        list(opened(tmp_path).entries())


def test_an_unknown_split_lists_those_that_exist(shards):
    with pytest.raises(ValueError, match=r"must be one of \['test', 'train'\].*got 'validation'"):
        opened(shards, split="validation")


def test_a_folder_without_shards_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must hold at least one image; got none at .*--data tables=PATH"):
        opened(tmp_path, split="train")


def test_columns_that_are_missing_or_do_not_fit_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": ["a.png"], "kind": ["cat"], "data": [b"x"]}), path)
    for options, message in [
        ({}, r"must have a column 'label' \(option label\); got image, kind, data"),
        ({"label": None}, "'image' of .* must hold encoded images as bytes; got string"),
        ({"image": "data", "label": "kind"}, "'kind' of .* must hold class numbers; got string"),
    ]:
        with pytest.raises(ValueError, match=message):
            opened(path, **options)


@pytest.mark.parametrize("keep", [10, -10])
def test_a_damaged_file_is_named(shards, keep):
    path = shards / "test.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"test.parquet must be an intact Parquet file: .*\. Fetch it again"):
        opened(shards, split="test")


def test_the_fingerprint_covers_the_shards_of_the_split_only(shards, tmp_path_factory):
    cache = StatCache(Folder(tmp_path_factory.mktemp("home")))

    def fingerprints() -> list[str]:
        return [opened(shards, split=split).fingerprint(cache) for split in ("train", "test")]

    before = fingerprints()
    put(shards / "test.parquet", struct(b"6"), labels=[0])
    after = fingerprints()
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)
