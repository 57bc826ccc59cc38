"""The same steps on a Ray cluster of two nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from storage.encoders import Encoder
from storage.features import Features
from tasks.cluster_features import cluster_features
from tasks.ranks import RankLost
from tasks.train_pretext import train_pretext
from tests.tasks.rank_bench import CLUSTER, LOST, TRAIN, Bench, killed, of_ray, rank_process, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two nodes with room for one rank each, as on two machines."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster()
        for _ in range(2):
            nodes.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
        patch.setenv("RAY_ADDRESS", nodes.address)
        yield
        nodes.shutdown()


def test_clusters_are_the_same_bytes(bench: Bench, features: Features) -> None:
    alone = bench.run(cluster_features, CLUSTER, features=features)
    bench.again(alone)
    assert bench.run(cluster_features, CLUSTER, features=features, ranks=2, ranks_engine="ray").digest == alone.digest


def test_training_goes_on_after_a_rank_was_killed(bench: Bench, index: Any) -> None:
    alone = bench.run(train_pretext, TRAIN, images=index)
    weights_alone = weights(alone)
    bench.again(alone)
    checkpoint = bench.home / "store" / "work" / alone.key / "state" / "checkpoint.pt"
    on_ray = {"ranks": 2, "ranks_engine": "ray"}
    with pytest.raises(RankLost, match=LOST), killed(of_ray, when=checkpoint.exists):
        bench.run(train_pretext, TRAIN, images=index, checkpoint_seconds=0, **on_ray)
    again: Encoder = bench.run(train_pretext, TRAIN, images=index, **on_ray)
    np.testing.assert_allclose(weights(again), weights_alone, atol=1e-3)


class Terminate:
    """SIGTERM as soon as there is progress."""

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Terminated(BaseException):
    """What the process itself makes of a SIGTERM."""


def raise_terminated(number: int, _frame: Any) -> None:
    raise Terminated


def test_a_terminated_training_keeps_a_checkpoint(bench: Bench, index: Any) -> None:
    config = TRAIN.model_copy(update={"epochs": 400})
    on_ray = {"ranks": 2, "ranks_engine": "ray", "checkpoint_seconds": 1000}
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        with pytest.raises(Terminated):
            bench.run(train_pretext, config, images=index, reporter=Terminate(), **on_ray)
    finally:
        signal.signal(signal.SIGTERM, before)
    (state,) = bench.home.glob("store/work/*/state")
    # Only the signal wrote one.
    assert (state / "checkpoint.pt").exists()
    assert rank_process(of_ray) is None
