"""Train a small network from scratch on the pseudo-labels of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from models.pretext.base import load_transfer
from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder
from storage.labels import UNLABELLED, Labels
from tasks.runtime import Runtime
from tasks.stage import Work, stage
from tasks.training import TrainingConfig, build_method, fit, full_options, keep_encoder, rows_apart


class TrainStudentConfig(TrainingConfig, frozen=True, extra="forbid"):
    """Settings of a student's training."""

    method: str = Field("pseudo_labels", description="How the student learns: name of a file in models/transfer.")

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        return full_options(load_transfer(info.data["method"]), options) if "method" in info.data else options


def _method_version(config: TrainStudentConfig, _runtime: Runtime) -> Mapping[str, str]:
    return {f"method {config.method}": str(load_transfer(config.method).version)}


def _splits(config: TrainStudentConfig) -> bool:
    return rows_apart(load_transfer(config.method))


@stage(produces=Encoder, version=1, ingredients=_method_version, splits=_splits)
def train_student(config: TrainStudentConfig, work: Work, *, images: DatasetIndex, labels: Labels) -> None:
    """Train on every image that has a label; rows beyond the cut-off of the labelling are left out."""
    label_N = labels.by_row_id(images.row_ids())
    method = build_method(
        load_transfer(config.method), config, num_rows=images.num_rows, num_labels=labels.num_clusters
    )
    fit(config, work, method=method, images=images, labels=label_N, positions=np.flatnonzero(label_N != UNLABELLED))
    keep_encoder(config, work, method=method)
