"""Label the images of one dataset with the clusters of another."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat

from models.collective import all_sum, rank
from models.nearest import NearestCentroid
from storage.centroids import Centroids
from storage.features import Features
from storage.labels import FACTS, UNLABELLED, Labels, write_label_shard
from tasks.shards import OpenShards
from tasks.stage import Work, stage


class SpaceMismatch(ValueError):
    """Distances between features and centroids of two spaces mean nothing."""


class AssignLabelsConfig(BaseModel, frozen=True, extra="forbid"):
    """What changes the labels; what only changes the speed is in Runtime."""

    max_distance: PositiveFloat | None = Field(
        None, description="Squared L2 distance beyond which a row stays unlabelled; none labels every row."
    )


@stage(produces=Labels, version=1, splits=lambda _config: True)
def assign_labels(config: AssignLabelsConfig, work: Work, *, features: Features, centroids: Centroids) -> None:
    """Give each row the id of its nearest centroid, with its squared distance and its margin to the second nearest.

    Raises:
        SpaceMismatch: the features come from another encoder, layer, pooling or view than the centroids.
    """
    layer = centroids.layer
    _require_same_space(features, centroids)
    nearest = NearestCentroid(
        centroids.centroids(), engine=work.runtime.kmeans_engine, device=work.runtime.torch_device
    )
    reader, row_ids = features.reader(layer), features.row_ids()
    counts = np.zeros(nearest.num_clusters, np.int64)
    shards = OpenShards(work, features.shards(), unit="rows")
    for shard, start, stop in shards.mine:
        near = nearest(reader.rows(start, stop), first_row=start)
        assert near.margin is not None
        label = near.cluster
        if config.max_distance is not None:
            label = np.where(near.distance <= config.max_distance, label, UNLABELLED)
        record = write_label_shard(
            work.data,
            shard=shard,
            row_ids=row_ids[start:stop],
            label=label,
            distance=near.distance,
            margin=near.margin,
        )
        sizes = np.bincount(label[label != UNLABELLED], minlength=len(counts))
        shards.commit((shard, start, stop), records=[record], sizes=sizes.tolist())
        counts += sizes
    counts = all_sum(counts)
    for shard in shards.committed:
        counts += np.array(work.ledger.facts(str(shard))["sizes"])
    if rank() == 0:
        work.data.write_json(FACTS, _facts(counts, features=features, centroids=centroids))


def _require_same_space(features: Features, centroids: Centroids) -> None:
    if centroids.layer not in features.layers or features.space(centroids.layer) != centroids.space:
        raise SpaceMismatch(
            f"features must lie in the space of the centroids ({centroids.layer}, {centroids.space}), got "
            + ", ".join(f"{layer} {features.space(layer)}" for layer in features.layers)
            + "; extract them with the encoder, layer, pooling and view that the centroids were made with"
        )


def _facts(counts: np.ndarray, *, features: Features, centroids: Centroids) -> dict[str, Any]:
    return {
        "num_clusters": len(counts),
        "num_rows": features.num_rows,
        "num_labelled": int(counts.sum()),
        "sizes": counts.tolist(),
        "space": centroids.space,
    }
