"""Centroids: what a clustering found, kept whole."""

import numpy as np
import pytest

from storage.artifact import Marker, content_digest
from storage.centroids import Centroids, write_centroids
from storage.errors import CorruptFile
from storage.folder import Folder

CENTROIDS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
SIZES = np.array([4, 0, 2**40, 1, 7])
FACTS = {"layer": "conv4", "space": "some space", "inertia": [3.5, 2.25], "normalise": True}


def write(folder: Folder) -> Centroids:
    write_centroids(folder, centroids=CENTROIDS, sizes=SIZES, facts=FACTS)
    files = [folder.record(name) for name in folder.files()]
    marker = Marker(
        kind="Centroids",
        stage="cluster_features",
        stage_version="1",
        key="0" * 64,
        digest=content_digest(files),
        data=folder.path.name,
        config={},
        inputs={},
        external={},
        files=files,
        environment={},
        seconds=0.0,
        created="2026-01-01T00:00:00+00:00",
    )
    return Centroids(folder, marker)


def test_what_is_read_is_what_was_written(tmp_path):
    centroids = write(Folder(tmp_path))
    assert np.array_equal(centroids.centroids(), CENTROIDS) and centroids.centroids().dtype == np.float32
    assert np.array_equal(centroids.sizes(), SIZES) and centroids.sizes().dtype == np.int64
    assert centroids.facts == FACTS
    assert (centroids.layer, centroids.space) == ("conv4", "some space")


def test_equal_centroids_are_equal_bytes(tmp_path):
    assert write(Folder(tmp_path / "a")).digest == write(Folder(tmp_path / "b")).digest


def test_other_widths_and_orders_of_memory_are_converted(tmp_path):
    expected = write(Folder(tmp_path / "a")).digest
    folder = Folder(tmp_path / "b")
    wide = np.asfortranarray(CENTROIDS.astype(np.float64))
    write_centroids(folder, centroids=wide, sizes=SIZES.astype(np.uint64), facts=FACTS)
    assert content_digest([folder.record(name) for name in folder.files()]) == expected


@pytest.mark.parametrize("killed_after", range(5))
def test_a_killed_write_is_written_again_with_equal_bytes(tmp_path, monkeypatch, killed_after):
    expected = write(Folder(tmp_path / "a")).digest
    writes = []
    whole = Folder.write

    def failing(self, name, data):
        if len(writes) == killed_after:
            raise RuntimeError("killed")
        writes.append(name)
        return whole(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "write", failing)
        with pytest.raises(RuntimeError, match="killed"):
            write(Folder(tmp_path / "b"))
    assert write(Folder(tmp_path / "b")).digest == expected


@pytest.mark.parametrize("name", ["centroids/c/0/0", "sizes/c/0", "centroids/zarr.json", "zarr.json"])
def test_every_file_is_verified_whole_and_missing_ones_are_named(tmp_path, name):
    centroids = write(Folder(tmp_path))
    path = tmp_path / name
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptFile, match=f"{path} of .* differs from what was written"):
        centroids.verify(deep=centroids.verified_whole)
    path.unlink()
    with pytest.raises(CorruptFile, match=name):
        (centroids.facts, centroids.centroids(), centroids.sizes())
