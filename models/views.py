"""Draw the views of one image: all randomness in `Draw`, all pixel work in plain functions.

Images are CHW uint8 tensors with three channels; a view stays uint8 until it is normalised on the device
that trains, so a worker process sends a quarter of the bytes of a float view. Images whose memory is laid
out as HWC (what a decoder gives, permuted) resize about twice as fast as contiguous CHW ones.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# One row of 20,000 pixels, 256 high, would take 4 GB; and what is cut from an image is square.
MAX_ASPECT = 32

# ITU-R 601 luma in 16-bit fixed point: integer sums are equal on every machine and in every batch shape.
_LUMA = (19595, 38470, 7471)


class Draw:
    """All randomness of one view of one row.

    The numbers depend on (seed, epoch, row id, view) alone, so workers, ranks and the order of reading do not
    change them, and nothing has to be saved to resume.

    Args:
        seed: seed of the run.
        epoch: pass over the data, from 0.
        row_id: content id of the row.
        view: which view of the row.
        others: reads another row of the dataset, chosen with the draws of the `Draw` it is given; needed only
            by methods that mix images.
    """

    def __init__(
        self,
        seed: int,
        *,
        epoch: int,
        row_id: str,
        view: int = 0,
        others: "Callable[[Draw], Tensor] | None" = None,
    ) -> None:
        self._key = (seed, epoch, row_id)
        self._others = others
        digest = hashlib.sha256(f"{seed}/{epoch}/{row_id}/{view}".encode()).digest()
        self._generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))

    def view(self, index: int) -> "Draw":
        """Give the draws of view `index` of the same row: they do not depend on what this one has drawn."""
        seed, epoch, row_id = self._key
        return Draw(seed, epoch=epoch, row_id=row_id, view=index, others=self._others)

    def uniform(self, low: float, high: float) -> float:
        """Draw a number from [low, high)."""
        return low + (high - low) * self._generator.random()

    def integers(self, low: int, high: int, *, size: tuple[int, ...] | None = None) -> np.ndarray | int:
        """Draw whole numbers from low, ..., high - 1: one int, or an int64 array of shape `size`."""
        if size is None:  # several times faster than numpy's own, which matters for small images
            return low + int(self._generator.random() * (high - low))
        return self._generator.integers(low, high, size=size)

    def permutation(self, count: int) -> np.ndarray:
        """Draw an order of 0, ..., count - 1, (count,) int64."""
        return self._generator.permutation(count)

    def chance(self, probability: float) -> bool:
        """Draw True with the given probability; uses one number whatever the probability is."""
        return self._generator.random() < probability

    def other_image(self) -> Tensor:
        """Read another row of the dataset, itself drawn, (3, H, W) uint8.

        Raises:
            ValueError: the loader gave no way to read other rows.
        """
        if self._others is None:
            raise ValueError(
                "This method mixes images, so its views need a reader of other rows. None was given. "
                "Pass Draw(..., others=...), a callable that draws a row and returns its image."
            )
        return self._others(self)


def resize(image: Tensor, *, size: tuple[int, int]) -> Tensor:
    """Resize to (height, width), bilinear with antialiasing; keeps uint8."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0]


def resize_shorter(image: Tensor, *, side: int) -> Tensor:
    """Resize so that the shorter side is `side` and the aspect ratio stays; the longer side rounds down.

    Of an image longer than MAX_ASPECT times its shorter side, only the middle is kept.
    """
    short = min(image.shape[-2:])
    longest = MAX_ASPECT * short
    image = image[..., _middle(image.shape[-2], longest), _middle(image.shape[-1], longest)]
    height, width = image.shape[-2:]
    return resize(image, size=(side * height // short, side * width // short))


def _middle(length: int, longest: int) -> slice:
    start = max(0, (length - longest) // 2)
    return slice(start, start + min(length, longest))


def center_crop(image: Tensor, *, size: int) -> Tensor:
    """Cut the central square of side `size` (the image must be at least that large)."""
    top, left = round((image.shape[-2] - size) / 2), round((image.shape[-1] - size) / 2)
    return image[..., top : top + size, left : left + size]


def random_crop(image: Tensor, draw: Draw, *, size: int) -> Tensor:
    """Cut a square of side `size`, every position equally likely (the image must be at least that large)."""
    top = draw.integers(0, image.shape[-2] - size + 1)
    left = draw.integers(0, image.shape[-1] - size + 1)
    return image[..., top : top + size, left : left + size]


def random_resized_crop(
    image: Tensor,
    draw: Draw,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Cut a rectangle of random area and aspect ratio and resize it to a square of side `size`.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height, drawn uniformly in the logarithm.
    Source: Szegedy et al. 2015 (arXiv 1409.4842), section 6; ten tries, then the largest central rectangle of
        an allowed aspect ratio, as `torchvision.transforms.RandomResizedCrop`.
    """
    height, width = image.shape[-2:]
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * draw.uniform(scale[0], scale[1])
        aspect = math.exp(draw.uniform(log_low, log_high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = draw.integers(0, height - h + 1), draw.integers(0, width - w + 1)
            break
    else:
        w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return resize(image[..., top : top + h, left : left + w], size=(size, size))


def flip(image: Tensor, draw: Draw) -> Tensor:
    """Mirror left and right with probability one half."""
    return image.flip(-1) if draw.chance(0.5) else image


def to_grey(image: Tensor) -> Tensor:
    """Replace the three channels by the luma, (3, H, W) uint8."""
    red, green, blue = image.to(torch.int32).unbind(-3)
    luma = (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16
    return luma.to(torch.uint8).expand(image.shape)


def grey(image: Tensor, draw: Draw, *, probability: float) -> Tensor:
    """Make the image grey with the given probability."""
    return to_grey(image) if draw.chance(probability) else image


def color_jitter(image: Tensor, draw: Draw, *, strengths: tuple[float, float, float, float]) -> Tensor:
    """Change brightness, contrast, saturation and hue, in a drawn order.

    Args:
        strengths: for brightness, contrast and saturation s the factor is drawn from [max(0, 1 - s), 1 + s];
            for hue s the shift is drawn from [-s, s], s <= 0.5, in turns of the colour wheel.
    """
    from torchvision.transforms.v2 import functional as tvf

    adjust = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
    for which in draw.permutation(4):
        strength = strengths[which]
        if which == 3:
            shift = draw.uniform(-strength, strength)
            image = tvf.adjust_hue(image, shift) if strength > 0 else image
        else:
            factor = draw.uniform(max(0.0, 1 - strength), 1 + strength)
            image = adjust[which](image, factor) if strength > 0 else image
    return image


def blur(image: Tensor, draw: Draw, *, probability: float, sigma: tuple[float, float] = (0.1, 2.0)) -> Tensor:
    """Blur with the given probability by a Gaussian whose deviation, in pixels, is drawn from `sigma`.

    Source: Chen et al. 2020 (arXiv 2002.05709), appendix A. Differs: Pillow's, three box filters of fractional width,
        as in the code of MoCo, SwAV and DINO.
    """
    chosen, deviation = draw.chance(probability), draw.uniform(*sigma)
    if not chosen:
        return image
    from PIL import Image, ImageFilter

    blurred = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).filter(ImageFilter.GaussianBlur(deviation))
    return torch.from_numpy(np.array(blurred)).permute(2, 0, 1)


def solarize(image: Tensor, draw: Draw, *, probability: float) -> Tensor:
    """Invert the values from 128 up with the given probability."""
    return torch.where(image < 128, image, 255 - image) if draw.chance(probability) else image


def normalise(images: Tensor, *, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Turn pixels into network input: scale to [0, 1], subtract the mean, divide by the deviation.

    Args:
        images: (..., 3, H, W) uint8.
        mean: of the three channels, in [0, 1].
        std: of the three channels, in [0, 1].
    Returns:
        (..., 3, H, W) float32 on the device of `images`.
    """
    mean_311 = torch.as_tensor(mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std_311 = torch.as_tensor(std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return (images - mean_311 * 255).div_(std_311 * 255)


def evaluation_view(
    image: Tensor,
    *,
    size: int,
    resize: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """Make the one deterministic view of an image: shorter side to `resize`, centre crop, normalise.

    Args:
        image: (3, H, W) uint8.
        size: side of the crop, at most `resize`.
        resize: length of the shorter side before the crop.
    Returns:
        (3, size, size) float32.
    Raises:
        ValueError: `size` is larger than `resize`.
    """
    if size > resize:
        raise ValueError(f"The crop must fit the resized image: size={size} is larger than resize={resize}.")
    return normalise(center_crop(resize_shorter(image, side=resize), size=size), mean=mean, std=std)
