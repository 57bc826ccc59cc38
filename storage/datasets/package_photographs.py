"""Real photographs that come with scikit-image and scikit-learn, cut into labelled crops; no download.

Those of scikit-image are CC0 or in the public domain (see the docstrings of `skimage.data`), those of
scikit-learn (china, flower) CC BY 2.0 (see `sklearn/datasets/images/README.txt`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image
from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveInt, field_validator, model_validator

from storage.datasets.source import DatasetConfig, FormatOptions, Source, require_split
from storage.entries import Entry
from storage.images import encode_png

PHOTOGRAPHS = {
    "astronaut": "skimage/data/astronaut.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "ihc": "skimage/data/ihc.png",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "retina": "skimage/data/retina.jpg",
    "rocket": "skimage/data/rocket.jpg",
}
SPLITS = ["train", "validation", "test"]
LONGER_SIDE = 512
# Of the blocks of each photograph; the rest is for training.
TEST_SHARE = 0.25
VALIDATION_SHARE = 0.15


class PackagePhotographsOptions(FormatOptions):
    """How the photographs are cut.

    Attributes:
        crop: side of a crop in pixels.
        stride: distance of neighbouring crops in pixels; below `crop` they overlap.
        block: side of the squares that are dealt to the splits; no crop reaches over two of them.
        min_std: crops whose grey values deviate less than this (of 255) are dropped as flat.
        photographs: the ones to use; all by default. Two datasets of different ones share no pixel.
    """

    model_config = ConfigDict(extra="forbid")

    crop: PositiveInt = 32
    stride: PositiveInt = 8
    block: PositiveInt = 128
    min_std: NonNegativeFloat = 4.0
    photographs: tuple[str, ...] = Field(default=tuple(PHOTOGRAPHS), min_length=1)

    @field_validator("photographs")
    @classmethod
    def _known_photographs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(PHOTOGRAPHS)):
            raise ValueError(f"photographs must be of {', '.join(PHOTOGRAPHS)}; got {', '.join(unknown)}")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _crop_fits(self) -> PackagePhotographsOptions:
        if self.crop > self.block:
            raise ValueError(f"crop must be at most block ({self.block}); got {self.crop}. Lower crop")
        return self


class _Crop(NamedTuple):
    """Where a crop lies: photograph, its split, and the upper left corner in pixels."""

    photograph: str
    split: str
    top: int
    left: int


class PackagePhotographs(Source):
    """Crops labelled with the photograph they are of, split by blocks: no pixel is in two splits."""

    Options = PackagePhotographsOptions
    needs_place = False

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        require_split(config, known=SPLITS, place=None)

    @property
    def _options(self) -> PackagePhotographsOptions:
        assert isinstance(self.config.options, PackagePhotographsOptions)
        return self.config.options

    @property
    def classes(self) -> tuple[str, ...]:
        """The photographs in use."""
        return self._options.photographs

    def __len__(self) -> int:
        return len(self._crops)

    def files(self) -> Iterator[tuple[str, Path]]:
        """The photographs in use."""
        return ((PHOTOGRAPHS[name], _path(name)) for name in self._options.photographs)

    def environment(self) -> dict[str, str]:
        """Pillow decodes and scales the photographs."""
        return {"pillow": PIL.__version__}

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The crops as PNG, photograph by photograph and block by block."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        size, pixels, loaded = self._options.crop, np.empty(0, dtype=np.uint8), ""
        for crop in self._crops[start:]:
            if crop.photograph != loaded:
                pixels, loaded = _load(crop.photograph), crop.photograph
            data = encode_png(pixels[crop.top : crop.top + size, crop.left : crop.left + size])
            name = f"{PHOTOGRAPHS[crop.photograph]}#{crop.left},{crop.top}"
            yield Entry(name, split=crop.split, label=numbers[crop.photograph], data=data)

    @cached_property
    def _crops(self) -> list[_Crop]:
        """All crops of the split that are not flat."""
        return [crop for name in self._options.photographs for crop in self._crops_of(name)]

    def _crops_of(self, photograph: str) -> Iterator[_Crop]:
        options = self._options
        pixels = _load(photograph)
        deviation = _deviation(pixels, size=options.crop)
        for (block_top, block_left), split in sorted(self._deal(photograph, pixels.shape).items()):
            if self.config.split not in (None, split):
                continue
            bottom = min(block_top + options.block, pixels.shape[0])
            right = min(block_left + options.block, pixels.shape[1])
            for top in range(block_top, bottom - options.crop + 1, options.stride):
                for left in range(block_left, right - options.crop + 1, options.stride):
                    if deviation[top, left] >= options.min_std:
                        yield _Crop(photograph, split=split, top=top, left=left)

    def _deal(self, photograph: str, shape: tuple[int, ...]) -> dict[tuple[int, int], str]:
        """The split of every block, by its upper left corner; each photograph gives blocks to every split."""
        block = self._options.block
        corners = [(top, left) for top in range(0, shape[0], block) for left in range(0, shape[1], block)]
        # The order of a hash is as good as random, and stays the same for ever.
        corners.sort(key=lambda corner: hashlib.sha256(f"{photograph} {corner}".encode()).digest())
        tests, validations = round(len(corners) * TEST_SHARE), round(len(corners) * VALIDATION_SHARE)
        splits = ["test"] * tests + ["validation"] * validations
        splits += ["train"] * (len(corners) - len(splits))
        return dict(zip(corners, splits, strict=True))


def _path(photograph: str) -> Path:
    """Where the installed package keeps a photograph; nothing is imported, so nothing can be downloaded."""
    package, _, inside = PHOTOGRAPHS[photograph].partition("/")
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(
            f"the photograph {photograph!r} must lie in the installed package {package!r}; "
            f"{path or package} is missing. Install scikit-image>=0.26 and scikit-learn>=1.7, or leave "
            "it out of the option photographs"
        )
    return path


def _load(photograph: str) -> np.ndarray:
    """The photograph, (H, W, 3) uint8, its longer side at most LONGER_SIDE."""
    with Image.open(_path(photograph)) as image:
        rgb = image.convert("RGB")
    scale = LONGER_SIDE / max(rgb.size)
    if scale < 1:
        size = (round(rgb.width * scale), round(rgb.height * scale))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def _deviation(pixels: np.ndarray, *, size: int) -> np.ndarray:
    """The standard deviation of the grey values of every crop, by its upper left corner.

    Args:
        pixels: (H, W, 3) uint8.
        size: side of the crops in pixels.
    Returns:
        (H - size + 1, W - size + 1) float64; empty where no crop fits.
    """
    # Sums over windows as differences of running sums, in whole numbers: exact, so the same on every machine.
    grey = pixels.sum(axis=2, dtype=np.int64)
    total, square = (_window_sums(values, size=size) for values in (grey, grey**2))
    deviation: np.ndarray = np.sqrt(size**2 * square - total**2) / (3 * size**2)
    return deviation


def _window_sums(values: np.ndarray, *, size: int) -> np.ndarray:
    sums = np.pad(values, ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    inside: np.ndarray = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return inside
