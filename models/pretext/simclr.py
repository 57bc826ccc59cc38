"""SimCLR: which other view in the batch is of the same image?

Shapes: B images, 2 views, S side of a crop.
"""

from typing import Unpack

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.contrast import nt_xent
from models.distortion import Jitter, PairConfig, Scale, pair
from models.heads import build_mlp, pooled, pooled_dim
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.views import Draw


class SimCLR(PretextMethod):
    """Learn to find the partner of each view among all views of the batch.

    Source: Chen et al. 2020 (arXiv 2002.05709); https://github.com/google-research/simclr at 383d414.
    Differs: the head is the paper's, two layers without BatchNorm; the code has three with it (`head_layers`,
        `head_norm`). The loss is the paper's mean, half of the code's. Crops are bilinear, not bicubic.
    """

    card = Card(
        paper="Chen et al. 2020",
        arxiv="2002.05709",
        kind="contrastive",
        views="2 views",
        keeps="nothing; wants large batches",
        verified="loss: float64 formula, lightly, closed form",
    )

    class Config(PairConfig, frozen=True, extra="forbid"):
        """The paper's for ImageNet; for CIFAR it has half the jitter, no blur and a temperature of 0.5."""

        crop_scale: Scale = (0.08, 1.0)
        jitter: Jitter = (0.8, 0.8, 0.8, 0.2)
        temperature: PositiveFloat = 0.1
        head_layers: int = Field(default=2, ge=2)
        head_norm: bool = False
        hidden_dim: PositiveInt = 2048
        output_dim: PositiveInt = 128

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        hidden = [config.hidden_dim] * (config.head_layers - 1)
        self.head = build_mlp(
            pooled_dim(backbone),
            *hidden,
            config.output_dim,
            norm=config.head_norm,
            last_norm="affine" if config.head_norm else "none",
        )

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give two distorted crops: "pair", (2, 3, S, S) uint8."""
        return {"pair": pair(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Normalised temperature-scaled cross-entropy over the 2B views, in one pass through the network."""
        images = self.normalise(batch.views["pair"].transpose(0, 1).flatten(0, 1))
        first_BD, second_BD = F.normalize(self.head(pooled(self.backbone, images)).float()).chunk(2)
        self.watch.embeddings(first_BD)
        loss = nt_xent(all_rows(first_BD), all_rows(second_BD), temperature=self.config.temperature)
        return Output(objectives={MAIN: loss})

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection."""
        return {"projection": self.head}
