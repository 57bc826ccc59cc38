"""Labels: joined to images by id and never by position."""

import numpy as np
import pytest

from storage.artifact import Marker, content_digest
from storage.errors import CorruptFile
from storage.folder import Folder
from storage.labels import FACTS, UNLABELLED, Labels, write_label_shard
from storage.tables import text_column

ROW_IDS = text_column(f"{(number * 7919) % 1000:03x}-0" for number in range(10))
LABEL = np.array([3, 1, 4, 1, 5, UNLABELLED, 2, 6, 5, 3])


def write_shard(folder: Folder, shard: int, rows: slice):
    label = LABEL[rows]
    return write_label_shard(
        folder, shard=shard, row_ids=ROW_IDS[rows], label=label, distance=label / 4, margin=label / 8
    )


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def labels(folder) -> Labels:
    records = [write_shard(folder, shard, slice(4 * shard, 4 * shard + 4)) for shard in (2, 0, 1)]
    records.append(folder.write_json(FACTS, {"num_clusters": 7, "num_rows": 10, "num_labelled": 9}))
    marker = Marker(
        kind="Labels",
        stage="assign_labels",
        stage_version="1",
        key="0" * 64,
        digest=content_digest(records),
        data=folder.path.name,
        config={},
        inputs={},
        external={},
        files=records,
        environment={},
        seconds=0.0,
        created="2026-01-01T00:00:00+00:00",
    )
    return Labels(folder, marker)


def test_rows_come_in_the_order_of_their_shards_whatever_was_written_first(labels):
    table = labels.read()
    assert table["row_id"].tolist() == ROW_IDS.tolist()
    assert table["label"].tolist() == LABEL.tolist()
    assert table["distance"].tolist() == (LABEL / 4).tolist() and table["margin"].tolist() == (LABEL / 8).tolist()
    assert [table[name].dtype for name in ("label", "distance", "margin")] == [
        np.int32,
        np.float32,
        np.float32,
    ]


def test_more_than_ten_shards_stay_in_order(folder, labels):
    for shard in range(3, 12):
        label = np.array([shard])
        row_ids = text_column([f"new-{shard}"])
        write_label_shard(folder, shard=shard, row_ids=row_ids, label=label, distance=label, margin=label)
    assert labels.read()["label"].tolist() == [*LABEL.tolist(), *range(3, 12)]


def test_labels_are_joined_by_id_and_not_by_position(labels):
    order = np.random.default_rng(0).permutation(len(ROW_IDS))
    assert (order != np.arange(len(order))).any()
    joined = labels.by_row_id(ROW_IDS[order])
    assert joined.dtype == np.int64 and joined.tolist() == LABEL[order].tolist()


def test_some_rows_may_be_asked_for_and_twice(labels):
    wanted = [9, 2, 2, 5]
    assert labels.by_row_id(ROW_IDS[wanted]).tolist() == LABEL[wanted].tolist()
    assert labels.by_row_id(ROW_IDS[:0]).tolist() == []


@pytest.mark.parametrize("stranger", ["", "000", "zzz", "not-there-and-much-longer-than-the-others"])
def test_a_row_without_a_label_is_an_error_that_names_it(labels, stranger):
    wanted = np.array([ROW_IDS[0], stranger.encode(), ROW_IDS[1], stranger.encode()])
    with pytest.raises(ValueError, match=rf"2 of 4 have none, the first is {stranger}\. .*run assign_labels"):
        labels.by_row_id(wanted)


def test_facts_say_how_many_clusters_there_are(labels):
    assert labels.num_clusters == 7 and labels.facts["num_labelled"] == 9


def test_a_shard_is_one_file_and_equal_shards_are_equal_bytes(folder, tmp_path):
    record = write_shard(folder, 1, slice(4, 8))
    assert record == folder.record("labels-000001.parquet")
    assert record == write_shard(Folder(tmp_path / "other"), 1, slice(4, 8))


def test_a_damaged_shard_is_named(labels, folder):
    path = folder.path / "labels-000001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match=r"labels-000001\.parquet"):
        labels.read()
    path.unlink()
    with pytest.raises(CorruptFile, match=r"labels-000001\.parquet, which is missing"):
        labels.verify(deep=False)
