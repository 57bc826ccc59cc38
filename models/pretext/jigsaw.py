"""Jigsaw: in which order were the nine tiles of the image put?

Shapes: B images, 9 tiles, T side of a tile, K permutations.
"""

import math
from typing import Literal, Self, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from models.backbones import ALEXNET_FAMILY, Backbone
from models.permutations import permutation_set
from models.pretext.base import MAIN, Batch, Card, Context, MethodConfig, Output, PretextMethod
from models.views import Draw, grey, random_crop, resize_shorter

SIDE = 3
NUM_TILES = SIDE * SIDE
FLAT_TILE = 1.0  # grey levels; a tile that varies less shows nothing but rounding


class Jigsaw(PretextMethod):
    """Learn to tell the permutation of the tiles, drawn from a fixed set.

    Source: Noroozi and Favaro 2016 (arXiv 1603.09246); https://github.com/MehdiNoroozi/JigsawPuzzleSolver at
        8c7ec09, train_val_cfn_jps++.prototxt for geometry and head, data_transformer.cpp for the tiles.
    Differs: the window is cut at random (the paper) and not centred (the code). The default geometry is the
        code's; the paper's is window 225, cells of 75, jitter 11 on average.
    """

    card = Card(
        paper="Noroozi and Favaro 2016",
        arxiv="1603.09246",
        kind="pretext",
        views="9 shuffled tiles",
        keeps="nothing",
        verified="loss: formula; permutations; tiles by place",
    )
    rows_apart = True

    class Config(MethodConfig, frozen=True, extra="forbid"):
        """Geometry in pixels, shortcuts closed, permutation set and head."""

        resize: PositiveInt = 256  # shorter side of the image before the window is cut
        window: PositiveInt = 255  # side of the square that is cut into 3 x 3 cells
        tile: PositiveInt = 64
        jitter: NonNegativeInt = 21  # farthest of a tile, or a channel of it, from its cell's corner
        channel_shift: NonNegativeInt = 2  # of the jitter, what each colour channel draws by itself
        grey_probability: float = Field(default=0.3, ge=0, le=1)
        tile_normalisation: bool = True  # each tile to mean 0 and variance 1; else by mean and std
        # Times the normalised tile. The code of Jigsaw++ has 50: the range of raw pixels less their mean,
        # which its networks saw afterwards. Encoders here are used on pixels of variance about 1, hence 1.
        tile_scale: PositiveFloat = 1.0
        num_permutations: PositiveInt = 1000
        permutation_method: Literal["max_avg", "max_min", "min_distance"] = "max_avg"
        permutation_seed: NonNegativeInt = 0
        grid: PositiveInt = 3  # cells per side of the last map of a tile
        tile_width: PositiveInt = 1024  # fc6, for each tile
        joint_width: PositiveInt = 4096  # fc7, for all nine
        dropout: float = Field(default=0.5, ge=0, lt=1)

        @property
        def cell(self) -> int:
            """Side of a cell."""
            return self.window // SIDE

        @model_validator(mode="after")
        def _check_geometry(self) -> Self:
            if not (self.window <= self.resize and self.window % SIDE == 0):
                raise ValueError(
                    f"window must be a multiple of 3 and at most resize. Got window={self.window}, "
                    f"resize={self.resize}. Change one of them."
                )
            if not (self.channel_shift <= self.jitter and self.tile + self.jitter <= self.cell):
                raise ValueError(
                    f"tile + jitter must fit a cell of {self.cell} pixels, channel_shift the jitter. "
                    f"Got tile={self.tile}, jitter={self.jitter}, channel_shift={self.channel_shift}. "
                    "Make the tile or the jitter smaller."
                )
            return self

    config: Config

    def __init__(self, config: Config, backbone: Backbone, **context: Unpack[Context]) -> None:
        super().__init__(config, backbone, **context)
        self.permutations = permutation_set(
            config.num_permutations, method=config.permutation_method, seed=config.permutation_seed
        )
        architecture = backbone.architecture
        if architecture.name in ALEXNET_FAMILY and architecture.stem == "imagenet":
            backbone.set_first_stride(2, padding=0)  # a tile is small; the encoder is used at stride 4
        self.tile_head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(backbone.channels[backbone.layers[-1]] * config.grid**2, config.tile_width),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
        )
        self.joint_head = nn.Sequential(
            nn.Linear(NUM_TILES * config.tile_width, config.joint_width),
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.joint_width, config.num_permutations),
        )

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give the shuffled tiles.

        Returns:
            "tiles", (9, 3, T, T) uint8, slot s holding the cell `permutations[label][s]` in raster order, and
            "label", () int64.
        """
        label = draw.integers(0, len(self.permutations))
        tiles = self.cut(image, draw)
        return {"tiles": tiles[self.permutations[label]], "label": torch.tensor(label)}

    def cut(self, image: Tensor, draw: Draw) -> Tensor:
        """Cut one jittered tile from each cell of a random window: raster order, (9, 3, T, T) uint8."""
        config = self.config
        window = random_crop(resize_shorter(image, side=config.resize), draw, size=config.window)
        window = grey(window, draw, probability=config.grey_probability)
        # One draw for the tile and one for each of its channels, both down and right.
        offset = draw.integers(0, config.jitter - config.channel_shift + 1, size=(NUM_TILES, 1, 2))
        offset = offset + draw.integers(0, config.channel_shift + 1, size=(NUM_TILES, 3, 2))
        corner = np.stack(np.divmod(np.arange(NUM_TILES), SIDE), axis=1)[:, None, :] * config.cell
        pixels = window.numpy()  # 27 slices cost less in numpy than one gather, and far less than in torch
        tiles = np.empty((NUM_TILES, 3, config.tile, config.tile), dtype=np.uint8)
        for index, channels in enumerate((corner + offset).tolist()):
            for channel, (top, left) in enumerate(channels):
                tiles[index, channel] = pixels[channel, top : top + config.tile, left : left + config.tile]
        return torch.from_numpy(tiles)

    def loss(self, batch: Batch, progress: float) -> Output:
        """Cross-entropy over the permutations."""
        label_B = batch.views["label"]
        logits_BK = self.logits(batch.views["tiles"])
        return Output(
            objectives={MAIN: F.cross_entropy(logits_BK, label_B)},
            metrics={"accuracy": (logits_BK.argmax(1) == label_B).float().mean()},
        )

    def logits(self, tiles_B93TT: Tensor) -> Tensor:
        """Score the permutations of shuffled uint8 tiles, (B, K)."""
        tiles = tiles_B93TT.flatten(0, 1)
        maps = self.backbone(self.prepare(tiles))[self.backbone.layers[-1]]
        values = self.tile_head(pool_tile(maps, grid=self.config.grid))
        logits_BK: Tensor = self.joint_head(values.view(len(tiles_B93TT), -1))
        return logits_BK

    def prepare(self, tiles: Tensor) -> Tensor:
        """Normalise tiles (N, 3, T, T) uint8 to float32, each by itself over all its channels jointly."""
        if not self.config.tile_normalisation:
            return self.normalise(tiles)
        pixels = tiles.float()
        std, mean = torch.std_mean(pixels, dim=(1, 2, 3), correction=0, keepdim=True)
        return (pixels - mean).mul_(self.config.tile_scale / std.clamp(min=FLAT_TILE))


def pool_tile(maps: Tensor, *, grid: int) -> Tensor:
    """Pool the maps of tiles to grid x grid cells, (N, C, grid, grid).

    Where Caffe's pool5 (3 x 3, stride 2, rounding up) gives that grid, as in the paper's network, it is used;
    any other map is pooled adaptively.
    """
    side = maps.shape[-1]
    if side >= 3 and math.ceil((side - 3) / 2) + 1 == grid:
        return F.max_pool2d(maps, kernel_size=3, stride=2, ceil_mode=True)
    return F.adaptive_max_pool2d(maps, grid)
