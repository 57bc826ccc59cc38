"""Measure frozen features: a linear layer, and a weighted vote of the nearest neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

from models.probes import LinearProbeConfig, fit_linear_probe, knn_predict_scores
from storage.dataset_index import DatasetIndex
from storage.features import Features
from storage.metrics import Metrics, write_metrics
from tasks.scoring import accuracy_score
from tasks.stage import Work, stage

PROTOCOL = "frozen-features/1"


class ProbeFeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """The protocol; equal for all encoders that are compared."""

    layer: str | None = Field(None, description="Which of the extracted layers; may be left out when there is one.")
    linear: LinearProbeConfig = LinearProbeConfig()
    knn_k: PositiveInt = Field(200, description="Neighbours that vote.")
    knn_temperature: PositiveFloat = Field(0.07, description="Weights are exp(cosine / temperature).")
    seed: int = Field(0, description="Of the linear layer's training.")


@stage(produces=Metrics, version=1)
def probe_features(
    config: ProbeFeaturesConfig,
    work: Work,
    *,
    train: Features,
    test: Features,
    train_images: DatasetIndex,
    test_images: DatasetIndex,
) -> None:
    """Learn from the training features and their labels; count what is right on the test features.

    Raises:
        ValueError: a dataset has no labels, or its classes are not those of the other.
    """
    require_same_classes(train_images, test_images)
    layer = train.only_layer(config.layer)
    bank, queries = _Labelled(train, train_images, layer), _Labelled(test, test_images, layer)
    num_classes = len(train_images.classes or ())
    device = work.runtime.torch_device
    linear = fit_linear_probe(
        config.linear.model_copy(update={"seed": config.seed}),
        bank.chunks,
        num_chunks=bank.num_chunks,
        num_classes=num_classes,
        device=device,
    )
    correct: dict[str, list[np.ndarray]] = {"linear": [], "knn": []}
    for done, (features_ND, label_N) in enumerate(queries.chunks(range(queries.num_chunks)), start=1):
        correct["linear"].append(linear.predict(features_ND).argmax(1) == label_N)
        votes = knn_predict_scores(
            bank.chunks(range(bank.num_chunks)),
            features_ND,
            k=config.knn_k,
            num_classes=num_classes,
            temperature=config.knn_temperature,
            device=device,
        )
        correct["knn"].append(votes.argmax(1) == label_N)
        work.progress(done, queries.num_chunks, unit="shards")
    outcomes = {name: np.concatenate(parts) for name, parts in correct.items()}
    scores = {name: accuracy_score(values) for name, values in outcomes.items()}
    work.log({name: score["value"] for name, score in scores.items()}, step=0)
    values = {
        "protocol": PROTOCOL,
        "layer": layer,
        "split": test_images.source.split,
        "seed": config.seed,
        "scores": scores,
    }
    write_metrics(work.data, values=values, row_ids=test_images.row_ids(), outcomes=outcomes)


def require_same_classes(train: DatasetIndex, test: DatasetIndex) -> None:
    """Both must be labelled, with the same classes in the same order.

    Raises:
        ValueError: they are not; says what each has.
    """
    train.require_labels()
    test.require_labels()
    if train.classes != test.classes:
        raise ValueError(
            f"training and test images must have the same classes, got {train.classes} and {test.classes}; choose two "
            "splits of one dataset"
        )


class _Labelled:
    """Chunks of a layer's features with their labels, joined by row id."""

    def __init__(self, features: Features, images: DatasetIndex, layer: str) -> None:
        if not np.array_equal(features.row_ids(), images.row_ids()):
            raise ValueError(
                "features and labels must be of the same images; they are of two datasets. Extract the features of "
                f"{images.source.name!r}, split {images.source.split!r}"
            )
        self._reader = features.reader(layer)
        self._labels = images.labels()
        self._shards = list(features.shards())

    @property
    def num_chunks(self) -> int:
        return len(self._shards)

    def chunks(self, numbers: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number in numbers:
            _, start, stop = self._shards[number]
            yield self._reader.rows(start, stop).astype(np.float32), self._labels[start:stop]
