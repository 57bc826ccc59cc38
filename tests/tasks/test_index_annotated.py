"""An index of pictures that show several things: targets, masks, and rows that repeat."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from storage.dataset_index import DatasetIndex
from storage.images import image_hash
from storage.store import Store
from tasks.index_dataset import IndexDatasetConfig, index_dataset
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, run_stage

CLASSES = ("cat", "dog", "person")


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 2 * number, 50)).save(buffer, "PNG")
    return buffer.getvalue()


def put_voc(year: Path, pictures: dict[str, tuple[bytes, list[tuple]]], *, masks: dict[str, bytes]) -> Path:
    """Pictures with (class, left, top, right, bottom, difficult) of each thing, from 0 as Graft counts."""
    for name in ("JPEGImages", "Annotations", "SegmentationClass"):
        (year / name).mkdir(parents=True, exist_ok=True)
    for name, (data, things) in pictures.items():
        (year / "JPEGImages" / f"{name}.jpg").write_bytes(data)
        objects = "".join(
            f"<object><name>{kind}</name><difficult>{hard}</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for kind, left, top, right, bottom, hard in things
        )
        (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    for name, data in masks.items():
        (year / "SegmentationClass" / f"{name}.png").write_bytes(data)
    return year


PICTURES: dict[str, tuple[bytes, list[tuple]]] = {
    "1": (png(1), [("dog", 1, 1, 5, 5, 0), ("cat", 0, 0, 2, 2, 0), ("dog", 0, 1, 5, 5, 1)]),
    "2": (png(2), []),
    "3": (b"no image", [("person", 0, 0, 1, 1, 0)]),
    "4": (png(4), [("person", 2, 2, 3, 3, 1)]),
}


@pytest.fixture
def index(tmp_path: Path) -> Callable[..., DatasetIndex]:
    def run(place: Path, **settings: Any) -> DatasetIndex:
        runtime = Runtime(home=tmp_path / "home", workers=0, data={"scenes": place})
        context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())
        defaults = {"name": "scenes", "format": "voc", "options": {"classes": CLASSES}}
        config = IndexDatasetConfig(**{"max_unreadable": 0.5, "shard_rows": 2} | defaults | settings)
        return run_stage(index_dataset, config, inputs={}, context=context).artifact

    return run


def rows_of(index: DatasetIndex) -> dict[bytes, int]:
    return {name.split(b"/")[-1].split(b".")[0]: row for row, name in enumerate(index.names())}


def test_targets_go_with_their_rows(index, tmp_path):
    found = index(put_voc(tmp_path / "voc", PICTURES, masks={"1": b"mask one"}))
    rows, targets = rows_of(found), found.targets()
    assert (found.annotated, found.has_labels, found.classes, sorted(rows)) == (
        True,
        False,
        CLASSES,
        [b"1", b"2", b"4"],
    )
    things = sorted(zip(targets.row, targets.label, targets.difficult, map(tuple, targets.box), strict=True))
    assert things == sorted([
        (rows[b"1"], 0, False, (0, 0, 2, 2)), (rows[b"1"], 1, False, (1, 1, 5, 5)), (rows[b"1"], 1, True, (0, 1, 5, 5)),
        (rows[b"4"], 2, True, (2, 2, 3, 3)),
    ])  # fmt: skip
    assert np.all(np.diff(targets.row) >= 0)
    shown = found.shown()
    assert [shown[rows[name]].tolist() for name in (b"1", b"2", b"4")] == [[1, 1, 0], [0, 0, 0], [0, 0, -1]]
    masks = found.masks()
    assert [masks[rows[name]] for name in (b"1", b"2", b"4")] == [b"SegmentationClass/1.png", b"", b""]
    with pytest.raises(ValueError, match="0 of 3 have one"):
        found.require_labels()


@pytest.mark.parametrize("change", ["box", "class", "mask", "difficult"])
def test_boxes_classes_and_masks_are_content(index, tmp_path, change):
    before = index(put_voc(tmp_path / "a", PICTURES, masks={"1": b"mask"})).digest
    thing, masks = ["dog", 1, 1, 5, 5, 0], {"1": b"mask"}
    match change:
        case "box":
            thing[3] = 6
        case "class":
            thing[0] = "person"
        case "difficult":
            thing[5] = 1
        case "mask":
            masks = {"1": b"another"}
    data, things = PICTURES["1"]
    changed = PICTURES | {"1": (data, [tuple(thing), *things[1:]])}
    assert index(put_voc(tmp_path / "b", changed, masks=masks)).digest != before


def test_the_order_of_things_and_names_of_files_are_no_content(index, tmp_path):
    before = index(put_voc(tmp_path / "a", PICTURES, masks={"1": b"mask"})).digest
    renamed = {f"{9 - int(name)}": (data, things[::-1]) for name, (data, things) in PICTURES.items()}
    assert index(put_voc(tmp_path / "b", renamed, masks={"8": b"mask"})).digest == before


def test_one_picture_annotated_in_two_ways_is_reported_and_names_do_not_decide(index, tmp_path):
    digests = []
    for cat, dog in (("1", "2"), ("2", "1")):
        pictures = {cat: (png(1), [("cat", 0, 0, 1, 1, 0)]), dog: (png(1), [("dog", 0, 0, 1, 1, 0)]), "3": (png(2), [])}
        found = index(put_voc(tmp_path / cat, pictures, masks={}))
        assert found.repeats == (1, 0, 1)
        digests.append(found.digest)
    assert digests[0] == digests[1]
    same = {name: (png(1), [("cat", 0, 0, 1, 1, 0)]) for name in "12"}
    assert index(put_voc(tmp_path / "same", same, masks={})).repeats == (1, 0, 0)


def test_a_mask_that_changes_makes_the_index_anew(index, tmp_path):
    place = put_voc(tmp_path / "a", PICTURES, masks={"1": b"mask"})
    before = index(place)
    path = place / "SegmentationClass" / "1.png"
    path.write_bytes(b"kam!")
    os.utime(path, (1_600_000_000, 1_600_000_000))
    after = index(place)
    assert (after.key != before.key, after.digest != before.digest) == (True, True)


def test_outlines_are_kept_as_they_are(index, tmp_path):
    outline = [[0.5, 0.5, 4.0, 0.5, 4.0, 4.25]]
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "train").mkdir()
    (tmp_path / "coco" / "train" / "1.png").write_bytes(png(1))
    thing = {"image_id": 5, "category_id": 1, "bbox": [0, 0, 4, 4]}
    content = {
        "images": [{"id": 5, "file_name": "1.png"}], "categories": [{"id": 1, "name": "dog"}],
        "annotations": [thing | {"segmentation": outline}, thing | {"bbox": [1, 0, 4, 4]}],
    }  # fmt: skip
    (tmp_path / "coco" / "annotations" / "instances_train.json").write_text(json.dumps(content))
    found = index(tmp_path / "coco", format="coco", options={})
    assert [json.loads(one) if one else None for one in found.outlines()] == [outline, None]
    assert found.targets().box.tolist() == [[0, 0, 4, 4], [1, 0, 5, 4]]


def test_lists_of_labels_in_a_table_are_what_an_image_shows(index, tmp_path):
    labels = [[2, 0], [], [1]]
    table = pa.table({"image": [png(1), png(2), png(3)], "labels": pa.array(labels, pa.list_(pa.int64()))})
    pq.write_table(table, tmp_path / "train.parquet")
    found = index(tmp_path / "train.parquet", format="parquet", options={"label": "labels"})
    position = {row_id[:32].decode(): row for row, row_id in enumerate(found.row_ids())}
    shown = [found.shown()[position[image_hash(png(number))]].tolist() for number in (1, 2, 3)]
    assert shown == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert (found.annotated, found.classes) == (True, ("0", "1", "2")) and np.isnan(found.targets().box).all()
