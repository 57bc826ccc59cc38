"""Rotation (RotNet): by how many quarter turns was the image turned?

Shapes: B images, 4 turns, S side of the crop.
"""

from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from models.backbones import Backbone
from models.heads import build_classifier
from models.pretext.base import MAIN, Batch, Card, Context, MethodConfig, Output, PretextMethod
from models.views import Draw, flip, random_resized_crop

NUM_TURNS = 4


class Rotation(PretextMethod):
    """Learn to tell the four orientations of an image apart.

    Source: Gidaris, Singh and Komodakis 2018 (arXiv 1803.07728);
        https://github.com/gidariss/FeatureLearningRotNet dataloader.py at edafaba.
    Differs: the fully connected head has dropout as in AlexNet and VGG, not BatchNorm.
    """

    card = Card(
        paper="Gidaris et al. 2018",
        arxiv="1803.07728",
        kind="pretext",
        views="4 turns of 1 view",
        keeps="nothing",
        verified="loss: formula; turns pixel by pixel",
    )
    rows_apart = True

    class Config(MethodConfig, frozen=True, extra="forbid"):
        """Crop and mirror are all that the paper does to an image before turning it."""

        crop_size: PositiveInt = 224
        crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
        head: Literal["linear", "fc"] = "fc"
        head_grid: PositiveInt | None = None  # cells per side of the map; None: as published

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = build_classifier(backbone, num_classes=NUM_TURNS, kind=config.head, grid=config.head_grid)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give all four turns of one crop: "turns", (4, 3, S, S) uint8, turned k x 90 degrees to the left."""
        config = self.config
        crop = flip(random_resized_crop(image, draw, size=config.crop_size, scale=config.crop_scale), draw)
        return {"turns": torch.stack([torch.rot90(crop, k, (-2, -1)) for k in range(NUM_TURNS)])}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy over the four turns; the four of an image are always in the same batch."""
        turns_B43SS = batch.views["turns"]
        logits = self.head(self.backbone(self.normalise(turns_B43SS.flatten(0, 1)))[self.backbone.layers[-1]])
        target = torch.arange(NUM_TURNS, device=logits.device).repeat(len(turns_B43SS))
        return Output(
            objectives={MAIN: F.cross_entropy(logits, target)},
            metrics={"accuracy": (logits.argmax(1) == target).float().mean()},
        )

    def heads(self) -> dict[str, nn.Module]:
        """Keep the classifier of turns."""
        return {"classifier": self.head}
