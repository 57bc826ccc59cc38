"""COCO: annotations beside folders of pictures, and files that do not hold what they must."""

import json
from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, Source, open_source
from storage.entries import Target
from storage.folder import Folder
from storage.stat_cache import StatCache

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}]
POLYGON = [[0.0, 0.0, 5.0, 0.0, 5.0, 5.0]]
RUNS = {"counts": [3, 9], "size": [4, 3]}


def put(root: Path, split: str, *, annotations=(), categories=CATEGORIES, names=("b.jpg", "a.jpg")) -> Path:
    images = [{"id": number, "file_name": name, "width": 9, "height": 9} for number, name in enumerate(names)]
    content = {"images": images, "annotations": list(annotations), "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    for name in names:
        (root / split / name).parent.mkdir(parents=True, exist_ok=True)
        (root / split / name).write_bytes(f"{split} {name}".encode())
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return root


def thing(image: int, category: int, *box: float, **more) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "id": 1, **more}


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    return open_source(DatasetConfig(name="coco", format="coco", split=split, options=options), place=place)


@pytest.fixture
def place(tmp_path):
    things = [
        thing(0, 90, 1, 2, 3.5, 4, segmentation=POLYGON, iscrowd=0),
        thing(1, 3, 0, 0, 9, 9, segmentation=RUNS, iscrowd=1), thing(0, 3, 0, 0, 0, 0),
    ]  # fmt: skip
    put(tmp_path, "train2017", annotations=things)
    return put(tmp_path, "val2017", names=("deep/c.jpg",))


def test_pictures_have_their_boxes_outlines_and_crowds(place):
    source = opened(place, split="train2017")
    assert source.classes == ("cat", "dog")
    assert list(source.entries()) == [
        ("train2017/a.jpg", "train2017", None, b"train2017 a.jpg",
         (Target(0, True, (0, 0, 9, 9), b'{"counts":[3,9],"size":[4,3]}'),), None),
        ("train2017/b.jpg", "train2017", None, b"train2017 b.jpg",
         (Target(1, False, (1, 2, 4.5, 6), b"[[0.0,0.0,5.0,0.0,5.0,5.0]]"), Target(0, False, (0, 0, 0, 0))), None),
    ]  # fmt: skip
    assert (len(source), source.annotated) == (2, True)


@pytest.mark.parametrize("start", range(4))
def test_no_split_reads_all_and_reading_can_begin_anywhere(place, start):
    source = opened(place)
    assert len(source) == 3
    assert [entry.split for entry in source.entries()] == ["train2017", "train2017", "val2017"]
    assert list(source.entries(start=start)) == list(source.entries())[start:]


def test_files_may_lie_elsewhere(tmp_path):
    put(tmp_path, "train")
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "train/_annotations.coco.json")
    options = {"annotations": "{split}/_annotations.coco.json"}
    assert [entry.name for entry in opened(tmp_path, **options).entries()] == ["train/a.jpg", "train/b.jpg"]
    assert len(opened(tmp_path, split="train", **options)) == 2
    with pytest.raises(ValueError, match=r"its annotations in .*instances_\{split\}.json; there is no such file"):
        opened(tmp_path)


def test_an_unknown_split_lists_those_that_exist(place):
    with pytest.raises(ValueError, match=r"must be one of \['train2017', 'val2017'\] .*got 'test2017'"):
        opened(place, split="test2017")


def test_splits_must_share_their_categories(place):
    put(place, "val2017", categories=CATEGORIES[:1])
    with pytest.raises(ValueError, match=r"must name the same categories; those of .*train2017.json.* differ"):
        opened(place).classes  # noqa: B018


@pytest.mark.parametrize(
    "content",
    [
        "{", "[]", "{}", json.dumps({"images": [{"id": 0}], "categories": []}),
        json.dumps({"images": [], "categories": [], "annotations": [thing(0, 1, 0, 0, 1, 1)]}),
        json.dumps({"images": [], "categories": CATEGORIES, "annotations": [thing(0, 3, 0, 0, 1)]}),
        json.dumps({"images": [], "categories": CATEGORIES, "annotations": [thing(0, 3, 0, 0, float("nan"), 1)]}),
        json.dumps({"images": [], "categories": CATEGORIES, "annotations": [thing(0, 3, 0, 0, 1, float("inf"))]}),
    ],
)  # fmt: skip
def test_annotations_that_do_not_fit_are_named(place, content):
    (place / "annotations/instances_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"instances_val2017.json must hold images, categories and annotations"):
        opened(place, split="val2017")


def test_a_listed_picture_that_is_missing_is_named(place, tmp_path):
    (place / "val2017/deep/c.jpg").unlink()
    with pytest.raises(ValueError, match="c.jpg must be readable; the system says: No such file"):
        opened(place, split="val2017").fingerprint(StatCache(Folder(tmp_path / "home")))


def test_annotations_are_in_the_fingerprint(place, tmp_path):
    cache = StatCache(Folder(tmp_path / "home"))
    before = opened(place, split="val2017").fingerprint(cache)
    put(place, "val2017", names=("deep/c.jpg",), annotations=[thing(0, 3, 0, 0, 1, 1)])
    assert opened(place, split="val2017").fingerprint(cache) != before
