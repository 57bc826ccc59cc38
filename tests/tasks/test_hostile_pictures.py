"""Whatever lies in a folder: no crash, an exact quarantine, bounded memory, and the same rows in every stage."""

import logging
import resource
import sys
from pathlib import Path

import pytest

from storage.datasets.source import DatasetConfig, open_source
from storage.folder import Folder
from storage.stat_cache import StatCache
from storage.store import Store
from tasks.assign_labels import AssignLabelsConfig, assign_labels
from tasks.cluster_features import ClusterFeaturesConfig, cluster_features
from tasks.extract_features import ExtractFeaturesConfig, extract_features
from tasks.index_dataset import IndexDatasetConfig, index_dataset
from tasks.recording import NoRecorder
from tasks.reporting import Silent
from tasks.runtime import Runtime
from tasks.stage import Context, run_stage
from tasks.train_pretext import TrainPretextConfig, train_pretext
from tests.tasks.hostile_pictures import CLASSES, put_corpus

MEGABYTE = 2**20
PRETEXT = {
    "architecture": {"name": "alexnet_bn", "stem": "small", "width": 0.0625},
    "options": {"crop_size": 32, "head": "linear"}, "epochs": 1, "batch_size": 32,
}  # fmt: skip


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_a_folder_of_hostile_files_goes_through_every_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, bad = put_corpus(tmp_path / "photos")
    assert len(rows) + len(bad) >= 60
    runtime = Runtime(home=tmp_path / "home", workers=0, device="cpu", data={"photos": tmp_path / "photos"})
    context = Context(runtime, Store(runtime.store_root), NoRecorder(), Silent())
    config = {"name": "photos", "format": "image_folder", "shard_rows": 16}

    with pytest.raises(ValueError, match=rf"at most 1.00% of .*; {len(bad)} of {len(rows) + len(bad)} images"):
        run_stage(index_dataset, IndexDatasetConfig(**config), inputs={}, context=context)
    before = peak_bytes()
    with caplog.at_level(logging.WARNING):
        index = run_stage(
            index_dataset, IndexDatasetConfig(**config, max_unreadable=0.9), inputs={}, context=context
        ).artifact

    found = {name.decode() for name in index.names()}
    quarantine = index.quarantine()
    assert found == rows
    assert quarantine.keys() == bad.keys()
    assert [name for name, reason in bad.items() if reason not in quarantine[name] or not quarantine[name]] == []
    assert not any("\n" in reason or len(reason) > 300 for reason in quarantine.values())
    assert (index.classes, index.num_rows, index.num_quarantined) == (CLASSES, len(rows), len(bad))
    assert (index.repeats.rows, index.repeats.under_two_labels) == (1, 1)
    assert "nowhere.png is passed over" in caplog.text and "itself.png is passed over" in caplog.text

    encoder = run_stage(
        train_pretext, TrainPretextConfig.model_validate(PRETEXT), inputs={"images": index}, context=context
    ).artifact
    settings = ExtractFeaturesConfig(layers=("last",), size=32, resize=48, shard_rows=20)
    features = run_stage(
        extract_features, settings, inputs={"encoder": encoder, "images": index}, context=context
    ).artifact
    clusters = ClusterFeaturesConfig(num_clusters=3, iterations=2)
    centroids = run_stage(cluster_features, clusters, inputs={"features": features}, context=context).artifact
    labels = run_stage(
        assign_labels, AssignLabelsConfig(), inputs={"features": features, "centroids": centroids}, context=context
    ).artifact
    assert peak_bytes() - before < 300 * MEGABYTE
    for one in (
        features.row_ids(),
        labels.read()["row_id"],
    ):
        assert one.tolist() == index.row_ids().tolist()


def test_a_file_that_the_system_does_not_let_be_read_is_named(tmp_path: Path) -> None:
    """Not a matter of permission bits, which mean nothing to root: its own memory is refused to anybody."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to("/proc/self/mem")
    if not (tmp_path / "photos" / "a.png").is_file():
        pytest.skip("this system has no /proc/self/mem")
    source = open_source(DatasetConfig(name="photos", format="image_folder"), place=tmp_path / "photos")
    for read in (lambda: list(source.entries()), lambda: source.fingerprint(StatCache(Folder(tmp_path / "home")))):
        with pytest.raises(ValueError, match=r"a.png must be readable; the system says: Input/output error"):
            read()
