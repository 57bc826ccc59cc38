"""BYOL: predict what a slow copy of the network says of another view.

Shapes: B images, 2 views, S side of a crop, D width of an embedding.
"""

from typing import Unpack

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from models.backbones import Backbone
from models.distortion import Jitter, PairConfig, Probability, Scale, pair
from models.heads import build_mlp, pooled, pooled_dim
from models.momentum import follow, rising_momentum, slow_copy
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.regression import cosine_to
from models.views import Draw


class BYOL(PretextMethod):
    """Learn to predict the slow copy's embedding of one view from the other view.

    Source: Grill et al. 2020 (arXiv 2006.07733); https://github.com/google-deepmind/deepmind-research byol/ at f5de0ed.
    Differs: crops are bilinear, not bicubic; Pillow's blur.
    """

    card = Card(
        paper="Grill et al. 2020",
        arxiv="2006.07733",
        kind="predictive",
        views="2 views, distorted differently",
        keeps="slow copy of the network",
        verified="loss: float64 formula; slow copy and its momentum in closed form",
    )

    class Config(PairConfig, frozen=True, extra="forbid"):
        """As published for ImageNet."""

        crop_scale: Scale = (0.08, 1.0)
        jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
        blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
        solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
        momentum: float = Field(default=0.996, ge=0, le=1)  # at the start; 0.99 for 100 to 300 epochs, 0.97 for 40
        hidden_dim: PositiveInt = 4096  # of projector and predictor
        output_dim: PositiveInt = 256

    config: Config
    slow_backbone: Backbone

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = build_mlp(pooled_dim(backbone), config.hidden_dim, config.output_dim, last_bias=False)
        self.predictor = build_mlp(config.output_dim, config.hidden_dim, config.output_dim, last_bias=False)
        self.slow_backbone, self.slow_head = slow_copy(backbone), slow_copy(self.head)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give two distorted crops: "pair", (2, 3, S, S) uint8."""
        return {"pair": pair(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Squared distance of unit-length predictions and targets, summed over both directions; from 0 to 8."""
        first, second = self.normalise(batch.views["pair"]).unbind(1)
        cosines = self._cosine(first, target=second) + self._cosine(second, target=first)
        return Output(objectives={MAIN: 4 - 2 * cosines})

    def _cosine(self, images: Tensor, *, target: Tensor) -> Tensor:
        embedding_BD = self.head(pooled(self.backbone, images))
        self.watch.embeddings(embedding_BD)
        with torch.no_grad():
            target_BD = self.slow_head(pooled(self.slow_backbone, target))
        return cosine_to(self.predictor(embedding_BD), target_BD)

    def after_step(self, progress: float) -> None:
        """Let the slow copy follow, ever more slowly."""
        momentum = rising_momentum(self.config.momentum, progress=progress)
        follow(self.slow_backbone, self.backbone, momentum=momentum)
        follow(self.slow_head, self.head, momentum=momentum)

    def heads(self) -> dict[str, nn.Module]:
        """Keep projector and predictor."""
        return {"projection": self.head, "prediction": self.predictor}
