"""MoCo v2: MoCo with a deeper head and stronger distortions."""

from pydantic import PositiveFloat, PositiveInt

from models.distortion import Jitter, Probability
from models.pretext.base import Card
from models.pretext.moco_v1 import MoCoV1


class MoCoV2(MoCoV1):
    """As MoCo, with the head and the views of SimCLR.

    Source: Chen et al. 2020 (arXiv 2003.04297); https://github.com/facebookresearch/moco at 3b42c2a.
    Differs: as MoCo.
    """

    card = Card(
        paper="Chen et al. 2020",
        arxiv="2003.04297",
        kind="contrastive",
        views="2 views",
        keeps="queue, slow copy of the network",
        verified="as MoCo v1; head",
    )

    class Config(MoCoV1.Config, frozen=True, extra="forbid"):
        """As MoCo's, with the values of the newer paper."""

        jitter: Jitter = (0.4, 0.4, 0.4, 0.1)
        jitter_probability: Probability = 0.8
        blur_probability: tuple[Probability, Probability] = (0.5, 0.5)
        temperature: PositiveFloat = 0.2
        hidden_dim: PositiveInt | None = 2048

    config: Config
