"""Metrics: what an encoder was measured at, by which protocol, on which split."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from storage.artifact import Artifact
from storage.folder import Folder
from storage.tables import read_table, table_bytes

VALUES = "metrics.json"
OUTCOMES = "outcomes.parquet"


class Metrics(Artifact):
    """Values with their protocol, and the outcome of every test image so that two encoders can be compared in pairs."""

    kind: ClassVar[str] = "Metrics"

    @property
    def values(self) -> dict[str, Any]:
        """`protocol`, `split`, `seed`, and `scores`: name -> {value, low, high}."""
        values: dict[str, Any] = self.folder.read_json(VALUES)
        return values

    def score(self, name: str) -> float:
        return float(self.values["scores"][name]["value"])

    def outcomes(self, score: str) -> dict[str, np.ndarray]:
        """Columns row_id (dtype S) and correct (bool), of one score's test images."""
        table = read_table(self.folder, OUTCOMES, columns=["row_id", score])
        return {"row_id": table["row_id"], "correct": table[score]}


def write_metrics(
    folder: Folder, *, values: dict[str, Any], row_ids: np.ndarray, outcomes: dict[str, np.ndarray]
) -> None:
    """Write values, and per score the (N,) bool outcomes of the test rows."""
    folder.write(OUTCOMES, table_bytes({"row_id": row_ids, **outcomes}))
    folder.write_json(VALUES, values)
