"""MoCo: which of many remembered images is this one?

Shapes: B images, 2 views, S side of a crop, D width of an embedding, K places of the queue.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.contrast import Queue, info_nce
from models.distortion import Jitter, PairConfig, Probability, pair
from models.heads import build_mlp, pooled, pooled_dim
from models.momentum import follow, slow_copy
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.views import Draw


class MoCoV1(PretextMethod):
    """Learn to find a view's partner, encoded by a slow copy of the network, among a queue of such encodings.

    Source: He et al. 2020 (arXiv 1911.05722); https://github.com/facebookresearch/moco at 3b42c2a.
    Differs: BatchNorm sees the keys of a batch together, without the shuffle between devices; views are made grey after
        the jitter, not before it.
    """

    card = Card(
        paper="He et al. 2020",
        arxiv="1911.05722",
        kind="contrastive",
        views="2 views",
        keeps="queue, slow copy of the network",
        verified="loss: float64 formula, lightly, closed form; queue and slow copy step by step",
    )

    class Config(PairConfig, frozen=True, extra="forbid"):
        """Views, queue and slow copy as published."""

        jitter: Jitter = (0.4, 0.4, 0.4, 0.4)
        jitter_probability: Probability = 1.0
        blur_probability: tuple[Probability, Probability] = (0.0, 0.0)
        temperature: PositiveFloat = 0.07
        queue_rows: PositiveInt = 65_536  # at least the batch size
        momentum: float = Field(default=0.999, ge=0, le=1)  # of the slow copy
        hidden_dim: PositiveInt | None = None  # of the head; None: one linear layer
        output_dim: PositiveInt = 128

    config: Config
    slow_backbone: Backbone

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        hidden = [] if config.hidden_dim is None else [config.hidden_dim]
        self.head = build_mlp(pooled_dim(backbone), *hidden, config.output_dim, norm=False)
        self.slow_backbone, self.slow_head = slow_copy(backbone), slow_copy(self.head)
        self.queue = Queue(config.queue_rows, config.output_dim)
        self._keys: Tensor | None = None  # of the step that is going on

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give two distorted crops: "pair", (2, 3, S, S) uint8."""
        return {"pair": pair(image, draw, self.config)}

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy of the key among it and the queue as the last step left it."""
        first, second = self.normalise(batch.views["pair"]).unbind(1)
        queries_BD = F.normalize(self.head(pooled(self.backbone, first)).float())
        with torch.no_grad():
            keys_BD = F.normalize(self.slow_head(pooled(self.slow_backbone, second)).float())
        self._keys = all_rows(keys_BD)
        self.watch.embeddings(queries_BD)
        loss, accuracy = info_nce(queries_BD, keys_BD, self.queue.rows, temperature=self.config.temperature)
        return Output(objectives={MAIN: loss}, metrics={"accuracy": accuracy})

    def after_step(self, progress: float) -> None:
        """Queue the keys, and let the slow copy follow."""
        assert self._keys is not None  # a step begins with its loss
        self.queue.push(self._keys)
        follow(self.slow_backbone, self.backbone, momentum=self.config.momentum)
        follow(self.slow_head, self.head, momentum=self.config.momentum)

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection."""
        return {"projection": self.head}
