"""Cluster the features of a dataset by k-means over every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field

from models.collective import mine, of_first, rank
from models.kmeans import Iteration, KMeansConfig, LloydState, cluster_health, lloyd
from models.kmeans_start import choose_start, sample_positions, take_rows
from storage.centroids import Centroids, write_centroids
from storage.features import Features
from tasks.stage import Work, stage


class ClusterFeaturesConfig(KMeansConfig, frozen=True, extra="forbid"):
    """Settings of the clustering."""

    layer: str | None = Field(None, description="Which of the extracted layers; may be left out when there is one.")


@stage(produces=Centroids, version=1, splits=lambda _config: True)
def cluster_features(config: ClusterFeaturesConfig, work: Work, *, features: Features) -> None:
    """Find the centroids; a checkpoint is kept after each iteration.

    Raises:
        ValueError: fewer (distinct) rows than clusters, no such layer, or features that are not finite.
    """
    layer = features.only_layer(config.layer)
    if config.num_clusters > features.num_rows:
        raise ValueError(
            f"num_clusters must be at most the number of rows, {features.num_rows}, got {config.num_clusters}; "
            "lower it (--set cluster_features.num_clusters=...) or cluster more images"
        )
    history = _History(work.load())
    state = history.state or LloydState(_start(features, layer, config))
    own = mine(list(features.shards()))
    passes = lloyd(
        lambda: _chunks(features, layer, shards=own),
        state,
        config,
        first_row=own[0][1] if own else 0,
        engine=work.runtime.kmeans_engine,
        device=work.runtime.torch_device,
    )
    for iteration in passes:
        if iteration.final:
            if rank() == 0:
                facts = _facts(config, features, layer=layer, history=history, iteration=iteration)
                write_centroids(work.data, centroids=iteration.state.centroids_KD, sizes=iteration.sizes_K, facts=facts)
            return
        history.add(iteration)
        work.log(
            {"inertia": iteration.inertia, "shift": iteration.shift, **cluster_health(iteration.sizes_K)},
            step=iteration.state.number,
        )
        work.progress(iteration.state.number, config.iterations, unit="iterations")
        work.save(history.to_checkpoint())


def _chunks(features: Features, layer: str, *, shards: Iterable[tuple[int, int, int]]) -> Iterator[np.ndarray]:
    reader = features.reader(layer)
    for _, start, stop in shards:
        yield reader.rows(start, stop)


def _start(features: Features, layer: str, config: KMeansConfig) -> np.ndarray:
    start_KD = np.zeros((config.num_clusters, features.dim(layer)), np.float32)
    if rank() == 0:
        positions = sample_positions(features.num_rows, size=config.sample_rows, seed=config.seed)
        sample_SD = take_rows(lambda: _chunks(features, layer, shards=features.shards()), positions)
        start_KD = choose_start(sample_SD, config)
    return of_first(start_KD)


class _History:
    """The iterations so far, as the artifact and the checkpoint tell them."""

    def __init__(self, checkpoint: dict[str, Any] | None) -> None:
        self.state: LloydState | None = None
        self.inertia: list[float] = []
        self.repairs: list[list[Any]] = []
        if checkpoint is not None:
            lloyd_state = {**checkpoint["lloyd"], "centroids_KD": checkpoint["lloyd"]["centroids_KD"].numpy()}
            self.state = LloydState(**lloyd_state)
            self.inertia = checkpoint["inertia"]
            self.repairs = checkpoint["repairs"]

    def add(self, iteration: Iteration) -> None:
        self.state = iteration.state
        self.inertia.append(iteration.inertia)
        self.repairs += [[iteration.state.number, *repair] for repair in iteration.repairs]

    def to_checkpoint(self) -> dict[str, Any]:
        assert self.state is not None
        values = self.state._asdict() | {"centroids_KD": torch.from_numpy(self.state.centroids_KD)}
        return {"lloyd": values, "inertia": self.inertia, "repairs": self.repairs}


def _facts(
    config: ClusterFeaturesConfig, features: Features, *, layer: str, history: _History, iteration: Iteration
) -> dict[str, Any]:
    return {
        "layer": layer,
        "space": features.space(layer),
        "num_rows": features.num_rows,
        "inertia": [*history.inertia, iteration.inertia],
        "empty_policy": config.empty,
        # [iteration, cluster, action, donor] of each cluster that was found empty.
        "repairs": history.repairs,
        "start": {"method": config.start, "sample_rows": min(config.sample_rows, features.num_rows)},
        "health": cluster_health(iteration.sizes_K),
    }
