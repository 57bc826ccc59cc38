"""What a source says of one image."""

from __future__ import annotations

import math
from typing import NamedTuple


class Target(NamedTuple):
    """One thing that an image shows.

    Attributes:
        label: number of its class.
        difficult: whether it is left out when results are scored (`difficult` of VOC, `iscrowd` of COCO).
        box: left, top, right and bottom edge in pixels of the image as it is stored, from its upper left corner;
            None where it is only known that the image shows it.
        outline: its `segmentation` as COCO has it (polygons or run lengths), as JSON; empty for none.
    """

    label: int
    difficult: bool = False
    box: tuple[float, float, float, float] | None = None
    outline: bytes = b""


class Mask(NamedTuple):
    """The picture that says of each pixel of an image which class it belongs to.

    Attributes:
        name: its file, relative to the place of the dataset.
        data: the encoded picture.
    """

    name: str
    data: bytes


class Entry(NamedTuple):
    """One image as its source has it.

    Attributes:
        name: stable name of the image, relative to the place of the dataset.
        split: the part of the dataset it belongs to, where the format has such parts.
        label: number of its class, or None.
        data: the encoded image.
        targets: what it shows, where the source is annotated.
        mask: of its pixels, or None.
    """

    name: str
    split: str | None
    label: int | None
    data: bytes
    targets: tuple[Target, ...] = ()
    mask: Mask | None = None


def box_of(left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """The box of a Target.

    Raises:
        ValueError: an edge is no finite number; NaN would stand for no box at all.
    """
    box = (left, top, right, bottom)
    if not all(map(math.isfinite, box)):
        raise ValueError(f"the edges of a box must be finite; got {box}")
    return box
