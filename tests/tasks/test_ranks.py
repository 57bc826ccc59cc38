"""A step on several ranks: the same results, one clear error when a rank is lost, and nothing done twice."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from storage.encoders import Encoder
from storage.features import Features
from storage.store import Store
from tasks import ranks
from tasks.assign_labels import AssignLabelsConfig, assign_labels
from tasks.cluster_features import cluster_features
from tasks.extract_features import extract_features
from tasks.finetune_encoder import FinetuneEncoderConfig, finetune_encoder
from tasks.one_rank import Place, run_rank
from tasks.ranks import Order, RankLost
from tasks.runtime import Runtime
from tasks.stage import look_up
from tasks.train_pretext import train_pretext
from tests.rank_forks import RankForks
from tests.tasks.rank_bench import (
    CLUSTER,
    EXTRACT,
    LOST,
    ROWS,
    STEPS,
    TRAIN,
    Bench,
    killed,
    of_torchrun,
    rank_process,
    weights,
)


def be_rank(rank: int, number: int, meet: str, order: str) -> bool:
    """What a fork runs, in place of a process that torchrun starts."""
    return run_rank(Order.model_validate_json(order), Place(rank, number, rank, meet))


@pytest.fixture
def forked(rank_forks: RankForks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks without torchrun, which takes seconds to start; all else is as it is."""

    class Ended:
        trace = "nowhere"

        def ended(self, *, seconds: float) -> bool:
            return True

    @contextmanager
    def fork(order: Order, runtime: Runtime) -> Iterator[Ended]:
        rank_forks("tests.tasks.test_ranks:be_rank", order.model_dump_json(), ranks=runtime.ranks)
        yield Ended()

    monkeypatch.setattr(ranks, "torchrun", fork)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("number", [2, 4])
def test_features_centroids_and_labels_are_the_same_bytes(
    bench: Bench, index: Any, encoder: Encoder, features: Features, number: int
) -> None:
    def digest(stage: Any, config: Any, **inputs: Any) -> str:
        made = bench.run(stage, config, **inputs)
        bench.again(made)
        return str(made.digest)

    centroids = bench.run(cluster_features, CLUSTER, features=features)
    labels = digest(assign_labels, AssignLabelsConfig(), features=features, centroids=centroids)
    assert digest(assign_labels, AssignLabelsConfig(), features=features, centroids=centroids, ranks=number) == labels
    bench.again(centroids)
    assert digest(cluster_features, CLUSTER, features=features, ranks=number) == centroids.digest
    copied = Bench(bench.home.with_name(f"home{number}"), bench.images)
    assert copied.run(extract_features, EXTRACT, encoder=encoder, images=index, ranks=number).digest == features.digest


class StopAt:
    """Ctrl-C in the midst."""

    def __init__(self, done: int) -> None:
        self.done = done

    def progress(self, step: str, *, done: int, total: int, unit: str) -> None:
        if done == self.done:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("forked")
def test_training_is_that_of_one_rank_whatever_number_goes_on_with_it(bench: Bench, index: Any) -> None:
    alone = bench.run(train_pretext, TRAIN, images=index)
    weights_alone = weights(alone)
    bench.again(alone)
    with pytest.raises(KeyboardInterrupt):
        bench.run(train_pretext, TRAIN, images=index, checkpoint_seconds=0, reporter=StopAt(8))
    assert (bench.work() / "state" / "checkpoint.pt").exists()
    went_on = bench.run(train_pretext, TRAIN, images=index, ranks=3)
    assert went_on.key == alone.key
    np.testing.assert_allclose(weights(went_on), weights_alone, atol=1e-3)


@pytest.mark.usefixtures("forked")
def test_a_finetuned_encoder_is_measured_by_all_ranks(bench: Bench, index: Any, encoder: Encoder) -> None:
    config = FinetuneEncoderConfig(
        options={"crop_size": 32, "head": "linear"}, epochs=1, batch_size=10, size=32, resize=32
    )
    inputs = {"encoder": encoder, "train_images": index, "test_images": index}
    alone = bench.run(finetune_encoder, config, **inputs)
    bench.again(alone)
    assert bench.run(finetune_encoder, config, **inputs, ranks=2).digest == alone.digest


@pytest.mark.usefixtures("forked")
def test_an_error_of_the_body_comes_as_it_is(bench: Bench, index: Any, features: Features) -> None:
    # Only rank 0 chooses the start, while the others wait for it.
    config = CLUSTER.model_copy(update={"num_clusters": ROWS, "start_rows": 7})
    with pytest.raises(ValueError, match="at most the number of distinct rows in the start sample. Got 50 clusters, 7"):
        bench.run(cluster_features, config, features=features, ranks=2)
    with pytest.raises(ValueError, match="GRAFT_RANKS must be at most the rows of a training step, 2, got 3"):
        bench.run(train_pretext, TRAIN.model_copy(update={"batch_size": 2}), images=index, ranks=3)


def test_ray_is_asked_for_by_name(bench: Bench, features: Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tasks.ray_ranks", raising=False)
    with pytest.raises(ValueError, match=r"needs Ray; install it: pip install 'graft-ssl\[ray\]'"):
        bench.run(cluster_features, CLUSTER, features=features, ranks=2, ranks_engine="ray")


def test_a_method_that_looks_across_the_batch_is_trained_on_one_rank(
    bench: Bench, index: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("models.pretext.rotation.Rotation.rows_apart", False)
    with caplog.at_level(logging.WARNING):
        bench.run(train_pretext, TRAIN.model_copy(update={"epochs": 1, "seed": 1}), images=index, ranks=2)
    assert "Rotation looks at all rows of a batch at once: it is trained on one rank" in caplog.text


def test_extraction_goes_on_after_a_rank_was_killed(
    bench: Bench, index: Any, encoder: Encoder, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EXTRACT.model_copy(update={"shard_rows": 1})
    alone = bench.run(extract_features, config, encoder=encoder, images=index)
    bench.again(alone)
    ledger = bench.home / "store" / "work" / alone.key / "state" / "ledger"
    with (
        pytest.raises(RankLost, match=LOST),
        killed(of_torchrun, when=lambda: len(list(ledger.glob("*.json"))) >= 5),
    ):
        bench.run(extract_features, config, encoder=encoder, images=index, ranks=2)
    committed = {path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")}
    assert 0 < len(committed) < ROWS
    assert rank_process(of_torchrun) is None
    request.getfixturevalue("forked")
    drop, seen = Store.drop_work, {}

    def look_and_drop(store: Store, key: str) -> None:
        seen.update({path.name: path.stat().st_mtime_ns for path in ledger.glob("*.json")})
        drop(store, key)

    monkeypatch.setattr(Store, "drop_work", look_and_drop)
    again = bench.run(extract_features, config, encoder=encoder, images=index, ranks=4)
    assert again.digest == alone.digest
    # What was committed was not done again.
    assert len(seen) == ROWS and committed.items() <= seen.items()


def test_training_goes_on_after_a_rank_was_killed(bench: Bench, index: Any, request: pytest.FixtureRequest) -> None:
    config = TRAIN.model_copy(update={"seed": 2})
    key = look_up(train_pretext, config, inputs={"images": index}, runtime=Runtime()).key
    state = bench.store.work_folder(key) / "state"
    with pytest.raises(RankLost, match=LOST), killed(of_torchrun, when=lambda: state.exists("checkpoint.pt")):
        bench.run(train_pretext, config, images=index, ranks=2, checkpoint_seconds=0)
    assert 0 < state.read_json("progress.json")["done"] < STEPS
    request.getfixturevalue("forked")
    went_on = bench.run(train_pretext, config, images=index, ranks=2)
    bench.again(went_on)
    unbroken = bench.run(train_pretext, config, images=index, ranks=2)
    assert went_on.digest == unbroken.digest
