"""PIRL: an image and its shuffled patches are one row of the dataset.

Shapes: B images, S side of the crop, 9 patches, T side of a patch, D width of an embedding.
"""

from typing import Self, Unpack

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from models.across_ranks import all_rows
from models.backbones import Backbone
from models.contrast import MemoryBank, NoiseContrast
from models.distortion import Jitter, Probability, Scale, SingleConfig, distort, single
from models.heads import build_mlp, pooled, pooled_dim
from models.pretext.base import MAIN, Batch, Card, Context, Output, PretextMethod
from models.views import Draw, flip, random_resized_crop

SIDE = 3
NUM_PATCHES = SIDE * SIDE


class PIRL(PretextMethod):
    """Learn embeddings of an image and of its shuffled patches that are both found in the memory bank.

    Source: Misra and van der Maaten 2020 (arXiv 1912.01991); https://github.com/facebookresearch/vissl at 09270ed2,
        pirl_jigsaw_4node_resnet50.yaml, nce_loss.py and img_pil_to_patches_and_image.py.
    Differs: the binary loss is the code's, with noise and a fixed Z; without the code's photometric operations
        (posterize, sharpness, solarize, autocontrast); the images of a batch share their negatives.
    """

    card = Card(
        paper="Misra and van der Maaten 2020",
        arxiv="1912.01991",
        kind="contrastive",
        views="1 view and its 9 shuffled patches",
        keeps="memory bank of all rows",
        verified="loss: float64 formula, closed form; patches by place; gradients never reach the bank",
    )

    class Config(SingleConfig, frozen=True, extra="forbid"):
        """As published, with the code's geometry of patches."""

        crop_scale: Scale = (0.08, 1.0)
        jitter: Jitter = (0.4, 0.4, 0.4, 0.2)
        jitter_probability: Probability = 1.0
        window: PositiveInt = 255  # side of the square that is cut into 3 x 3 cells
        window_scale: Scale = (0.6, 1.0)
        patch: PositiveInt = 64
        patch_shift: NonNegativeInt = 20  # farthest of a patch from its cell's corner
        num_negatives: PositiveInt = 32_000
        temperature: PositiveFloat = 0.07
        patch_weight: float = Field(default=0.5, ge=0, le=1)  # of the patches' loss; the image's has the rest
        bank_momentum: float = Field(default=0.5, ge=0, le=1)
        output_dim: PositiveInt = 128

        @property
        def cell(self) -> int:
            """Side of a cell."""
            return self.window // SIDE

        @model_validator(mode="after")
        def _check_geometry(self) -> Self:
            if self.window % SIDE or self.patch + self.patch_shift > self.cell:
                raise ValueError(
                    f"window must be a multiple of 3, and patch + patch_shift must fit a cell of {self.cell} pixels. "
                    f"Got window={self.window}, patch={self.patch}, patch_shift={self.patch_shift}. "
                    "Make the patch or the shift smaller."
                )
            return self

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.head = build_mlp(pooled_dim(backbone), config.output_dim)
        self.patch_head = build_mlp(pooled_dim(backbone), config.output_dim)
        self.joint_head = build_mlp(NUM_PATCHES * config.output_dim, config.output_dim)
        self.bank = MemoryBank(self.num_rows, config.output_dim, momentum=config.bank_momentum)
        self.image_contrast = NoiseContrast(temperature=config.temperature)
        self.patch_contrast = NoiseContrast(temperature=config.temperature)
        self._seen: tuple[Tensor, Tensor] | None = None  # rows and embeddings of the step that is going on

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give "image", (3, S, S), and "patches", (9, 3, T, T) in a drawn order, both uint8."""
        return {
            "image": single(image, draw.view(0), self.config),
            "patches": self.cut(image, draw.view(1)),
        }

    def cut(self, image: Tensor, draw: Draw) -> Tensor:
        """Cut one shifted patch from each cell of a window, shuffle them, and distort each by itself."""
        config = self.config
        window = flip(random_resized_crop(image, draw, size=config.window, scale=config.window_scale), draw)
        patches = []
        for cell in draw.permutation(NUM_PATCHES).tolist():
            top, left = (config.cell * part + draw.integers(0, config.patch_shift + 1) for part in divmod(cell, SIDE))
            patches.append(distort(window[:, top : top + config.patch, left : left + config.patch], draw, config))
        return torch.stack(patches)

    def loss(self, batch: Batch, progress: float) -> Output:
        """Noise-contrastive estimates of image and patches, both against the bank and never against each other."""
        image_BD = F.normalize(self.head(pooled(self.backbone, self.normalise(batch.views["image"]))).float())
        patches_BD = self.embed_patches(batch.views["patches"])
        self._seen = all_rows(batch.positions), all_rows(image_BD.detach())
        self.watch.embeddings(image_BD)
        positives_BD, negatives_KD = self.bank.rows[batch.positions], self.bank.draw(self.config.num_negatives)
        of_image = self.image_contrast(image_BD, positives_BD, negatives_KD, num_rows=self.num_rows)
        of_patches = self.patch_contrast(patches_BD, positives_BD, negatives_KD, num_rows=self.num_rows)
        weight = self.config.patch_weight
        return Output(
            objectives={MAIN: weight * of_patches + (1 - weight) * of_image},
            metrics={"loss_image": of_image, "loss_patches": of_patches},
        )

    def embed_patches(self, patches_B93TT: Tensor) -> Tensor:
        """Embed each patch, join the nine in the order given and embed them, (B, D) of unit length."""
        patches = self.patch_head(pooled(self.backbone, self.normalise(patches_B93TT.flatten(0, 1))))
        return F.normalize(self.joint_head(patches.view(len(patches_B93TT), -1)).float())

    def after_step(self, progress: float) -> None:
        """Remember the images of the batch."""
        assert self._seen is not None  # a step begins with its loss
        self.bank.update(*self._seen)

    def heads(self) -> dict[str, nn.Module]:
        """Keep the projection of images."""
        return {"projection": self.head}
