"""Barlow Twins: two views must agree in every dimension, and no two dimensions may say the same.

Shapes: B images, 2 views, S side of a crop, D width of an embedding.
"""

from typing import Unpack

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.distortion import Jitter, PairConfig, Probability, Scale, pair
from models.heads import build_mlp, pooled, pooled_dim
from models.pretext.base import MAIN, Batch, Card, Context, Output, ParameterGroup, PretextMethod
from models.regression import cross_correlation
from models.views import Draw


class BarlowTwins(PretextMethod):
    """Learn embeddings whose cross-correlation between two views is the identity.

    Source: Zbontar et al. 2021 (arXiv 2103.03230); https://github.com/facebookresearch/barlowtwins at 8e8d284.
    Differs: `off_diagonal` is the paper's 0.005; the code has 0.0051. Crops are bilinear, not bicubic.
    """

    card = Card(
        paper="Zbontar et al. 2021",
        arxiv="2103.03230",
        kind="redundancy reduction",
        views="2 views, distorted differently",
        keeps="nothing",
        verified="loss: float64 formula, lightly, closed form",
    )

    class Config(PairConfig, frozen=True, extra="forbid"):
        """Widths and weights as published; the views are BYOL's."""

        crop_scale: Scale = (0.08, 1.0)
        jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
        blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
        solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
        output_dim: PositiveInt = 8192  # and of the projector's hidden layers
        off_diagonal: PositiveFloat = 0.005  # weight of the redundancy between dimensions
        vector_rate: PositiveFloat = 0.024  # of biases and norms, times the rate of the weights: 0.0048 / 0.2

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        width = config.output_dim
        self.head = build_mlp(pooled_dim(backbone), width, width, width, last_bias=False)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give two distorted crops: "pair", (2, 3, S, S) uint8."""
        return {"pair": pair(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Squared distance of the cross-correlation from the identity, off the diagonal weighted less."""
        first, second = self.normalise(batch.views["pair"]).unbind(1)
        first_BD, second_BD = (self.head(pooled(self.backbone, images)) for images in (first, second))
        self.watch.embeddings(first_BD)
        correlation_DD = cross_correlation(all_rows(first_BD), all_rows(second_BD))
        diagonal = correlation_DD.diagonal()
        redundancy = correlation_DD.square().sum() - diagonal.square().sum()
        loss = (diagonal - 1).square().sum() + self.config.off_diagonal * redundancy
        return Output(objectives={MAIN: loss})

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Give biases and norms a rate of their own."""
        parameters = list(self.parameters())
        vectors = ParameterGroup([p for p in parameters if p.ndim <= 1], rate=self.config.vector_rate)
        return {MAIN: [ParameterGroup([p for p in parameters if p.ndim > 1]), vectors]}

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projector."""
        return {"projection": self.head}
