"""Labels: the pseudo-label of each row, with its distance and its margin; one Parquet file a shard."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from storage.artifact import Artifact
from storage.folder import FileRecord, Folder
from storage.tables import read_table, table_bytes

FACTS = "labels.json"
# A row too far from every centroid; no student is trained on it.
UNLABELLED = -1


class Labels(Artifact):
    """Cluster ids by row id."""

    kind: ClassVar[str] = "Labels"

    @property
    def facts(self) -> dict[str, Any]:
        """`num_clusters`, `num_rows`, `num_labelled`, quantiles of distance and margin."""
        facts: dict[str, Any] = self.folder.read_json(FACTS)
        return facts

    @property
    def num_clusters(self) -> int:
        return int(self.facts["num_clusters"])

    def read(self) -> dict[str, np.ndarray]:
        """Columns row_id (dtype S), label (int32), distance and margin (float32), in the order of the features."""
        parts = [read_table(self.folder, name) for name in self.folder.files() if name.endswith(".parquet")]
        return {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}

    def by_row_id(self, row_ids: np.ndarray) -> np.ndarray:
        """The label of each of these rows, (N,) int64.

        Args:
            row_ids: (N,) of dtype S.
        Raises:
            ValueError: a row has no label: the labels belong to another dataset.
        """
        table = self.read()
        order = np.argsort(table["row_id"])
        known = table["row_id"][order]
        place = np.minimum(np.searchsorted(known, row_ids), len(known) - 1)
        missing = known[place] != row_ids
        if missing.any():
            raise ValueError(
                f"every row must have a label; {missing.sum()} of {len(row_ids)} have none, the first is "
                f"{row_ids[missing][0].decode()}. The labels were made for another dataset: run assign_labels on "
                "this one"
            )
        return table["label"][order][place].astype(np.int64)


def write_label_shard(
    folder: Folder, *, shard: int, row_ids: np.ndarray, label: np.ndarray, distance: np.ndarray, margin: np.ndarray
) -> FileRecord:
    """Write the labels of one shard of rows."""
    columns = {
        "row_id": row_ids,
        "label": label.astype(np.int32),
        "distance": distance.astype(np.float32),
        "margin": margin.astype(np.float32),
    }
    return folder.write(f"labels-{shard:06d}.parquet", table_bytes(columns))
