"""An index is decided by content alone; its images are read by position and checked."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.artifact import Marker, content_digest
from storage.dataset_index import UNLABELLED, DatasetIndex
from storage.datasets.source import CorruptSource, DatasetConfig, open_source
from storage.folder import Folder
from storage.images import image_hash, probe
from storage.index_writer import write_dataset_index
from storage.tables import text_column


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (color + 1, 2), color).save(buffer, "PNG")
    return buffer.getvalue()


def put(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def indexed(place: Path, folder: Path, **settings) -> DatasetIndex:
    """The index of a dataset, an image folder by default, without the stage that makes one."""
    source = DatasetConfig(**{"name": "photos", "format": "image_folder"} | settings)
    opened = open_source(source, place=place)
    entries = list(opened.entries())
    probes = [probe(entry.data) for entry in entries]
    columns = {
        "number": np.arange(len(entries)),
        "shows": text_column("" for _ in entries),
        "name": text_column(entry.name for entry in entries),
        "split": text_column(entry.split or "" for entry in entries),
        "label": np.array([-1 if entry.label is None else entry.label for entry in entries], np.int32),
        **{name: text_column(getattr(one, name) for one in probes) for name in ("image", "reason")},
        **{name: np.array([getattr(one, name) for one in probes]) for name in ("width", "height", "size")},
    }
    write_dataset_index(Folder(folder), source=source, classes=opened.classes, entries=columns)
    files = [Folder(folder).record(name) for name in Folder(folder).files()]
    marker = Marker(
        kind="DatasetIndex", stage="index_dataset", stage_version="1", key=folder.name, data="0", config={},
        digest=content_digest(files, undigested=DatasetIndex.undigested), inputs={}, external={}, files=files,
        environment={}, seconds=0, created="",
    )  # fmt: skip
    return DatasetIndex(Folder(folder), marker)


@pytest.fixture
def place(tmp_path):
    colors = {"cat": (1, 2), "dog": (3, 4)}
    files = {f"{name}/{color}.png": png(color) for name in colors for color in colors[name]}
    return put(tmp_path / "photos", files)


def test_rows_are_sorted_by_the_hash_of_their_bytes(place, tmp_path):
    index = indexed(place, tmp_path / "index")
    expected = {f"{image_hash(png(color))}-0".encode(): label for label, color in [(0, 1), (0, 2), (1, 3), (1, 4)]}
    assert index.row_ids().tolist() == sorted(expected)
    assert index.labels().tolist() == [expected[row_id] for row_id in index.row_ids()]
    assert index.labels().dtype == np.int64 and index.row_ids().dtype == "S34"
    assert (index.num_rows, index.classes, index.has_labels) == (4, ("cat", "dog"), True)
    assert (index.name, index.repeats, index.quarantine()) == ("photos", (0, 0, 0), {})


def test_the_reader_gives_each_row_its_bytes(place, tmp_path):
    index = indexed(place, tmp_path / "index")
    reader = index.images(place, tmp_path / "cache")
    hashes = [image_hash(reader.read(position)) for position in range(index.num_rows)]
    assert [f"{image}-0".encode() for image in hashes] == index.row_ids().tolist()
    assert [reader.row_id(position) for position in range(index.num_rows)] == [f"{image}-0" for image in hashes]
    assert [image_hash((place / name.decode()).read_bytes()) for name in index.names()] == hashes


def test_the_reader_travels_light(place, tmp_path):
    reader = indexed(place, tmp_path / "index").images(place, tmp_path / "cache")
    unread = pickle.dumps(reader)
    data = reader.read(2)
    assert len(pickle.dumps(reader)) == len(unread)
    assert pickle.loads(unread).read(2) == data


def test_names_and_places_are_not_in_the_digest(place, tmp_path):
    before = indexed(place, tmp_path / "a").digest
    place.rename(tmp_path / "moved")
    (tmp_path / "moved/cat/1.png").rename(tmp_path / "moved/cat/zzz.png")
    assert indexed(tmp_path / "moved", tmp_path / "b").digest == before


def test_labels_classes_and_bytes_are_in_the_digest(place, tmp_path):
    digests = [indexed(place, tmp_path / "a").digest]
    digests.append(indexed(place, tmp_path / "b", options={"labels": False}).digest)
    (place / "cat").rename(place / "ant")
    digests.append(indexed(place, tmp_path / "c").digest)
    (place / "ant/1.png").rename(place / "dog/1.png")
    digests.append(indexed(place, tmp_path / "d").digest)
    (place / "dog/1.png").write_bytes(png(9))
    digests.append(indexed(place, tmp_path / "e").digest)
    assert len(set(digests)) == 5


def test_repeats_are_numbered_by_label_and_not_by_name(tmp_path):
    digests = []
    for number, (cat, dog) in enumerate([("1.png", "2.png"), ("2.png", "1.png")]):
        files = {f"cat/{cat}": png(1), f"dog/{dog}": png(1), "cat/3.png": png(1), "dog/4.png": png(2)}
        index = indexed(put(tmp_path / str(number), files), tmp_path / f"index{number}")
        repeated = np.flatnonzero(np.strings.startswith(index.row_ids(), image_hash(png(1)).encode()))
        assert [index.row_ids()[row][-2:] for row in repeated] == [b"-0", b"-1", b"-2"]
        assert index.labels()[repeated].tolist() == [0, 0, 1]
        assert index.repeats == (2, 0, 1)
        digests.append(index.digest)
    assert digests[0] == digests[1]


def test_the_order_of_rows_in_a_table_does_not_decide_which_repeat_is_which(tmp_path):
    digests = []
    for labels in ([1, 0], [0, 1]):
        table = pa.table({"image": [png(1), png(1)], "label": labels})
        pq.write_table(table, tmp_path / "train.parquet")
        index = indexed(tmp_path / "train.parquet", tmp_path / f"index{labels[0]}", format="parquet")
        assert (index.labels().tolist(), index.repeats.under_two_labels) == ([0, 1], 1)
        digests.append(index.digest)
    assert digests[0] == digests[1]


def test_many_repeats_are_still_in_order_of_their_ids(tmp_path):
    place = put(tmp_path / "photos", {f"a/{number:02}.png": png(1) for number in range(12)})
    index = indexed(place, tmp_path / "index")
    ids = index.row_ids()
    assert ids.tolist() == sorted(ids.tolist()) and len(set(ids)) == 12
    assert index.repeats.rows == 11


def test_unreadable_images_are_no_rows_and_keep_their_reason(place, tmp_path):
    put(place, {"cat/bad.png": b"no image", "dog/empty.png": b""})
    index = indexed(place, tmp_path / "index")
    assert (index.num_rows, index.num_quarantined) == (4, 2)
    assert index.quarantine()["dog/empty.png"] == "the file is empty"
    assert "cannot identify" in index.quarantine()["cat/bad.png"]


def test_labels_are_required_of_every_row(place, tmp_path):
    indexed(place, tmp_path / "a").require_labels()
    index = indexed(place, tmp_path / "b", options={"labels": False})
    assert (index.has_labels, index.classes, set(index.labels())) == (False, None, {UNLABELLED})
    with pytest.raises(ValueError, match="every row of dataset 'photos' .* a label; 0 of 4 have one"):
        index.require_labels()


def test_a_changed_file_is_a_corrupt_source(place, tmp_path):
    index = indexed(place, tmp_path / "index")
    reader = index.images(place, tmp_path / "cache")
    name, row_id = index.names()[1].decode(), index.row_ids()[1].decode()
    (place / name).write_bytes(png(7))
    with pytest.raises(CorruptSource, match=f"row {row_id} of .*'photos' .*{name} has others"):
        reader.read(1)
    (place / name).unlink()
    with pytest.raises(CorruptSource, match=rf"{name} \(row number 1\) is not: No such file"):
        reader.read(1)
    assert image_hash(reader.read(0)) == index.row_ids()[0][:32].decode()


def test_a_missing_place_is_an_error_when_images_are_opened(place, tmp_path):
    index = indexed(place, tmp_path / "index")
    with pytest.raises(ValueError, match="--data photos=PATH"):
        index.images(None, tmp_path / "cache")
