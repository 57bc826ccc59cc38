"""IDX files as MNIST has them: parts, `.gz`, and files that are not what they say."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from storage.datasets.source import DatasetConfig, Source, open_source
from storage.images import decode, encode_png


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def pixels(count: int, *, seed: int = 0, shape: tuple[int, ...] = (5, 4)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def put(folder: Path, part: str, *, count: int = 3, suffix: str = "", dot: str = "-", **kinds) -> np.ndarray:
    images = pixels(count, seed=count, **kinds)
    labels = np.arange(count, dtype=np.uint8) % 2
    for name, values in (("images", images), ("labels", labels)):
        data = idx(values)
        path = folder / f"{part}-{name}{dot}idx{values.ndim}-ubyte{suffix}"
        path.write_bytes(gzip.compress(data) if suffix else data)
    return images


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    return open_source(DatasetConfig(name="digits", format="idx", split=split, options=options), place=place)


@pytest.mark.parametrize(("suffix", "dot"), [("", "-"), (".gz", "-"), (".gz", "."), ("", ".")])
def test_pixels_and_labels_come_back_part_by_part(tmp_path, suffix, dot):
    train, test = put(tmp_path, "train", suffix=suffix, dot=dot), put(tmp_path, "t10k", count=2, suffix=suffix, dot=dot)
    (tmp_path / "notes.txt").write_text("no part")
    entries = list(opened(tmp_path).entries())
    assert [(entry.name, entry.split, entry.label) for entry in entries] == [
        ("test#0", "test", 0), ("test#1", "test", 1),
        ("train#0", "train", 0), ("train#1", "train", 1), ("train#2", "train", 0),
    ]  # fmt: skip
    for entry, expected in zip(entries, [*test, *train], strict=True):
        np.testing.assert_array_equal(decode(entry.data), np.repeat(expected[..., None], 3, axis=2))
    assert [entry.data for entry in opened(tmp_path, split="train").entries()] == [encode_png(one) for one in train]


def test_colour_is_a_fourth_dimension(tmp_path):
    images = put(tmp_path, "train", shape=(4, 6, 3))
    np.testing.assert_array_equal(decode(next(opened(tmp_path).entries()).data), images[0])


@pytest.mark.parametrize("start", range(7))
def test_reading_can_begin_anywhere(tmp_path, start):
    put(tmp_path, "train"), put(tmp_path, "t10k", count=2, suffix=".gz")
    source = opened(tmp_path)
    assert len(source) == 5
    assert list(source.entries(start=start)) == list(source.entries())[start:]


def test_labels_may_be_left_out_and_must_else_be_there(tmp_path):
    put(tmp_path, "emnist-letters-train")
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").unlink()
    entries = opened(tmp_path, labels=False, split="emnist-letters-train").entries()
    assert [entry.label for entry in entries] == [None] * 3
    with pytest.raises(ValueError, match=r"the labels of .*must lie beside it as emnist-letters-train-labels-idx1"):
        opened(tmp_path)


def test_a_file_beside_its_own_gz_is_one_part(tmp_path):
    put(tmp_path, "train"), put(tmp_path, "train", suffix=".gz")
    assert len(opened(tmp_path)) == 3


def test_as_many_labels_as_images_are_needed(tmp_path):
    put(tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(ValueError, match="must hold one label for each of the 3 images of .*; got 2"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "it is cut short"),
        (lambda data: data[:9], "it is cut short"),
        (lambda data: data[:-1], "it is cut short"),
        (lambda data: b"\x1f" + data[1:], "it begins with 1f000803"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "it begins with 00000d03"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], r"its shape is \(3, 4294967295, 4294967295\)"),
        (lambda data: data[:8] + b"\0" * 8 + data[16:], r"its shape is \(3, 0, 0\)"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_is_named(tmp_path, damage, reason, suffix):
    put(tmp_path, "train", suffix=suffix)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    data = damage(gzip.decompress(path.read_bytes()) if suffix else path.read_bytes())
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(ValueError, match=f"images-idx3-ubyte{suffix} must be an intact IDX file of bytes: .*{reason}"):
        list(opened(tmp_path).entries())


def test_damaged_compression_is_named(tmp_path):
    put(tmp_path, "train", suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (b"no gzip", path.read_bytes()[:-6]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="must be an intact IDX file"):
            list(opened(tmp_path).entries())


def test_a_file_as_place_and_an_unknown_split_are_errors(tmp_path):
    put(tmp_path, "train")
    with pytest.raises(ValueError, match="must be a folder of IDX files; got the file"):
        opened(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(ValueError, match=r"must be one of \['train'\].*got 'test'"):
        opened(tmp_path, split="test")
