"""WebDataset shards: samples of several files, labels, patterns, and what does not fit."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, Source, open_source


def shard(path: Path, **files: bytes) -> Path:
    """A shard with these files, `_` for the dots in their names."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    return open_source(DatasetConfig(name="web", format="webdataset", split=split, options=options), place=place)


@pytest.fixture
def shards(tmp_path):
    shard(tmp_path / "train-000000.tar", a_cls=b"1", a_jpg=b"A", a_json=b'{"label": 3}', b_png=b"B", b_cls=b" 0\n")
    shard(tmp_path / "train-000001.tar.gz", c_jpg=b"C", c_cls=b"2")
    shard(tmp_path / "test-000000.tgz", d_jpg=b"D", d_cls=b"1", note_txt=b"no sample", e_seg_png=b"a mask", e_jpg=b"E")
    (tmp_path / "README.md").write_text("not a shard")
    return tmp_path


def test_samples_are_read_shard_by_shard_with_the_label_of_their_cls_file(shards):
    source = opened(shards, split="train")
    assert [entry[:4] for entry in source.entries()] == [
        ("train-000000.tar#a", "train", 1, b"A"), ("train-000000.tar#b", "train", 0, b"B"),
        ("train-000001.tar.gz#c", "train", 2, b"C"),
    ]  # fmt: skip
    assert (len(source), source.classes) == (3, None)


def test_only_samples_with_an_image_count_and_a_label_may_be_missing(shards):
    rows = [(entry.name, entry.label, entry.data) for entry in opened(shards, split="test").entries()]
    assert rows == [("test-000000.tgz#d", 1, b"D"), ("test-000000.tgz#e", None, b"E")]


@pytest.mark.parametrize("start", range(6))
def test_reading_can_begin_anywhere(shards, start):
    source = opened(shards)
    assert len(source) == 5
    assert list(source.entries(start=start)) == list(source.entries())[start:]


def test_labels_may_be_a_field_of_json_or_left_out(shards):
    assert [entry.label for entry in opened(shards, label="json.label", split="train").entries()] == [3, None, None]
    assert [entry.label for entry in opened(shards, label=None, split="train").entries()] == [None] * 3


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-*.tar", ["train-000000.tar"]),
        ("train-{000000..000001}.{tar,tar.gz}", None),
        ("{test,train}-000000.*", ["test-000000.tgz", "train-000000.tar"]),
        ("t*-000000.t*", ["test-000000.tgz", "train-000000.tar"]),
    ],
)
def test_patterns_name_shards_as_a_shell_does(shards, pattern, names):
    if names is None:
        with pytest.raises(ValueError, match=r"must be there; .*train-000000.tar.gz is missing"):
            opened(shards, shards=pattern)
        return
    assert [name for name, _ in opened(shards, shards=pattern).files()] == names


def test_a_shard_that_is_counted_and_missing_is_an_error(shards):
    with pytest.raises(ValueError, match=r"train-000001.tar is missing. Fetch it, or correct shards"):
        opened(shards, shards="train-{000000..000001}.tar")


def test_one_shard_is_a_dataset_and_numbers_alone_are_no_split(tmp_path):
    source = opened(shard(tmp_path / "00012.tar", x_jpg=b"X"))
    assert [entry[:4] for entry in source.entries()] == [("00012.tar#x", None, None, b"X")]


@pytest.mark.parametrize("label", [b"cat", b"-1", b"1.5", b"true", b"[1, 2]", b"\xff"])
def test_a_label_that_is_no_number_is_named(tmp_path, label):
    source = opened(shard(tmp_path / "train-0.tar", a_jpg=b"A", a_cls=label))
    with pytest.raises(ValueError, match=r"the label of train-0.tar#a .*whole number from 0 on; got .*json.FIELD"):
        list(source.entries())


def test_json_that_is_none_is_named(tmp_path):
    for content in (b"{", json.dumps([1]).encode()):
        with pytest.raises(ValueError, match="the label of train-0.tar#a"):
            list(opened(shard(tmp_path / "train-0.tar", a_jpg=b"A", a_json=content), label="json.label").entries())


def test_a_damaged_shard_is_named(shards):
    path = shards / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match="train-000000.tar must be an intact tar archive"):
        opened(shards, split="train")
