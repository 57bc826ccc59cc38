"""Finetune an encoder on a labelled dataset, and measure it on the test images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt, field_validator

from models.collective import all_rows, mine, rank
from models.pretext.base import load_transfer
from models.transfer.pseudo_labels import PseudoLabels
from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder
from storage.metrics import Metrics, write_metrics
from tasks.loading import batches, central_pixels, in_order
from tasks.probe_features import require_same_classes
from tasks.runtime import Runtime
from tasks.scoring import accuracy_score
from tasks.stage import Work, stage
from tasks.training import TrainingConfig, TrainingSettings, build_method, fit, full_options

PROTOCOL = "finetune-classification/1"
METHOD = "pseudo_labels"


class FinetuneEncoderConfig(TrainingSettings, frozen=True, extra="forbid"):
    """Settings of the finetuning; the network is the encoder's own."""

    architecture: None = Field(None, description="Always the encoder's.")
    method: str = Field(METHOD, pattern=METHOD, description="A classifier; here of true labels.")
    size: PositiveInt = Field(224, description="Side of the central crop of a test image, in pixels.")
    resize: PositiveInt = Field(256, description="Shorter side of a test image before the crop, in pixels.")

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any]) -> dict[str, Any]:
        return full_options(PseudoLabels, options)


def _method_version(config: FinetuneEncoderConfig, _runtime: Runtime) -> Mapping[str, str]:
    return {f"method {config.method}": str(PseudoLabels.version)}


@stage(produces=Metrics, version=1, ingredients=_method_version, splits=lambda _config: True)
def finetune_encoder(
    config: FinetuneEncoderConfig,
    work: Work,
    *,
    encoder: Encoder,
    train_images: DatasetIndex,
    test_images: DatasetIndex,
) -> None:
    """Only the convolutional layers travel: the classifier is made anew (Noroozi et al. 2018)."""
    require_same_classes(train_images, test_images)
    description = encoder.description()
    # The encoder wants its pixels as it was trained on them.
    own = {"architecture": description["architecture"], "options": {**config.options, **description["normalisation"]}}
    training = TrainingConfig.model_validate(config.model_dump(include=set(TrainingSettings.model_fields)) | own)
    method = build_method(
        load_transfer(METHOD), training, num_rows=train_images.num_rows, num_labels=len(train_images.classes or ())
    )
    assert isinstance(method, PseudoLabels)
    method.backbone.load_state_dict(encoder.backbone_weights(), strict=True)
    fit(training, work, method=method, images=train_images, labels=train_images.labels())
    correct_N = _predict(config, work, method=method, images=test_images) == test_images.labels()
    score = accuracy_score(correct_N)
    work.log({"finetuned": score["value"]}, step=config.epochs)
    values = {
        "protocol": PROTOCOL,
        "split": test_images.source.split,
        "seed": config.seed,
        "scores": {"finetuned": score},
    }
    if rank() == 0:
        write_metrics(work.data, values=values, row_ids=test_images.row_ids(), outcomes={"finetuned": correct_N})


def _predict(config: FinetuneEncoderConfig, work: Work, *, method: PseudoLabels, images: DatasetIndex) -> np.ndarray:
    """The class of each image, (N,) int64."""
    method.to(work.runtime.torch_device).eval()
    rows = work.runtime.batch_rows
    starts = mine(range(0, images.num_rows, rows))
    places = (
        place for first in starts for place in in_order(first, min(first + rows, images.num_rows), batch_rows=rows)
    )
    viewer = partial(central_pixels, size=config.size, resize=config.resize)
    with torch.inference_mode():
        predicted = [
            method.logits(method.normalise(batch.views["image"])).argmax(1).cpu().numpy()
            for batch in batches(images, places, viewer=viewer, runtime=work.runtime)
        ]
    return all_rows(np.concatenate([np.empty(0, np.int64), *predicted]))
