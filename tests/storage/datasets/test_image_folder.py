"""Folders of image files: classes, splits, and what is no image."""

import os
from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, Source, load_format, open_source
from storage.folder import Folder
from storage.stat_cache import StatCache

LONG_AGO = 1_600_000_000


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {path.name}".encode())
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


def opened(place: Path | None, *, split: str | None = None, **options) -> Source:
    config = DatasetConfig(name="photos", format="image_folder", split=split, options=options)
    return open_source(config, place=place)


def rows(source: Source) -> list[tuple]:
    return [(entry.name, entry.split, entry.label) for entry in source.entries()]


def test_class_folders_are_numbered_in_order(tmp_path):
    source = opened(put(tmp_path, "dog/b.png", "cat/2.JPG", "cat/deep/1.jpeg", "dog/a.webp"))
    assert source.classes == ("cat", "dog")
    assert rows(source) == [
        ("cat/2.JPG", None, 0), ("cat/deep/1.jpeg", None, 0), ("dog/a.webp", None, 1), ("dog/b.png", None, 1),
    ]  # fmt: skip
    assert len(source) == 4
    assert next(source.entries()).data == b"bytes of 2.JPG"


def test_a_split_is_a_folder_above_the_classes(tmp_path):
    put(tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png")
    source = opened(tmp_path, split="train")
    assert rows(source) == [("train/cat/1.png", "train", 0), ("train/dog/2.png", "train", 1)]


def test_a_flat_folder_has_no_labels(tmp_path):
    source = opened(put(tmp_path, "2.gif", "1.bmp"))
    assert (source.classes, rows(source)) == (None, [("1.bmp", None, None), ("2.gif", None, None)])


def test_labels_false_reads_any_tree_without_labels(tmp_path):
    source = opened(put(tmp_path, "x/1.png", "2.png"), labels=False)
    assert (source.classes, rows(source)) == (None, [("2.png", None, None), ("x/1.png", None, None)])


def test_images_beside_class_folders_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"in class folders; got .*2.png beside \['x'\].*labels: false"):
        opened(put(tmp_path, "x/1.png", "2.png")).classes  # noqa: B018


def test_a_class_folder_without_images_keeps_its_number(tmp_path):
    put(tmp_path, "bird/readme.txt", "cat/1.png").joinpath("ant").mkdir()
    source = opened(tmp_path)
    assert source.classes == ("ant", "bird", "cat")
    assert rows(source) == [("cat/1.png", None, 2)]


def test_hidden_and_other_files_are_passed_over(tmp_path):
    source = opened(put(tmp_path, "a/1.png", "a/.2.png", "a/._1.png", ".git/3.png", "a/labels.csv", "n.md"))
    assert (source.classes, rows(source)) == (("a",), [("a/1.png", None, 0)])


def test_links_are_followed_and_circles_end(tmp_path):
    put(tmp_path, "elsewhere/1.png", "root/a/2.png")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    assert rows(opened(tmp_path / "root")) == [("a/2.png", None, 0), ("b/1.png", None, 1)]


def test_reading_can_begin_anywhere(tmp_path):
    source = opened(put(tmp_path, *(f"a/{number}.png" for number in range(5))))
    assert list(source.entries(start=3)) == list(source.entries())[3:]
    assert list(source.entries(start=5)) == []


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.png")).write_bytes(b"x")
    with pytest.raises(ValueError, match="file names must be UTF-8"):
        opened(tmp_path)


@pytest.mark.parametrize("place", [None, "nowhere"])
def test_a_missing_place_says_how_to_give_one(tmp_path, place):
    with pytest.raises(ValueError, match="'photos' must be an existing path; .*: --data photos=PATH"):
        opened(tmp_path / place if place else None)


def test_a_file_as_place_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="must be a folder; got the file"):
        opened(put(tmp_path, "1.png") / "1.png")


def test_an_empty_dataset_is_an_error(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(ValueError, match="must hold at least one image; got none at .*--data photos=PATH"):
        opened(tmp_path)


def test_an_unknown_split_lists_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match=r"must be one of \['train', 'val'\].*got 'test'"):
        opened(put(tmp_path, "train/a/1.png", "val/a/2.png"), split="test")


def test_formats_and_options_that_do_not_exist_are_errors():
    with pytest.raises(ValueError, match="one of coco, idx, image_folder, .*, webdataset; got 'source'"):
        load_format("source")
    with pytest.raises(ValueError, match="one of coco, .*; got 'zip'"):
        DatasetConfig(name="photos", format="zip")
    with pytest.raises(ValueError, match="lables: Extra inputs .*options of format 'image_folder': labels"):
        DatasetConfig(name="photos", format="image_folder", options={"lables": True})


def test_a_config_survives_json():
    config = DatasetConfig(name="photos", format="image_folder", options={"labels": False})
    assert config.model_dump(mode="json")["options"] == {"labels": False}
    assert DatasetConfig.model_validate_json(config.model_dump_json()) == config
    default = DatasetConfig(name="photos", format="image_folder")
    assert default.model_dump(mode="json")["options"] == {"labels": True}


class Fingerprints:
    """Fingerprints of one folder through one cache, and how many files were read for the last."""

    def __init__(self, home: Path) -> None:
        self._folder = Folder(home)
        self.hashed = 0

    def __call__(self, place: Path, **options) -> str:
        cache = StatCache(self._folder)
        fingerprint = opened(place, **options).fingerprint(cache)
        self.hashed = cache.hashed
        return fingerprint


def test_a_fingerprint_of_unchanged_files_reads_nothing(tmp_path):
    fingerprint = Fingerprints(tmp_path / "home")
    place = put(tmp_path / "data", "a/1.png", "b/2.png")
    first, hashed = fingerprint(place), fingerprint.hashed
    assert (fingerprint(place), hashed, fingerprint.hashed) == (first, 2, 0)


def test_a_touched_file_is_read_again_and_counts_as_the_same(tmp_path):
    fingerprint = Fingerprints(tmp_path / "home")
    place = put(tmp_path / "data", "a/1.png", "b/2.png")
    first = fingerprint(place)
    os.utime(place / "a" / "1.png", (LONG_AGO + 9, LONG_AGO + 9))
    assert (fingerprint(place), fingerprint.hashed) == (first, 1)


def test_everything_that_decides_the_entries_is_in_the_fingerprint(tmp_path):
    fingerprint = Fingerprints(tmp_path / "home")
    place = put(tmp_path / "data", "a/1.png", "b/2.png")
    seen = [fingerprint(place), fingerprint(place, labels=False), fingerprint(place, split="a")]
    (place / "a" / "1.png").write_bytes(b"other")
    seen.append(fingerprint(place))
    (place / "a" / "1.png").rename(place / "a" / "3.png")
    seen.append(fingerprint(place))
    put(place, "b/4.png")
    seen.append(fingerprint(place))
    assert len(set(seen)) == 6


def test_the_place_is_not_in_the_fingerprint(tmp_path):
    fingerprint = Fingerprints(tmp_path / "home")
    assert fingerprint(put(tmp_path / "x", "a/1.png")) == fingerprint(put(tmp_path / "y", "a/1.png"))
