"""NPID (instance discrimination): which row of the dataset is this image?

Shapes: B images, S side of a crop, D width of an embedding, N rows of the dataset, K negatives.
"""

from typing import Unpack

import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.contrast import MemoryBank, NoiseContrast
from models.distortion import Jitter, Probability, SingleConfig, single
from models.heads import build_mlp, pooled, pooled_dim
from models.precision import full_precision
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.views import Draw


class NPID(PretextMethod):
    """Learn to tell every image of the dataset from all others, each remembered by one embedding.

    Source: Wu et al. 2018 (arXiv 1805.01978); https://github.com/zhirongw/lemniscate.pytorch at f7cfe29.
    Differs: without the proximal term, as the code; the images of a batch share their negatives.
    """

    card = Card(
        paper="Wu et al. 2018",
        arxiv="1805.01978",
        kind="contrastive",
        views="1 view",
        keeps="memory bank of all rows",
        verified="loss: float64 formula, closed form; bank row by row",
    )

    class Config(SingleConfig, frozen=True, extra="forbid"):
        """As published for ImageNet."""

        jitter: Jitter = (0.4, 0.4, 0.4, 0.4)
        jitter_probability: Probability = 1.0
        num_negatives: NonNegativeInt = 4096  # 0: a softmax over all rows of the dataset
        temperature: PositiveFloat = 0.07
        bank_momentum: float = Field(default=0.5, ge=0, le=1)
        output_dim: PositiveInt = 128

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = build_mlp(pooled_dim(backbone), config.output_dim)
        self.bank = MemoryBank(self.num_rows, config.output_dim, momentum=config.bank_momentum)
        self.contrast = NoiseContrast(temperature=config.temperature)
        self._seen: tuple[Tensor, Tensor] | None = None  # rows and embeddings of the step that is going on

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give one distorted crop: "image", (3, S, S) uint8."""
        return {"image": single(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Noise-contrastive estimate against drawn rows of the bank, or cross-entropy over all of them."""
        embeddings_BD = F.normalize(self.head(pooled(self.backbone, self.normalise(batch.views["image"]))).float())
        self._seen = all_rows(batch.positions), all_rows(embeddings_BD.detach())
        self.watch.embeddings(embeddings_BD)
        if self.config.num_negatives > 0:
            positives_BD, negatives_KD = self.bank.rows[batch.positions], self.bank.draw(self.config.num_negatives)
            loss = self.contrast(embeddings_BD, positives_BD, negatives_KD, num_rows=self.num_rows)
            return Output(objectives={MAIN: loss})
        with full_precision(embeddings_BD.device):
            logits_BN = embeddings_BD @ self.bank.rows.T / self.config.temperature
        return Output(objectives={MAIN: F.cross_entropy(logits_BN, batch.positions)})

    def after_step(self, progress: float) -> None:
        """Remember the batch."""
        assert self._seen is not None  # a step begins with its loss
        self.bank.update(*self._seen)

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection."""
        return {"projection": self.head}
