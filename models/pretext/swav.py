"""SwAV: predict which prototypes another view of the image was assigned to.

Shapes: B images, V views, D width of an embedding, K prototypes.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.contrast import Queue
from models.distortion import Jitter, MultiCropConfig, multi_crop
from models.heads import build_mlp, pooled, pooled_dim
from models.precision import full_precision
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.sinkhorn import sinkhorn
from models.views import Draw


class SwAV(PretextMethod):
    """Learn prototypes and embeddings so that a large view's code can be told from every other view.

    Source: Caron et al. 2020 (arXiv 2006.09882); https://github.com/facebookresearch/swav at 06b1b7c.
    Differs: the queue fills from the first step, and is used from `queue_from` on; the code begins to fill it there.
        Both it and the freeze of the prototypes are given as shares of the training, not in epochs or steps.
    """

    card = Card(
        paper="Caron et al. 2020",
        arxiv="2006.09882",
        kind="clustering",
        views="2 large and 6 small crops",
        keeps="prototypes; a queue if asked for",
        verified="loss and Sinkhorn: float64 formula, lightly, closed form; frozen prototypes; queue",
    )

    class Config(MultiCropConfig, frozen=True, extra="forbid"):
        """As published for large batches; a batch of 256 has queue_rows 3840."""

        jitter: Jitter = (0.8, 0.8, 0.8, 0.2)
        num_prototypes: PositiveInt = 3000
        temperature: PositiveFloat = 0.1
        epsilon: PositiveFloat = 0.05  # of the codes
        iterations: PositiveInt = 3  # of Sinkhorn's scaling
        prototypes_frozen: float = Field(default=0.005, ge=0, le=1)  # share of the training; one epoch of 200
        queue_rows: NonNegativeInt = 0  # of each large view; 0: the batch alone
        queue_from: float = Field(default=0.075, ge=0, le=1)  # share of the training; epoch 15 of 200
        hidden_dim: PositiveInt = 2048
        output_dim: PositiveInt = 128

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = build_mlp(pooled_dim(backbone), config.hidden_dim, config.output_dim)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.num_prototypes, config.output_dim)))
        self.queue = Queue(config.queue_rows, 2, config.output_dim) if config.queue_rows else None
        self._large: Tensor | None = None  # embeddings of the step that is going on, (B, 2, D)

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give "large", (2, 3, S, S), and "small", (num_small, 3, s, s), both uint8."""
        return multi_crop(image, draw, self.config)

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy of each large view's code and every other view's scores; one pass for each size of view."""
        # The large ones first, as `multi_crop` gives them.
        embeddings_VBD = torch.cat([self._embed(views) for views in batch.views.values()])
        prototypes_KD = self.prototypes.detach() if progress < self.config.prototypes_frozen else self.prototypes
        with full_precision(embeddings_VBD.device):
            scores_VBK = embeddings_VBD @ prototypes_KD.T
        self._large = all_rows(embeddings_VBD[:2].detach().transpose(0, 1))
        codes_2BK = torch.stack([self._codes(index, scores_VBK[index].detach(), progress) for index in range(2)])
        self.watch.embeddings(embeddings_VBD[0])
        self.watch.assignments(F.softmax(scores_VBK[:2].detach().flatten(0, 1) / self.config.temperature, dim=1))
        return Output(objectives={MAIN: swapped_prediction(scores_VBK / self.config.temperature, codes_2BK)})

    def _embed(self, views_BV3SS: Tensor) -> Tensor:
        """Embed views of one size, (V, B, D) of unit length."""
        images = self.normalise(views_BV3SS.transpose(0, 1).flatten(0, 1))
        embeddings = F.normalize(self.head(pooled(self.backbone, images)).float())
        return embeddings.view(-1, len(views_BV3SS), self.config.output_dim)

    def _codes(self, index: int, scores_BK: Tensor, progress: float) -> Tensor:
        """Assign one large view of the batch, evenly together with what its queue remembers, (B, K)."""
        remembered = []
        if self.queue is not None and progress >= self.config.queue_from:
            with full_precision(scores_BK.device):
                remembered = [self.queue.rows[:, index] @ self.prototypes.detach().T]
        scores = torch.cat([all_rows(scores_BK), *remembered])
        return sinkhorn(scores, epsilon=self.config.epsilon, iterations=self.config.iterations)[: len(scores_BK)]

    def after_step(self, progress: float) -> None:
        """Bring the prototypes back to unit length, and queue the large views."""
        self.prototypes.copy_(F.normalize(self.prototypes))
        if self.queue is not None:
            assert self._large is not None  # a step begins with its loss
            self.queue.push(self._large)

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection."""
        return {"projection": self.head}


def swapped_prediction(logits_VBK: Tensor, codes_2BK: Tensor) -> Tensor:
    """Cross-entropy of the codes of views 0 and 1 with the logits of all other views, the mean over pairs and rows."""
    log_VBK = F.log_softmax(logits_VBK, dim=-1)
    pairs = [
        -(code * log_VBK[view]).sum(-1).mean()
        for index, code in enumerate(codes_2BK)
        for view in range(len(log_VBK))
        if view != index
    ]
    return torch.stack(pairs).mean()
