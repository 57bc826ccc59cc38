"""Centroids: the cluster centres of a feature space, and how they came about."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from storage.arrays import ArrayReader, read_group, write_array, write_group
from storage.artifact import Artifact
from storage.folder import Folder


class Centroids(Artifact):
    """K cluster centres, the number of rows nearest to each, and the record of the iterations."""

    kind: ClassVar[str] = "Centroids"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`layer`, `space`, `normalise`, `inertia` of each iteration, `empty` clusters and what became of them, ..."""
        return read_group(self.folder)

    @property
    def space(self) -> str:
        return str(self.facts["space"])

    @property
    def layer(self) -> str:
        return str(self.facts["layer"])

    def centroids(self) -> np.ndarray:
        """(K, D) float32."""
        return self._read("centroids")

    def sizes(self) -> np.ndarray:
        """Rows nearest to each centroid, (K,) int64."""
        return self._read("sizes")

    def _read(self, name: str) -> np.ndarray:
        reader = ArrayReader(self.folder, name)
        return reader.rows(0, reader.shape[0])


def write_centroids(folder: Folder, *, centroids: np.ndarray, sizes: np.ndarray, facts: dict[str, Any]) -> None:
    """Write centroids, (K, D) float32, and sizes, (K,) int64."""
    if not folder.exists("zarr.json"):
        write_group(folder, facts)
    write_array(folder, "centroids", np.ascontiguousarray(centroids, dtype=np.float32))
    write_array(folder, "sizes", np.ascontiguousarray(sizes, dtype=np.int64))
