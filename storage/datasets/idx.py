"""IDX files, the format of MNIST and its family, as they are or `.gz`.

Source: http://yann.lecun.com/exdb/mnist, "The IDX file format".
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from functools import cached_property
from io import BufferedIOBase
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from pydantic import ConfigDict

from storage.datasets.source import DatasetConfig, FormatOptions, Source, require_split
from storage.entries import Entry
from storage.images import MAX_PIXELS, encode_png

# train-images-idx3-ubyte, t10k-images.idx3-ubyte.gz, emnist-letters-train-images-idx3-ubyte.gz
IMAGES_NAME = re.compile(r"(?P<part>.+)-images[-.]idx[34]-ubyte(\.gz)?")
UNSIGNED_BYTES = b"\0\0\x08"
# (N, H, W) grey or (N, H, W, 3); (N,).
IMAGE_DIMENSIONS, LABEL_DIMENSIONS = (3, 4), (1,)


class IdxOptions(FormatOptions):
    """How the files are read.

    Attributes:
        labels: whether `PART-labels-idx1-ubyte` beside `PART-images-idx3-ubyte` holds the class numbers.
    """

    model_config = ConfigDict(extra="forbid")

    labels: bool = True


class _Pair(NamedTuple):
    """The files of one part."""

    images: Path
    labels: Path | None


class Idx(Source):
    """A folder of pairs of files; what stands before `-images` is the split, and `t10k` is called `test`."""

    Options = IdxOptions

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        if not place.is_dir():
            raise ValueError(
                f"the place of dataset {config.name!r} must be a folder of IDX files; got the file {place}. "
                f"Give the folder: --data {config.name}=PATH"
            )
        pairs: dict[str, _Pair] = {}
        # Sorted, and the first counts: a file beside its own `.gz` is one part.
        for path in sorted(place.iterdir()):
            if match := IMAGES_NAME.fullmatch(path.name):
                pairs.setdefault(re.sub("t10k$", "test", match["part"]), self._pair(path, match["part"]))
        require_split(config, known=sorted(pairs), place=place)
        self._pairs = {split: pair for split, pair in sorted(pairs.items()) if config.split in (None, split)}

    def _pair(self, images: Path, part: str) -> _Pair:
        assert isinstance(self.config.options, IdxOptions)
        if not self.config.options.labels:
            return _Pair(images, None)
        names = [f"{part}-labels{dot}idx1-ubyte{suffix}" for dot in "-." for suffix in ("", ".gz")]
        labels = next((path for path in map(images.with_name, names) if path.is_file()), None)
        if labels is None:
            raise ValueError(
                f"the labels of {images} must lie beside it as {names[0]}; they are missing. Fetch them, or read "
                "without labels: options: {labels: false}"
            )
        return _Pair(images, labels)

    @property
    def classes(self) -> None:
        """The format has no names of classes."""
        return None

    @cached_property
    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for split, pair in self._pairs.items():
            (counts[split], *_) = _shape(pair.images, dimensions=IMAGE_DIMENSIONS)
            if pair.labels and (labels := _shape(pair.labels, dimensions=LABEL_DIMENSIONS)) != (counts[split],):
                raise ValueError(
                    f"{pair.labels} must hold one label for each of the {counts[split]} images of {pair.images.name}; "
                    f"got {labels[0]}. Fetch both again"
                )
        return counts

    def __len__(self) -> int:
        return sum(self._counts.values())

    def files(self) -> Iterator[tuple[str, Path]]:
        """Two files a split."""
        for split, pair in self._pairs.items():
            yield f"{split} images", pair.images
            if pair.labels:
                yield f"{split} labels", pair.labels

    def environment(self) -> dict[str, str]:
        """Pillow writes the pixels as PNG."""
        return {"pillow": PIL.__version__}

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The images as PNG, split by split."""
        for split, pair in self._pairs.items():
            count = self._counts[split]
            for number, (pixels, label) in enumerate(_rows(pair, start=min(start, count)), start=min(start, count)):
                yield Entry(f"{split}#{number}", split=split, label=label, data=encode_png(pixels))
            start = max(0, start - count)


def _rows(pair: _Pair, *, start: int) -> Iterator[tuple[np.ndarray, int | None]]:
    """Pixels and label of each image from `start` on, one at a time."""
    labels = _labels(pair.labels) if pair.labels else None
    with _open(pair.images) as stream:
        count, *shape = _header(stream, pair.images, dimensions=IMAGE_DIMENSIONS)
        size = prod(shape)
        for number in range(count):
            data = _read(stream, size, pair.images)
            if number >= start:
                pixels = np.frombuffer(data, dtype=np.uint8).reshape(shape)
                yield pixels, labels[number] if labels else None
        _require_end(stream, pair.images)


def _labels(path: Path) -> bytes:
    with _open(path) as stream:
        (count,) = _header(stream, path, dimensions=LABEL_DIMENSIONS)
        labels = _read(stream, count, path)
        _require_end(stream, path)
        return labels


def _shape(path: Path, *, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    with _open(path) as stream:
        return _header(stream, path, dimensions=dimensions)


def _open(path: Path) -> BufferedIOBase:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _header(stream: BufferedIOBase, path: Path, *, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a file says it has, number of images or labels first."""
    magic = _read(stream, 4, path)
    if magic[:3] != UNSIGNED_BYTES or magic[3] not in dimensions:
        raise _damaged(path, f"it begins with {magic.hex()}")
    shape: tuple[int, ...] = struct.unpack(f">{magic[3]}I", _read(stream, 4 * magic[3], path))
    if not 0 < prod(shape[1:]) <= 3 * MAX_PIXELS or shape[3:] not in ((), (3,)):
        raise _damaged(path, f"it says that its shape is {shape}")
    return shape


def _read(stream: BufferedIOBase, size: int, path: Path) -> bytes:
    data = _read_at_most(stream, size, path)
    if len(data) < size:
        raise _damaged(path, "it is cut short")
    return data


def _read_at_most(stream: BufferedIOBase, size: int, path: Path) -> bytes:
    try:
        return stream.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error


def _require_end(stream: BufferedIOBase, path: Path) -> None:
    # Asked for more at its end, `.gz` compares its checksum.
    if _read_at_most(stream, 1, path):
        raise _damaged(path, "it is longer than it says")


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} must be an intact IDX file of bytes: {reason}. Fetch it again")
