"""VOCdevkit folders: splits, several things in a picture, masks, and annotations that do not fit."""

from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, Source, open_source
from storage.entries import Mask, Target
from storage.folder import Folder
from storage.stat_cache import StatCache

CAT, DOG, PERSON = 7, 11, 14


def thing(name: str, *box: float, difficult: int | None = 0) -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    hard = "" if difficult is None else f"<difficult>{difficult}</difficult>"
    # A part has a name and a box of its own, which are not those of the thing.
    part = "<part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{hard}{part}<bndbox>{inside}</bndbox></object>"


def put(year: Path, one: str, *things: str, annotated: bool = True, mask: bytes = b"") -> None:
    files = {f"JPEGImages/{one}.jpg": f"picture {one}".encode()}
    if annotated:
        files[f"Annotations/{one}.xml"] = f"<annotation>{''.join(things)}</annotation>".encode()
    if mask:
        files[f"SegmentationClass/{one}.png"] = mask
    for name, data in files.items():
        (year / name).parent.mkdir(parents=True, exist_ok=True)
        (year / name).write_bytes(data)


def put_split(year: Path, name: str, *lines: str, image_set: str = "Main") -> None:
    folder = year / "ImageSets" / image_set
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def devkit(tmp_path):
    year = tmp_path / "VOC2007"
    put(year, "001", thing("dog", 1, 1, 40, 30), thing("person", 5, 6, 5, 6, difficult=1), mask=b"mask 1")
    put(year, "002", thing("cat", 2.5, 3, 4, 8, difficult=None))
    put(year, "003", annotated=False)
    put_split(year, "train", "002", "001")
    put_split(year, "test", "003  1")
    put_split(year, "cat_train", "001 -1", "002  1")
    put_split(year, "train", "001", image_set="Segmentation")
    return tmp_path


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    return open_source(DatasetConfig(name="voc", format="voc", split=split, options=options), place=place)


def test_each_picture_has_its_things_with_boxes_from_zero_and_its_mask(devkit):
    source = opened(devkit, split="train")
    first, second = source.entries()
    assert first == (
        "VOC2007/JPEGImages/001.jpg", "train", None, b"picture 001",
        (Target(DOG, False, (0, 0, 40, 30)), Target(PERSON, True, (4, 5, 5, 6))),
        Mask("VOC2007/SegmentationClass/001.png", b"mask 1"),
    )  # fmt: skip
    assert second[4:] == ((Target(CAT, False, (1.5, 2, 4, 8)),), None)
    assert (len(source), source.annotated, source.classes[CAT]) == (2, True, "cat")
    assert list(source.entries(start=1)) == [second]


def test_splits_are_those_of_the_image_set_and_no_lists_of_a_class(devkit):
    with pytest.raises(ValueError, match=r"must be one of \['test', 'train'\] .*got 'val'"):
        opened(devkit, split="val")
    assert [entry.name[-7:] for entry in opened(devkit, split="train", image_set="Segmentation").entries()] == [
        "001.jpg"
    ]
    assert [entry.targets for entry in opened(devkit, split="test").entries()] == [()]
    assert len(opened(devkit)) == 3


def test_one_year_may_be_the_place_and_several_must_be_told_apart(devkit):
    assert next(opened(devkit / "VOC2007", split="train").entries()).name == "JPEGImages/001.jpg"
    put(devkit / "VOC2012", "001")
    with pytest.raises(ValueError, match=r"the years \['VOC2007', 'VOC2012'\] and the option year None"):
        opened(devkit)
    assert len(opened(devkit, year="VOC2012")) == 1
    with pytest.raises(ValueError, match=r"must be a VOCdevkit folder.* the years \[\] "):
        opened(devkit / "VOC2007" / "ImageSets")


def test_other_classes_must_be_named(devkit):
    put(devkit / "VOC2007", "002", thing("unicorn", 1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"must be of aeroplane, .*; got 'unicorn' in .*002.xml.*classes: \["):
        list(opened(devkit, split="train").entries())
    entries = opened(devkit, split="train", classes=["person", "dog", "unicorn"]).entries()
    assert [target.label for entry in entries for target in entry.targets] == [1, 0, 2]


# Each entity is ten of the one before: a gigabyte, if it were all written out.
ENTITIES = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
BOMB = f'<!DOCTYPE x [<!ENTITY a "0123456789">{ENTITIES}]><annotation>&i;</annotation>'


@pytest.mark.parametrize(
    "content",
    [
        "<annotation><object>", "", "<annotation><object><name>dog</name></object></annotation>", BOMB,
        f"<annotation>{thing('dog', 1, 1, float('nan'), 2)}</annotation>",
    ],
    ids=["cut", "empty", "no box", "entities", "nan"],
)  # fmt: skip
def test_a_damaged_annotation_is_named(devkit, content):
    (devkit / "VOC2007/Annotations/001.xml").write_text(content)
    with pytest.raises(ValueError, match=r"001.xml must be an annotation as VOC has it: .*Fetch it again"):
        list(opened(devkit, split="train").entries())


def test_a_listed_picture_that_is_missing_is_named(devkit, tmp_path):
    (devkit / "VOC2007/JPEGImages/002.jpg").unlink()
    source = opened(devkit, split="train")
    with pytest.raises(ValueError, match="002.jpg must be readable; the system says: No such file"):
        source.fingerprint(StatCache(Folder(tmp_path / "home")))
    with pytest.raises(ValueError, match="002.jpg must be readable"):
        list(source.entries())


@pytest.mark.parametrize("name", ["JPEGImages/001.jpg", "Annotations/001.xml", "SegmentationClass/001.png"])
def test_pictures_annotations_and_masks_are_in_the_fingerprint(devkit, tmp_path, name):
    cache = StatCache(Folder(tmp_path / "home"))
    before = opened(devkit, split="train").fingerprint(cache)
    (devkit / "VOC2007" / name).write_bytes(b"changed")
    assert opened(devkit, split="train").fingerprint(cache) != before
