"""Features: one Zarr array a layer, written shard by shard, with the row ids and the space of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from storage.arrays import ArrayReader, ArrayWriter, read_group, write_array, write_group
from storage.artifact import Artifact
from storage.folder import FileRecord, Folder

ROW_IDS = "row_ids"
DESCRIPTION = "zarr.json"


class Features(Artifact):
    """The features of a dataset's images in one or more layers of one encoder."""

    kind: ClassVar[str] = "Features"
    # Terabytes; each chunk has its own checksum.
    verified_whole: ClassVar[bool] = False

    def _verify_file(self, file: FileRecord, *, size: int | None, deep: bool) -> None:
        # The descriptions of the arrays are small, and have no checksum of their own.
        super()._verify_file(file, size=size, deep=deep or file.path.endswith(DESCRIPTION))

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        return read_group(self.folder)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._attributes["layers"])

    @property
    def num_rows(self) -> int:
        return int(self._attributes["num_rows"])

    @property
    def shard_rows(self) -> int:
        return int(self._attributes["shard_rows"])

    def only_layer(self, layer: str | None) -> str:
        """The layer meant: the one named, or the only one there is.

        Raises:
            ValueError: no layer of that name, or none named among several.
        """
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        if layer not in self.layers:
            raise ValueError(f"layer must name one of {', '.join(self.layers)}, got {layer!r}")
        return layer

    def dim(self, layer: str) -> int:
        """The width D of a layer's vectors."""
        return int(self._attributes["layers"][layer]["dim"])

    def space(self, layer: str) -> str:
        """The feature space that a layer's vectors lie in."""
        return str(self._attributes["layers"][layer]["space"])

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """(shard number, first row, row after the last) of each shard."""
        for number, start in enumerate(range(0, self.num_rows, self.shard_rows)):
            yield number, start, min(start + self.shard_rows, self.num_rows)

    def reader(self, layer: str) -> ArrayReader:
        """Reads rows of a layer, (rows, D) float16 or float32."""
        return ArrayReader(self.folder, layer)

    def row_ids(self) -> np.ndarray:
        """The ids of all rows, (N,) of dtype S."""
        reader = ArrayReader(self.folder, ROW_IDS)
        raw = np.ascontiguousarray(reader.rows(0, self.num_rows))
        return raw.view(f"S{raw.shape[1]}").ravel()


class FeaturesWriter:
    """Writes features shard by shard; on a resume it goes on in the arrays that are there."""

    def __init__(
        self,
        folder: Folder,
        *,
        row_ids: np.ndarray,
        layers: Mapping[str, Mapping[str, Any]],
        dtype: str,
        shard_rows: int,
    ) -> None:
        """Make or reopen the arrays.

        Args:
            row_ids: (N,) of dtype S.
            layers: layer -> {"dim": D, "space": id}.
            dtype: "float16" or "float32".
        """
        if not folder.exists("zarr.json"):
            attributes = {"layers": dict(layers), "num_rows": len(row_ids), "shard_rows": shard_rows}
            write_group(folder, attributes)
        write_array(folder, ROW_IDS, row_ids.view(np.uint8).reshape(len(row_ids), row_ids.itemsize))
        self._writers = {
            layer: ArrayWriter(folder, layer, shape=(len(row_ids), facts["dim"]), dtype=dtype, shard_rows=shard_rows)
            for layer, facts in layers.items()
        }

    def write(self, shard: int, rows: Mapping[str, np.ndarray]) -> list[FileRecord]:
        """Write one shard of every layer; returns the records of its files."""
        return [record for layer, values in rows.items() for record in self._layer(layer, shard, values)]

    def _layer(self, layer: str, shard: int, values: np.ndarray) -> list[FileRecord]:
        # Records are relative to the array's store, which is the features' folder.
        return self._writers[layer].write(shard, values)
