"""Train a network as a plain classifier of given labels: cluster ids, or true classes.

Shapes: B images, K labels, S side of the crop.
"""

from typing import Literal, Unpack

import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.backbones import Backbone
from models.heads import build_classifier
from models.pretext.base import MAIN, Batch, Card, Context, MethodConfig, Output, PretextMethod
from models.views import Draw, color_jitter, flip, grey, random_resized_crop

UNLABELLED = -1


class PseudoLabels(PretextMethod):
    """Learn the label of each image by cross-entropy, with no other signal from the teacher.

    Source: Noroozi et al. 2018 (arXiv 1805.00385), section 3: a k-way classifier from scratch. The colour
        jitter is for ClusterFit (Yan et al. 2020, arXiv 1912.03330), which uses (0.4, 0.4, 0.4, 0.2).
    """

    needs = frozenset({"num_labels"})
    rows_apart = True

    card = Card(
        paper="Noroozi et al. 2018",
        arxiv="1805.00385",
        kind="classification",
        views="1 view",
        keeps="nothing",
        verified="loss: formula",
    )

    class Config(MethodConfig, frozen=True, extra="forbid"):
        """Augmentation and head."""

        crop_size: PositiveInt = 224
        crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
        jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue
        grey_probability: float = Field(default=0.0, ge=0, le=1)
        head: Literal["linear", "fc"] = "fc"
        head_grid: PositiveInt | None = None  # cells per side of the map; None: as published

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        assert self.num_labels is not None  # the base class refuses otherwise
        self.head = build_classifier(backbone, num_classes=self.num_labels, kind=config.head, grid=config.head_grid)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give one augmented crop: "image", (3, S, S) uint8."""
        config = self.config
        view = flip(random_resized_crop(image, draw, size=config.crop_size, scale=config.crop_scale), draw)
        if config.jitter is not None:
            view = color_jitter(view, draw, strengths=config.jitter)
        return {"image": grey(view, draw, probability=config.grey_probability)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy on `batch.labels`; rows labelled -1 (too far from every cluster) teach nothing.

        Raises:
            ValueError: the batch has no labels.
        """
        if batch.labels is None:
            raise ValueError("PseudoLabels needs a label for each row. The batch has none. Join labels to it.")
        logits_BK = self.logits(self.normalise(batch.views["image"]))
        labels_B = batch.labels
        num_labelled = (labels_B != UNLABELLED).sum().clamp(min=1)
        total = F.cross_entropy(logits_BK, labels_B, ignore_index=UNLABELLED, reduction="sum")
        correct = (logits_BK.argmax(1) == labels_B).sum()
        return Output(objectives={MAIN: total / num_labelled}, metrics={"accuracy": correct / num_labelled})

    def logits(self, images: Tensor) -> Tensor:
        """Classify normalised images (B, 3, S, S): logits (B, K)."""
        logits_BK: Tensor = self.head(self.backbone(images)[self.backbone.layers[-1]])
        return logits_BK

    def heads(self) -> dict[str, nn.Module]:
        """Keep the classifier."""
        return {"classifier": self.head}
