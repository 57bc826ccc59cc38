"""SimSiam: predict the other view of an image, with nothing to compare it with.

Shapes: B images, 2 views, S side of a crop, D width of an embedding.
"""

from typing import Unpack

from pydantic import PositiveInt
from torch import Tensor, nn

from models.backbones import Backbone
from models.distortion import PairConfig, pair
from models.heads import build_mlp, pooled, pooled_dim
from models.pretext.base import MAIN, Batch, Card, Context, Output, ParameterGroup, PretextMethod
from models.regression import cosine_to
from models.views import Draw


class SimSiam(PretextMethod):
    """Learn to predict one view's embedding from the other's; no gradient reaches the target, or all would collapse.

    Source: Chen and He 2021 (arXiv 2011.10566); https://github.com/facebookresearch/simsiam at a7bc177.
    Differs: the last BatchNorm of a residual block starts at 1, as everywhere here, not at 0.
    """

    card = Card(
        paper="Chen and He 2021",
        arxiv="2011.10566",
        kind="predictive",
        views="2 views",
        keeps="nothing",
        verified="loss: float64 formula; no gradient into targets; collapse without the stop is noticed",
    )

    class Config(PairConfig, frozen=True, extra="forbid"):
        """Widths as published; the views are MoCo v2's."""

        output_dim: PositiveInt = 2048  # and of the projector's hidden layers
        predictor_dim: PositiveInt = 512

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        width = config.output_dim
        self.head = build_mlp(pooled_dim(backbone), width, width, width, last_norm="plain")
        self.predictor = build_mlp(width, config.predictor_dim, width)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give two distorted crops: "pair", (2, 3, S, S) uint8."""
        return {"pair": pair(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Minus the mean cosine of predictions and targets, over both directions; from -1 to 1."""
        first, second = self.normalise(batch.views["pair"]).unbind(1)
        first_BD, second_BD = (self.head(pooled(self.backbone, images)) for images in (first, second))
        self.watch.embeddings(first_BD)
        ahead, back = cosine_to(self.predictor(first_BD), second_BD), cosine_to(self.predictor(second_BD), first_BD)
        return Output(objectives={MAIN: -(ahead + back) / 2})

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Keep the predictor's rate constant: it should always fit the embeddings of now (the paper's appendix)."""
        slow = [*self.backbone.parameters(), *self.head.parameters()]
        return {MAIN: [ParameterGroup(slow), ParameterGroup(list(self.predictor.parameters()), scheduled=False)]}

    def heads(self) -> dict[str, nn.Module]:
        """Keep projector and predictor."""
        return {"projection": self.head, "prediction": self.predictor}
