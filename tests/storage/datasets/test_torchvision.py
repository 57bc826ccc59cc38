"""Datasets of torchvision by name: with files there, fetched, and refused."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torchvision.datasets

from storage.datasets.source import DatasetConfig, Source, open_source
from storage.folder import Folder
from storage.images import encode_png
from storage.stat_cache import StatCache

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], dtype=np.uint8)


def put_mnist(folder: Path, *, suffix: str = "") -> None:
    folder.mkdir(parents=True)
    for part, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        for kind, values in (("images", PIXELS[rows]), ("labels", LABELS[rows])):
            data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
            path = folder / f"{part}-{kind}-idx{values.ndim}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)


@pytest.fixture
def place(tmp_path):
    put_mnist(tmp_path / "mnist/MNIST/raw")
    return tmp_path / "mnist"


def opened(place: Path, *, split: str | None = None, **options) -> Source:
    config = DatasetConfig(name="digits", format="torchvision", split=split, options={"dataset": "MNIST", **options})
    return open_source(config, place=place)


def test_train_and_test_are_splits_and_pixels_become_png(place):
    assert [(entry.split, entry.label, entry.data) for entry in opened(place).entries()] == [
        (split, label, encode_png(image))
        for split, label, image in zip(["train"] * 3 + ["test"] * 2, LABELS, PIXELS, strict=True)
    ]
    source = opened(place, split="test")
    assert (len(source), [entry.name for entry in source.entries()]) == (2, ["test#0", "test#1"])
    assert source.classes is not None and source.classes[3] == "3 - three"


@pytest.fixture
def mirror() -> Iterator[Callable[[Path], str]]:
    """Serves a folder over HTTP, and gives its address."""
    servers: list[ThreadingHTTPServer] = []

    def serve(folder: Path) -> str:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))))
        Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.01}).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("start", [0, 2, 3, 4, 5])
def test_reading_can_begin_anywhere(place, start):
    source = opened(place)
    assert list(source.entries(start=start)) == list(source.entries())[start:]


def test_labels_may_be_left_out(place):
    source = opened(place, labels=False)
    assert ([entry.label for entry in source.entries()], source.classes) == ([None] * 5, None)


def test_missing_files_are_fetched_only_when_that_is_said(tmp_path, monkeypatch, mirror):
    put_mnist(tmp_path / "mirror", suffix=".gz")
    digests = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted((tmp_path / "mirror").iterdir())
    ]
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [mirror(tmp_path / "mirror")])
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", digests)
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ValueError, match=r"MNIST must find its files at .*place; .*options: \{download: true\}"):
        opened(place)
    assert not list(place.iterdir())
    assert [entry.label for entry in opened(place, download=True).entries()] == LABELS.tolist()
    assert len(opened(place)) == 5


def test_fetching_is_in_no_key_and_no_fingerprint(place, tmp_path):
    cache = StatCache(Folder(tmp_path / "home"))
    sources = [opened(place, download=download) for download in (False, True)]
    assert len({source.config.model_dump_json() for source in sources}) == 1
    assert len({source.fingerprint(cache) for source in sources}) == 1
    before = sources[0].fingerprint(cache)
    (place / "MNIST/raw/more").write_bytes(b"x")
    assert opened(place).fingerprint(cache) != before


@pytest.mark.parametrize("name", ["Nothing", "FakeData", "vision", "mnist", "LSUN"])
def test_what_is_no_dataset_in_a_folder_is_refused(place, name):
    with pytest.raises(ValueError, match=f"a class of torchvision.datasets .*; got '{name}'"):
        opened(place, dataset=name)


def test_an_unknown_split_is_an_error(place):
    with pytest.raises(ValueError, match=r"must be one of \['train', 'test'\] .*got 'val'"):
        opened(place, split="val")
    with pytest.raises(ValueError, match=r"must be one of \[\] .*got 'val'"):
        opened(place, split="val", dataset="ImageFolder")


def test_pixels_and_labels_that_do_not_fit_are_errors(place):
    # With these, MNIST gives tensors, and labels that are no numbers.
    for attribute, value, message in [
        ("transform", lambda image: image.tobytes(), "must give images; got bytes at train#0"),
        ("target_transform", lambda label: (label, 1), "must be class numbers; got tuple at train#0.*labels: false"),
    ]:
        source = opened(place)
        setattr(source._parts[0][1], attribute, value)
        with pytest.raises(ValueError, match=message):
            list(source.entries())


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"image ImageFolder#0 of torchvision.datasets.ImageFolder .*must be readable"):
        list(opened(tmp_path, dataset="ImageFolder").entries())
