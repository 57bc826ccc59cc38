"""A store that this version's code wrote is kept here, and every later version must open it, byte for byte.

A later version that changes what it writes keeps these files, and adds a store of its own beside them. To write one:
WRITE_GOLDEN_STORE=1 pytest tests/storage/test_golden_store.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel

from storage.artifact import Artifact, content_digest
from storage.centroids import Centroids, write_centroids
from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder, write_encoder
from storage.features import Features, FeaturesWriter
from storage.labels import FACTS, Labels, write_label_shard
from storage.metrics import Metrics, write_metrics
from storage.reports import Report, write_report_files
from storage.store import Store
from tasks.index_dataset import IndexDatasetConfig, index_dataset
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, Stage, Work, run_stage, stage

GOLDEN = Path(__file__).parent / "golden" / "store-1"
WRITE_GOLDEN = "WRITE_GOLDEN_STORE"
KINDS: dict[str, type[Artifact]] = {
    kind.kind: kind for kind in (DatasetIndex, Encoder, Features, Centroids, Labels, Metrics, Report)
}
ROW_IDS = np.array([b"aa", b"bb"], dtype="S2")
ROWS = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)


class NoConfig(BaseModel, frozen=True, extra="forbid"):
    """These stages have no settings."""


@stage(produces=Encoder, version=1)
def make_encoder(config: NoConfig, work: Work, *, images: DatasetIndex) -> None:
    description = {"architecture": {"name": "alexnet_bn"}, "normalisation": {"mean": [0.5], "std": [0.25]}}
    write_encoder(work.data, backbone={"weight": torch.ones(2)}, heads={}, description=description)


@stage(produces=Features, version=1)
def make_features(config: NoConfig, work: Work, *, encoder: Encoder) -> None:
    layers = {"last": {"dim": 2, "space": "s"}}
    FeaturesWriter(work.data, row_ids=ROW_IDS, layers=layers, dtype="float32", shard_rows=2).write(0, {"last": ROWS})


@stage(produces=Centroids, version=1)
def make_centroids(config: NoConfig, work: Work, *, features: Features) -> None:
    write_centroids(work.data, centroids=ROWS, sizes=np.array([1, 1]), facts={"layer": "last", "space": "s"})


@stage(produces=Labels, version=1)
def make_labels(config: NoConfig, work: Work, *, centroids: Centroids) -> None:
    near = np.array([0.0, 0.5])
    write_label_shard(work.data, shard=0, row_ids=ROW_IDS, label=np.array([1, 0]), distance=near, margin=near)
    work.data.write_json(FACTS, {"num_clusters": 2, "num_rows": 2, "num_labelled": 2, "sizes": [1, 1]})


@stage(produces=Metrics, version=1)
def make_metrics(config: NoConfig, work: Work, *, encoder: Encoder) -> None:
    values = {"scores": {"knn": {"value": 0.5, "low": 0.1, "high": 0.9}}, "protocol": "1", "split": "test"}
    write_metrics(work.data, values=values, row_ids=ROW_IDS, outcomes={"knn": np.array([True, False])})


@stage(produces=Report, version=1)
def make_report(config: NoConfig, work: Work, *, metrics: Metrics) -> None:
    write_report_files(work.data, page="<h1>golden</h1>", tables={"scores": []}, pictures={})


def write_golden(place: Path, photos: Path) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), (9 * number, 8, 7)).save(photos / f"{number}.png")
    runtime = Runtime(home=photos.parent / "home", store=place, device="cpu", workers=0, data={"photos": photos})
    context = Context(runtime, Store(place), NoRecorder(), Silent())

    def run(made: Stage[Any, Any], config: BaseModel | None = None, **inputs: Any) -> Any:
        return run_stage(made, config or NoConfig(), inputs=inputs, context=context).artifact

    images = run(index_dataset, IndexDatasetConfig(name="photos", format="image_folder"))
    encoder = run(make_encoder, images=images)
    run(make_labels, centroids=run(make_centroids, features=run(make_features, encoder=encoder)))
    run(make_report, metrics=run(make_metrics, encoder=encoder))


def contents(artifact: Any) -> Any:
    """What a reader of each kind gets."""
    readers = {
        "DatasetIndex": lambda: artifact.num_rows,
        "Encoder": lambda: artifact.description()["architecture"],
        "Features": lambda: (artifact.row_ids().tolist(), artifact.reader("last").rows(0, 2).tolist()),
        "Centroids": lambda: (artifact.centroids().tolist(), artifact.sizes().tolist()),
        "Labels": lambda: artifact.by_row_id(ROW_IDS).tolist(),
        "Metrics": lambda: (artifact.score("knn"), artifact.outcomes("knn")["correct"].tolist()),
        "Report": lambda: artifact.tables,
    }
    return readers[artifact.kind]()


EXPECTED = {
    "DatasetIndex": 2,
    "Encoder": {"name": "alexnet_bn"},
    "Features": ([b"aa", b"bb"], ROWS.tolist()),
    "Centroids": (ROWS.tolist(), [1, 1]),
    "Labels": [1, 0],
    "Metrics": (0.5, [True, False]),
    "Report": {"scores": []},
}


def readings(store: Store) -> dict[str, Any]:
    """Kind -> what is read of its artifact, all of which must be intact."""
    found = {}
    for key in store.complete():
        marker = store.marker(key)
        artifact = store.find(KINDS[marker.kind], key)
        assert artifact is not None
        artifact.verify(deep=True)
        assert artifact.digest == content_digest(marker.files, undigested=artifact.undigested)
        found[marker.kind] = contents(artifact)
    return found


def test_a_store_of_an_earlier_version_opens_and_is_intact() -> None:
    assert readings(Store(GOLDEN)) == EXPECTED


def test_what_is_written_today_reads_the_same(tmp_path: Path) -> None:
    place = GOLDEN if WRITE_GOLDEN in os.environ else tmp_path / "store"
    (tmp_path / "photos").mkdir()
    write_golden(place, tmp_path / "photos")
    assert readings(Store(place)) == EXPECTED
