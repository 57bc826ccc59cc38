"""Run an encoder over a dataset and keep what chosen layers say, shard by shard."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, Field, PositiveInt, model_validator

from models.backbones import Architecture, Backbone, Pooling, build_backbone, pool_features
from models.collective import first_rank_first
from models.precision import Precision, autocast
from models.pretext.base import Batch
from models.views import normalise
from storage.dataset_index import DatasetIndex
from storage.encoders import Encoder, space_id
from storage.features import Features, FeaturesWriter
from tasks.loading import batches, central_pixels, in_order
from tasks.shards import OpenShards
from tasks.stage import Work, stage

# The name of any backbone's deepest layer, so that networks of two families can be measured by one setting.
LAST = "last"


class ExtractFeaturesConfig(BaseModel, frozen=True, extra="forbid"):
    """What is extracted, and from which view of an image."""

    layers: tuple[str, ...] = Field(
        min_length=1, description="Layers of the backbone, all in one pass; `last` is the deepest of any backbone."
    )
    pooling: Pooling = Field(Pooling(), description="How a layer's map becomes a vector.")
    size: PositiveInt = Field(224, description="Side of the central crop, in pixels.")
    resize: PositiveInt = Field(256, description="Shorter side before the crop, in pixels.")
    dtype: Literal["float16", "float32"] = Field("float16", description="Of the stored features.")
    precision: Precision = Field("float32", description="Of the forward pass.")
    shard_rows: PositiveInt = Field(4096, description="Rows that are written and committed at once.")

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.size > self.resize:
            raise ValueError(f"size must be at most resize, got {self.size} and {self.resize}; lower the first")
        return self


@stage(produces=Features, version=1, splits=lambda _config: True)
def extract_features(config: ExtractFeaturesConfig, work: Work, *, encoder: Encoder, images: DatasetIndex) -> None:
    """Extract the features of every image, in the order of the index."""
    normalisation = encoder.description()["normalisation"]
    backbone = load_backbone(encoder).to(work.runtime.torch_device).to(memory_format=torch.channels_last).eval()
    layers = _layers(config, backbone)
    dims = {layer: backbone.channels[layer] * config.pooling.grid**2 for layer in layers}
    with first_rank_first():
        writer = _writer(config, work, dims=dims, encoder=encoder, images=images)
    # One shard is all that is held: the next is written over the last.
    values = {layer: np.empty((config.shard_rows, dim), config.dtype) for layer, dim in dims.items()}
    starts = range(0, images.num_rows, config.shard_rows)
    bounds = ((shard, start, min(start + config.shard_rows, images.num_rows)) for shard, start in enumerate(starts))
    shards = OpenShards(work, bounds, unit="images")
    places = (
        place for _, start, stop in shards.mine for place in in_order(start, stop, batch_rows=work.runtime.batch_rows)
    )
    viewer = partial(central_pixels, size=config.size, resize=config.resize)
    stream = batches(images, places, viewer=viewer, runtime=work.runtime)
    for shard, start, stop in shards.mine:
        filled = {layer: whole[: stop - start] for layer, whole in values.items()}
        _forward(stream, filled, backbone=backbone, config=config, normalisation=normalisation)
        _require_finite(filled, first_row=start, images=images, dtype=config.dtype)
        shards.commit((shard, start, stop), records=writer.write(shard, filled))


def load_backbone(encoder: Encoder) -> Backbone:
    """Build an encoder's backbone and give it the encoder's weights, all of them and no others.

    Raises:
        RuntimeError: the weights do not fit the architecture.
    """
    backbone = build_backbone(Architecture.model_validate(encoder.description()["architecture"]))
    backbone.load_state_dict(encoder.backbone_weights(), strict=True)
    return backbone


def _layers(config: ExtractFeaturesConfig, backbone: Backbone) -> tuple[str, ...]:
    """The layers asked for, by their own names.

    Raises:
        ValueError: the backbone has no such layer.
    """
    layers = tuple(backbone.layers[-1] if layer == LAST else layer for layer in config.layers)
    unknown = [layer for layer in layers if layer not in backbone.layers]
    if unknown:
        raise ValueError(
            f"layers of {backbone.architecture.name} must be some of {', '.join(backbone.layers)} or {LAST}, "
            f"got {', '.join(unknown)}"
        )
    return tuple(dict.fromkeys(layers))


def _writer(
    config: ExtractFeaturesConfig,
    work: Work,
    *,
    dims: dict[str, int],
    encoder: Encoder,
    images: DatasetIndex,
) -> FeaturesWriter:
    view = {"size": config.size, "resize": config.resize, "normalisation": encoder.description()["normalisation"]}
    pooling = config.pooling.model_dump(mode="json")
    facts = {
        layer: {"dim": dim, "space": space_id(encoder, layer=layer, pooling=pooling, view=view)}
        for layer, dim in dims.items()
    }
    return FeaturesWriter(
        work.data, row_ids=images.row_ids(), layers=facts, dtype=config.dtype, shard_rows=config.shard_rows
    )


def _forward(
    stream: Iterator[Batch],
    values: dict[str, np.ndarray],
    *,
    backbone: Backbone,
    config: ExtractFeaturesConfig,
    normalisation: dict[str, list[float]],
) -> None:
    """Fill `values`, layer -> (rows, D), with the pooled features of the next images."""
    device = next(backbone.parameters()).device
    layers = tuple(values)
    done, rows = 0, len(values[layers[0]])
    with torch.inference_mode():
        while done < rows:
            batch = next(stream)
            pixels = normalise(batch.views["image"], **normalisation).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision=config.precision):
                maps = backbone(pixels, layers)
            for layer in layers:
                pooled = pool_features(maps[layer].float(), config.pooling)
                values[layer][done : done + len(pixels)] = pooled.cpu().numpy()
            done += len(pixels)


def _require_finite(values: dict[str, np.ndarray], *, first_row: int, images: DatasetIndex, dtype: str) -> None:
    for layer, rows in values.items():
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            row = first_row + int(np.argmax(bad))
            row_id = images.row_ids()[row].decode()
            remedy = "set dtype: float32" if dtype == "float16" else "train the encoder again with a smaller rate"
            raise ValueError(
                f"features must be finite; layer {layer} of row {row} ({row_id}) is not, and {bad.sum()} rows of "
                f"this shard; {remedy}"
            )
