"""Views for methods that compare an image with itself: crops that are mirrored and distorted in colour.

Shapes: S side of a crop. A view draws from `draw.view(index)`, so none depends on what another has drawn.
"""

from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from models.pretext.base import MethodConfig
from models.views import Draw, blur, color_jitter, flip, grey, random_resized_crop, solarize

Probability = Annotated[float, Field(ge=0, le=1)]
Jitter = tuple[float, float, float, float]
Scale = tuple[float, float]


class DistortionConfig(MethodConfig, frozen=True, extra="forbid"):
    """How colours are distorted; the defaults are those that most methods share."""

    jitter: Jitter = (0.4, 0.4, 0.4, 0.1)  # brightness, contrast, saturation, hue
    jitter_probability: Probability = 0.8
    grey_probability: Probability = 0.2


class SingleConfig(DistortionConfig, frozen=True, extra="forbid"):
    """One view of an image."""

    crop_size: PositiveInt = 224
    crop_scale: Scale = (0.2, 1.0)  # share of the image's area


class PairConfig(SingleConfig, frozen=True, extra="forbid"):
    """Two views of an image; what is given twice is of the first and of the second."""

    blur_probability: tuple[Probability, Probability] = (0.5, 0.5)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.0)


class MultiCropConfig(DistortionConfig, frozen=True, extra="forbid"):
    """Two large and several small views; what is given three times is of the two large ones and of every small one."""

    large_size: PositiveInt = 224
    large_scale: Scale = (0.14, 1.0)  # share of the image's area
    small_size: PositiveInt = 96
    small_scale: Scale = (0.05, 0.14)
    num_small: NonNegativeInt = 6
    blur_probability: tuple[Probability, Probability, Probability] = (0.5, 0.5, 0.5)
    solarize_probability: tuple[Probability, Probability, Probability] = (0.0, 0.0, 0.0)


def distort(
    image: Tensor, draw: Draw, config: DistortionConfig, *, blurred: float = 0.0, inverted: float = 0.0
) -> Tensor:
    """Jitter the colours, make grey, blur and solarize, each with its probability; keeps shape and uint8.

    Source: Chen et al. 2020 (arXiv 2002.05709), appendix A, for the order; Grill et al. 2020 (arXiv 2006.07733),
        appendix B, for solarization.
    """
    if draw.chance(config.jitter_probability):
        image = color_jitter(image, draw, strengths=config.jitter)
    image = grey(image, draw, probability=config.grey_probability)
    image = blur(image, draw, probability=blurred)
    return solarize(image, draw, probability=inverted)


def single(image: Tensor, draw: Draw, config: SingleConfig) -> Tensor:
    """Make one view, (3, S, S) uint8."""
    return distort(_crop(image, draw, size=config.crop_size, scale=config.crop_scale), draw, config)


def pair(image: Tensor, draw: Draw, config: PairConfig) -> Tensor:
    """Make two views, (2, 3, S, S) uint8."""
    return torch.stack(
        [
            distort(
                _crop(image, own, size=config.crop_size, scale=config.crop_scale),
                own,
                config,
                blurred=config.blur_probability[index],
                inverted=config.solarize_probability[index],
            )
            for index, own in ((index, draw.view(index)) for index in range(2))
        ]
    )


def multi_crop(image: Tensor, draw: Draw, config: MultiCropConfig) -> dict[str, Tensor]:
    """Make "large", (2, 3, S, S) uint8, and "small", (num_small, 3, s, s) uint8, which is left out if there are none.

    Source: Caron et al. 2020 (arXiv 2006.09882), section 3.2.
    """
    crops = []
    for index in range(2 + config.num_small):
        own, large = draw.view(index), index < 2
        crop = _crop(
            image,
            own,
            size=config.large_size if large else config.small_size,
            scale=config.large_scale if large else config.small_scale,
        )
        kind = min(index, 2)
        blurred, inverted = config.blur_probability[kind], config.solarize_probability[kind]
        crops.append(distort(crop, own, config, blurred=blurred, inverted=inverted))
    views = {"large": torch.stack(crops[:2])}
    return views | {"small": torch.stack(crops[2:])} if config.num_small else views


def _crop(image: Tensor, draw: Draw, *, size: int, scale: Scale) -> Tensor:
    return flip(random_resized_crop(image, draw, size=size, scale=scale), draw)
