"""What there is in an indexed dataset: sizes, classes, and a sheet of samples."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from storage.dataset_index import DatasetIndex
from storage.folder import Folder
from storage.images import decode
from tasks.runtime import Runtime

SHEET_COLUMNS, SHEET_ROWS = 12, 8
THUMBNAIL_PIXELS, MARGIN_PIXELS, CAPTION_PIXELS = 96, 6, 14
CAPTION_CHARACTERS = 17
BOX_COLOUR, CAPTION_COLOUR = "red", "black"


class Quantiles(NamedTuple):
    """The smallest, the middle and the largest of some numbers."""

    smallest: int
    median: int
    largest: int


def size_quantiles(index: DatasetIndex) -> dict[str, Quantiles]:
    """Of `width`, `height` (pixels) and `size` (bytes of the encoded image)."""
    return {
        name: Quantiles(int(values.min()), int(np.median(values)), int(values.max()))
        for name, values in index.sizes().items()
    }


def class_counts(index: DatasetIndex) -> dict[str, int]:
    """How many images show each class, the largest first; empty for a dataset without labels."""
    classes = index.classes or ()
    if index.annotated:
        counts = (index.shown() == 1).sum(axis=0)
    else:
        labels = index.labels()
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return {classes[number]: int(counts[number]) for number in order[: len(classes)]}


def draw_contact_sheet(index: DatasetIndex, *, runtime: Runtime) -> str:
    """A picture of some of the images with their classes and boxes; gives its path, below the cache.

    At most SHEET_COLUMNS x SHEET_ROWS images, evenly over the rows: these are in the order of their hashes, so that it
    is a fair sample. One image is held at a time.
    """
    count = min(index.num_rows, SHEET_COLUMNS * SHEET_ROWS)
    positions = np.linspace(0, index.num_rows - 1, count).astype(int)
    step = THUMBNAIL_PIXELS + MARGIN_PIXELS
    sheet = Image.new(
        "RGB", (SHEET_COLUMNS * step, -(-count // SHEET_COLUMNS) * (step + CAPTION_PIXELS)), color="white"
    )
    reader = index.images(runtime.place(index.name), runtime.cache)
    captions, boxes = _captions(index, positions), _boxes(index, positions)
    font, pen = ImageFont.load_default(size=CAPTION_PIXELS - 4), ImageDraw.Draw(sheet)
    for number, position in enumerate(positions):
        row, column = divmod(number, SHEET_COLUMNS)
        left, top = column * step, row * (step + CAPTION_PIXELS)
        sheet.paste(_thumbnail(decode(reader.read(int(position))), boxes[number]), (left, top))
        pen.text((left, top + THUMBNAIL_PIXELS), captions[number][:CAPTION_CHARACTERS], fill=CAPTION_COLOUR, font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    folder, name = Folder(runtime.cache) / "contact_sheets", f"{index.name}-{index.key[:12]}.png"
    folder.write(name, buffer.getvalue())
    return folder.at(name)


def _thumbnail(pixels: np.ndarray, boxes: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = THUMBNAIL_PIXELS / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(image)
    # A box may be empty, lie outside, or the wrong way round.
    for left, top, right, bottom in np.clip(boxes * scale, -1, THUMBNAIL_PIXELS):
        edges = [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
        pen.rectangle(edges, outline=BOX_COLOUR)
    return image


def _captions(index: DatasetIndex, positions: np.ndarray) -> list[str]:
    """The classes of each of these images; empty for none."""
    if index.classes is None:
        return [""] * len(positions)
    if index.annotated:
        shown = index.shown()[positions] == 1
        return [" ".join(index.classes[label] for label in np.flatnonzero(row)) for row in shown]
    return [index.classes[label] if label >= 0 else "" for label in index.labels()[positions]]


def _boxes(index: DatasetIndex, positions: np.ndarray) -> list[np.ndarray]:
    """The boxes of each of these images, (n, 4) float64."""
    if not index.annotated:
        return [np.empty((0, 4))] * len(positions)
    targets = index.targets()
    placed = ~np.isnan(targets.box).any(axis=1)
    return [targets.box[placed & (targets.row == position)] for position in positions]
