"""Train a network on a pretext task: no labels, only images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from models.pretext.base import load_method
from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder
from tasks.runtime import Runtime
from tasks.stage import Work, stage
from tasks.training import TrainingConfig, build_method, fit, full_options, keep_encoder, rows_apart


class TrainPretextConfig(TrainingConfig, frozen=True, extra="forbid"):
    """Settings of a pretext training."""

    method: str = Field("rotation", description="The pretext task: name of a file in models/pretext.")

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: Any) -> dict[str, Any]:
        return full_options(load_method(info.data["method"]), options) if "method" in info.data else options


def _method_version(config: TrainPretextConfig, _runtime: Runtime) -> Mapping[str, str]:
    return {f"method {config.method}": str(load_method(config.method).version)}


def _splits(config: TrainPretextConfig) -> bool:
    return config.epochs > 0 and rows_apart(load_method(config.method))


@stage(produces=Encoder, version=1, ingredients=_method_version, splits=_splits)
def train_pretext(config: TrainPretextConfig, work: Work, *, images: DatasetIndex) -> None:
    """Train by the config's method."""
    method = build_method(load_method(config.method), config, num_rows=images.num_rows)
    if config.epochs > 0:
        fit(config, work, method=method, images=images)
    keep_encoder(config, work, method=method)
