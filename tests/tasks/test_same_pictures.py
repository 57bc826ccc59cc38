"""The same pictures in every format: the same rows, the same content, the same features."""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder
from storage.images import encode_png
from storage.store import Store
from tasks.extract_features import ExtractFeaturesConfig, extract_features
from tasks.index_dataset import IndexDatasetConfig, index_dataset
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, run_stage
from tasks.train_pretext import TrainPretextConfig, train_pretext

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 16, 3), dtype=np.uint8)
# One of them twice: under one label, and in an order that differs from format to format.
PIXELS[7] = PIXELS[1]
LABELS = [number % 3 for number in range(12)]
BOXES = [(number, number + 1, number + 3, number + 5) for number in range(12)]
PICTURES = [encode_png(one) for one in PIXELS]
ENCODER = {
    "architecture": {"name": "alexnet_bn", "stem": "small", "width": 0.0625},
    "options": {"crop_size": 32, "head": "linear"}, "epochs": 0,
}  # fmt: skip


def image_folder(place: Path) -> dict[str, Any]:
    for number, data in enumerate(PICTURES):
        path = place / str(LABELS[number]) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {}


def tar(place: Path) -> dict[str, Any]:
    with tarfile.open(place, "w:gz") as archive:
        for number, data in reversed(list(enumerate(PICTURES))):
            add(archive, f"top/{LABELS[number]}/{number}.png", data)
    return {"root": "top"}


def webdataset(place: Path) -> dict[str, Any]:
    place.mkdir()
    for shard in range(3):
        with tarfile.open(place / f"train-{shard:06d}.tar", "w") as archive:
            for number in range(4 * shard, 4 * shard + 4):
                add(archive, f"{number:04d}.json", json.dumps({"class": LABELS[number]}).encode())
                add(archive, f"{number:04d}.png", PICTURES[number])
    return {"label": "json.class", "shards": "train-{000000..000002}.tar"}


def parquet(place: Path) -> dict[str, Any]:
    place.mkdir()
    for shard, rows in enumerate((slice(0, 5), slice(5, 12))):
        images = [{"bytes": data, "path": ""} for data in PICTURES[rows]]
        path = place / f"train-{shard:05d}-of-00002.parquet"
        pq.write_table(pa.table({"image": images, "label": LABELS[rows]}), path, row_group_size=2)
    return {}


def idx(place: Path) -> dict[str, Any]:
    place.mkdir()
    for kind, values in (("images", PIXELS), ("labels", np.array(LABELS, np.uint8))):
        data = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
        (place / f"train-{kind}-idx{values.ndim}-ubyte.gz").write_bytes(gzip.compress(data))
    return {}


def torchvision(place: Path) -> dict[str, Any]:
    image_folder(place)
    return {"dataset": "ImageFolder"}


def voc(place: Path) -> dict[str, Any]:
    folders = [place / "VOC2012" / name for name in ("JPEGImages", "Annotations")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, data in enumerate(PICTURES):
        left, top, right, bottom = BOXES[number]
        (folders[0] / f"{number}.jpg").write_bytes(data)
        (folders[1] / f"{number}.xml").write_text(
            f"<annotation><object><name>c{LABELS[number]}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object></annotation>"
        )
    return {"classes": ["c0", "c1", "c2"]}


def coco(place: Path) -> dict[str, Any]:
    (place / "annotations").mkdir(parents=True)
    (place / "train").mkdir()
    for number, data in enumerate(PICTURES):
        (place / "train" / f"{number}.jpg").write_bytes(data)
    things = [
        {"image_id": 99 - number, "category_id": 10 * LABELS[number], "bbox": [left, top, right - left, bottom - top]}
        for number, (left, top, right, bottom) in enumerate(BOXES)
    ]
    content = {
        "images": [{"id": 99 - number, "file_name": f"{number}.jpg"} for number in range(12)],
        "annotations": things[::-1], "categories": [{"id": 10 * label, "name": f"c{label}"} for label in range(3)],
    }  # fmt: skip
    (place / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return {}


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


LABELLED = [tar, webdataset, parquet, idx, torchvision]
ANNOTATED = [voc, coco]
PLACES = {tar: "all.tgz"}


class Bench:
    """Indexes and extracts what a test writes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._encoder: Encoder | None = None

    def index(self, write: Callable[[Path], dict[str, Any]]) -> DatasetIndex:
        place = self._folder / write.__name__ / PLACES.get(write, "place")
        place.parent.mkdir()
        config = IndexDatasetConfig(name=write.__name__, format=write.__name__, options=write(place), shard_rows=5)
        return run_stage(index_dataset, config, inputs={}, context=self._context(write.__name__)).artifact

    def features(self, index: DatasetIndex) -> str:
        """The digest of the features of a network with its first weights, the same for all."""
        if self._encoder is None:
            config = TrainPretextConfig.model_validate(ENCODER)
            self._encoder = run_stage(
                train_pretext, config, inputs={"images": index}, context=self._context(index.name)
            ).artifact
        settings = ExtractFeaturesConfig(layers=("last",), size=32, resize=32, shard_rows=5)
        inputs = {"encoder": self._encoder, "images": index}
        # Made anew: rows of equal content have one key, and would only be found.
        result = run_stage(extract_features, settings, inputs=inputs, context=self._context(index.name), force=True)
        assert not result.reused
        return result.artifact.digest

    def _context(self, name: str) -> Context:
        places = {path.name: next(path.iterdir()) for path in self._folder.iterdir() if path.name != "home"}
        runtime = Runtime(home=self._folder / "home", workers=0, device="cpu", data=places)
        return Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_every_format_gives_the_same_rows_content_and_features(bench: Bench) -> None:
    expected = bench.index(image_folder)
    features = bench.features(expected)
    assert expected.num_rows == 12 and len({row_id[:32] for row_id in expected.row_ids()}) == 11
    for write in LABELLED:
        index = bench.index(write)
        assert index.row_ids().tolist() == expected.row_ids().tolist(), write.__name__
        assert index.digest == expected.digest, write.__name__
        assert bench.features(index) == features, write.__name__
    annotated = [bench.index(write) for write in ANNOTATED]
    assert len({index.digest for index in annotated}) == 1 and annotated[0].digest != expected.digest
    for index in annotated:
        assert index.row_ids().tolist() == expected.row_ids().tolist(), index.name
        assert bench.features(index) == features, index.name
