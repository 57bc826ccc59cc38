"""Crops of installed photographs: no download, no pixel in two splits, always the same."""

import io
import socket
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from storage.datasets import package_photographs
from storage.datasets.package_photographs import PHOTOGRAPHS
from storage.datasets.source import DatasetConfig, Source, open_source
from storage.folder import Folder
from storage.images import decode
from storage.stat_cache import StatCache


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*_given, **_named):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def opened(split: str | None = None, **options) -> Source:
    config = DatasetConfig(name="photographs", format="package_photographs", split=split, options=options)
    return open_source(config, place=None)


def boxes(source: Source) -> list[tuple[str, int, int]]:
    """Photograph, left and top of every crop."""
    parts = [entry.name.split("#") for entry in source.entries()]
    return [(name, *map(int, corner.split(","))) for name, corner in parts]


def test_there_are_enough_crops_of_every_photograph():
    counts = {}
    for split in ("train", "validation", "test"):
        source = opened(split)
        labels = Counter(entry.label for entry in source.entries())
        assert set(labels) == set(range(len(PHOTOGRAPHS)))
        counts[split] = len(source)
        assert labels.total() == counts[split]
    assert counts["train"] > 8_000 and counts["test"] > 4_000 and counts["validation"] > 2_000


def test_half_of_the_photographs_still_makes_a_dataset():
    half = ["astronaut", "chelsea", "coffee", "hubble", "retina"]
    other = sorted(set(PHOTOGRAPHS) - set(half))
    for names in (half, other):
        assert opened("test", photographs=names).classes == tuple(names)
        assert len(opened("train", photographs=names)) > 4_000
        assert len(opened("test", photographs=names)) > 2_000


def test_splits_share_no_pixel():
    owner: dict[tuple[str, int, int], str] = {}
    for split in ("train", "validation", "test"):
        for name, left, top in boxes(opened(split, stride=9, crop=24, min_std=0, photographs=["chelsea", "retina"])):
            # A crop lies within one block when its corners do.
            assert left // 128 == (left + 23) // 128 and top // 128 == (top + 23) // 128
            assert owner.setdefault((name, left // 128, top // 128), split) == split


def test_no_split_is_all_of_them():
    options = {"stride": 32, "photographs": ["china", "ihc"]}
    parts = [set(boxes(opened(split, **options))) for split in ("train", "validation", "test")]
    assert set(boxes(opened(**options))) == set.union(*parts)
    assert len(opened(**options)) == sum(map(len, parts))


def test_a_crop_is_cut_from_its_photograph():
    source = opened("test", photographs=["china"], crop=40)
    pixels = package_photographs._load("china")
    assert max(pixels.shape) == 512
    for entry in list(source.entries())[::50]:
        left, top = map(int, entry.name.split("#")[1].split(","))
        np.testing.assert_array_equal(decode(entry.data), pixels[top : top + 40, left : left + 40])


def test_flat_crops_are_dropped():
    everything, textured = (opened("train", min_std=std, photographs=["rocket"]) for std in (0, 10))
    spread = {entry.name: decode(entry.data).mean(axis=2).std() for entry in everything.entries()}
    assert [entry.name for entry in textured.entries()] == [name for name, std in spread.items() if std >= 10]
    assert len(textured) < len(everything)


def test_the_bytes_do_not_depend_on_a_compressor():
    data = next(opened("test", photographs=["coffee"]).entries()).data
    assert Image.open(io.BytesIO(data)).size == (32, 32)
    assert len(data) > 32 * 32 * 3


def test_reading_can_begin_anywhere():
    source = opened("train", stride=64)
    assert list(source.entries(start=100)) == list(source.entries())[100:]


def test_the_fingerprint_follows_options_and_pillow(tmp_path, monkeypatch):
    cache = StatCache(Folder(tmp_path))
    seen = [opened("train").fingerprint(cache), opened("test").fingerprint(cache)]
    seen.append(opened("train", photographs=["china"]).fingerprint(cache))
    assert opened("train").fingerprint(cache) == seen[0]
    monkeypatch.setattr(package_photographs.PIL, "__version__", "0.0")
    seen.append(opened("train").fingerprint(cache))
    assert len(set(seen)) == 4


def test_wrong_options_are_errors():
    for options, message in [
        ({"photographs": ["lena"]}, "photographs must be of astronaut, .*; got lena"),
        ({"photographs": []}, "photographs: Tuple should have at least 1 item"),
        ({"crop": 200}, r"crop must be at most block \(128\); got 200"),
        ({"size": 3}, "size: Extra inputs are not permitted"),
    ]:
        with pytest.raises(ValueError, match=message):
            opened(**options)
    with pytest.raises(ValueError, match=r"one of \['train', 'validation', 'test'\]; got 'val'"):
        opened("val")


def test_a_photograph_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "china", "sklearn/datasets/images/gone.jpg")
    with pytest.raises(ValueError, match="'china' must lie in .* package 'sklearn'; .*gone.jpg is missing"):
        opened(photographs=["china"])
    monkeypatch.setitem(PHOTOGRAPHS, "china", "no_such_package/gone.jpg")
    with pytest.raises(ValueError, match="'no_such_package'; no_such_package is missing. Install"):
        opened(photographs=["china"])
