"""DINO: agree with a slow copy of the network, which sees more of the image.

Shapes: B images, V views, K outputs.
"""

from typing import Unpack

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.distortion import Jitter, MultiCropConfig, Probability, Scale, multi_crop
from models.heads import build_mlp, pooled, pooled_dim
from models.momentum import follow, rising_momentum, slow_copy
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.pretext.swav import swapped_prediction
from models.views import Draw


class DINO(PretextMethod):
    """Learn to predict, from every view, the sharpened and centred outputs of a slow copy for the large views.

    Source: Caron et al. 2021 (arXiv 2104.14294); https://github.com/facebookresearch/dino at 7c446df.
    Differs: the weight decay is constant; crops are bilinear, not bicubic. What the code counts in epochs is a share of
        the training.
    """

    card = Card(
        paper="Caron et al. 2021",
        arxiv="2104.14294",
        kind="self-distillation",
        views="2 large and 8 small crops",
        keeps="slow copy of the network, centre",
        verified="loss and centre: float64 formula, lightly, closed form; collapse without the centre is noticed",
    )

    class Config(MultiCropConfig, frozen=True, extra="forbid"):
        """As published."""

        large_scale: Scale = (0.4, 1.0)
        small_scale: Scale = (0.05, 0.4)
        num_small: NonNegativeInt = 8
        jitter: Jitter = (0.4, 0.4, 0.2, 0.1)
        blur_probability: tuple[Probability, Probability, Probability] = (1.0, 0.1, 0.5)
        solarize_probability: tuple[Probability, Probability, Probability] = (0.0, 0.2, 0.0)
        temperature: PositiveFloat = 0.1
        slow_temperature: PositiveFloat = 0.04  # after the warm-up; above 0.07 the authors found it unstable
        slow_temperature_start: PositiveFloat = 0.04
        temperature_warmup: float = Field(default=0.3, ge=0, le=1)  # share of the training; 30 epochs of 100
        center_momentum: float = Field(default=0.9, ge=0, le=1)  # 1: no centring
        momentum: float = Field(default=0.996, ge=0, le=1)  # of the slow copy, at the start
        last_layer_frozen: float = Field(default=0.01, ge=0, le=1)  # share of the training; one epoch of 100
        hidden_dim: PositiveInt = 2048
        bottleneck_dim: PositiveInt = 256
        num_outputs: PositiveInt = 65_536

    config: Config
    slow_backbone: Backbone
    center: Tensor

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = DINOHead(
            pooled_dim(backbone),
            hidden_dim=config.hidden_dim,
            bottleneck_dim=config.bottleneck_dim,
            num_outputs=config.num_outputs,
        )
        self.slow_backbone, self.slow_head = slow_copy(backbone), slow_copy(self.head)
        self.register_buffer("center", torch.zeros(config.num_outputs))
        self._batch_center: Tensor | None = None  # of the step that is going on

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give "large", (2, 3, S, S), and "small", (num_small, 3, s, s), both uint8."""
        return multi_crop(image, draw, self.config)

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy of the slow copy's two outputs and those of every other view."""
        # The large ones first, as `multi_crop` gives them.
        views = [self._flat(views) for views in batch.views.values()]
        frozen = progress < self.config.last_layer_frozen
        logits = torch.cat([self.head(pooled(self.backbone, images), frozen=frozen) for images in views]).float()
        with torch.no_grad():
            slow = self.slow_head(pooled(self.slow_backbone, views[0])).float()
        self._batch_center = all_rows(slow).mean(0)
        targets = F.softmax((slow - self.center) / self._slow_temperature(progress), dim=1)
        self.watch.assignments(targets)
        rows = len(batch.positions)
        loss = swapped_prediction(
            logits.unflatten(0, (-1, rows)) / self.config.temperature, targets.unflatten(0, (2, rows))
        )
        return Output(objectives={MAIN: loss})

    def _flat(self, views_BV3SS: Tensor) -> Tensor:
        """Normalise views of one size, those of one number together, (V * B, 3, S, S)."""
        return self.normalise(views_BV3SS.transpose(0, 1).flatten(0, 1))

    def _slow_temperature(self, progress: float) -> float:
        config = self.config
        done = min(1.0, progress / config.temperature_warmup) if config.temperature_warmup else 1.0
        return config.slow_temperature_start + done * (config.slow_temperature - config.slow_temperature_start)

    def after_step(self, progress: float) -> None:
        """Move the centre towards the batch's, and let the slow copy follow, ever more slowly."""
        assert self._batch_center is not None  # a step begins with its loss
        self.center.lerp_(self._batch_center, 1 - self.config.center_momentum)
        momentum = rising_momentum(self.config.momentum, progress=progress)
        follow(self.slow_backbone, self.backbone, momentum=momentum)
        follow(self.slow_head, self.head, momentum=momentum)

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection."""
        return {"projection": self.head}


class DINOHead(nn.Module):
    """Three layers, unit length, then one linear layer whose rows have unit length too.

    Source: Caron et al. 2021, appendix C; the code fixes the gain of a weight normalisation at 1, which is this.
    """

    def __init__(self, inputs: int, *, hidden_dim: int, bottleneck_dim: int, num_outputs: int) -> None:
        super().__init__()
        self.mlp = build_mlp(inputs, hidden_dim, hidden_dim, bottleneck_dim, norm=False, activation=nn.GELU)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.Parameter(torch.empty(num_outputs, bottleneck_dim))
        nn.init.trunc_normal_(self.last, std=0.02)

    def forward(self, pooled_BC: Tensor, *, frozen: bool = False) -> Tensor:
        """Give logits (B, K); frozen gives the last layer no gradient."""
        last = self.last.detach() if frozen else self.last
        return F.linear(F.normalize(self.mlp(pooled_BC).float()), F.normalize(last))
