"""Jigsaw++: a jigsaw in which up to two tiles belong to another image."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from models.permutations import MIN_DISTANCE
from models.pretext.base import Card
from models.pretext.jigsaw import NUM_TILES, Jigsaw
from models.views import Draw


class JigsawPP(Jigsaw):
    """Learn the permutation although some tiles are of another image, so that no one tile can be trusted.

    Source: Noroozi et al. 2018 (arXiv 1805.00385), section 4;
        https://github.com/MehdiNoroozi/JigsawPuzzleSolver at 8c7ec09, merge_data_layer.cpp for
        the replacement, train_val_cfn_jps++.prototxt for the geometry.
    Differs: 70 % of the images are grey (the paper); the code has 50 %, and projects the colours of half of
        the rest.
    """

    card = Card(
        paper="Noroozi et al. 2018",
        arxiv="1805.00385",
        kind="pretext",
        views="9 shuffled tiles, up to 2 of another image",
        keeps="nothing",
        verified="as jigsaw; replaced tiles",
    )

    class Config(Jigsaw.Config, frozen=True, extra="forbid"):
        """As Jigsaw's, with the values of the newer paper."""

        jitter: NonNegativeInt = 20
        grey_probability: float = Field(default=0.7, ge=0, le=1)
        num_permutations: PositiveInt = 701
        permutation_method: Literal["max_min", "min_distance"] = "min_distance"
        # Tiles; every number up to it is equally likely. With more hidden, permutations would look alike.
        max_replaced: int = Field(default=MIN_DISTANCE - 1, ge=0, le=MIN_DISTANCE - 1)

    config: Config

    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Give the shuffled tiles, some replaced; the label stays the permutation of `image`.

        Returns:
            "tiles", (9, 3, T, T) uint8, and "label", () int64.
        """
        views = super().views(image, draw)
        num_replaced = draw.integers(0, self.config.max_replaced + 1)
        if num_replaced > 0:
            slots = draw.permutation(NUM_TILES)[:num_replaced]
            sources = draw.permutation(NUM_TILES)[:num_replaced]
            views["tiles"][slots] = self.cut(draw.other_image(), draw)[sources]
        return views
