"""PASCAL VOC: a `VOCdevkit` folder, or one year of it; pictures, boxes, masks, and lists of splits.

Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc, sections 2 and 3.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from storage.datasets.source import DatasetConfig, FormatOptions, Source, read_bytes, require_split
from storage.entries import Entry, Mask, Target, box_of

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PICTURES, ANNOTATIONS, MASKS, SPLITS = "JPEGImages", "Annotations", "SegmentationClass", "ImageSets"


class VocOptions(FormatOptions):
    """What is read.

    Attributes:
        year: the folder of the devkit, such as `VOC2007`; needed where there are several.
        image_set: whose splits are meant: `ImageSets/Main` or `ImageSets/Segmentation`.
        classes: the names in the annotations, in the order of their numbers.
    """

    model_config = ConfigDict(extra="forbid")

    year: str | None = None
    image_set: Literal["Main", "Segmentation"] = "Main"
    classes: tuple[str, ...] = Field(default=CLASSES, min_length=1)


class Voc(Source):
    """Each picture shows several things, and has no label of its own.

    An edge of a box counts the pixels before it, so that VOC's (1, 1, W, H) is (0, 0, W, H) here.
    """

    Options = VocOptions
    random_access = True
    annotated = True

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        self._place = place
        self._root = self._find_root(place)
        self._sets = self._root / SPLITS / self._options.image_set
        # `cat_train.txt` says for each picture whether it shows a cat: the annotations say so too.
        known = [path.stem for path in sorted(self._sets.glob("*.txt")) if not self._is_of_a_class(path.stem)]
        require_split(config, known=known, place=place)

    @property
    def _options(self) -> VocOptions:
        assert isinstance(self.config.options, VocOptions)
        return self.config.options

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the options."""
        return self._options.classes

    def _find_root(self, place: Path) -> Path:
        if (place / PICTURES).is_dir() and self._options.year is None:
            return place
        found = sorted(path.parent.name for path in place.glob(f"*/{PICTURES}"))
        year = self._options.year or (found[0] if len(found) == 1 else None)
        if year not in found:
            raise ValueError(
                f"the place of dataset {self.config.name!r} must be a VOCdevkit folder, or one year of it with a "
                f"folder {PICTURES}; got {place} with the years {found} and the option year {self._options.year}. "
                f"Set options: {{year: VOC2012}}, or correct --data {self.config.name}=PATH"
            )
        return place / year

    def _is_of_a_class(self, stem: str) -> bool:
        return any(stem.startswith(f"{name}_") for name in self.classes)

    @cached_property
    def _ids(self) -> list[str]:
        """The pictures in order; those of no split are all that there are."""
        if self.config.split is None:
            return sorted(path.stem for path in (self._root / PICTURES).glob("*.jpg"))
        # A line may say more of a picture than its name.
        lines = read_bytes(self._sets / f"{self.config.split}.txt").decode().splitlines()
        return sorted({line.split()[0] for line in lines if line.strip()})

    def __len__(self) -> int:
        return len(self._ids)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Of each picture the file, and its annotation and mask where there are such."""
        for one in self._ids:
            paths = [self._picture(one), *filter(Path.is_file, (self._annotation(one), self._mask(one)))]
            yield from ((self._name(path), path) for path in paths)

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The pictures in order of their names."""
        for one in islice(self._ids, start, None):
            picture, mask = self._picture(one), self._mask(one)
            yield Entry(
                self._name(picture),
                split=self.config.split,
                label=None,
                data=read_bytes(picture),
                targets=tuple(self._targets(self._annotation(one))),
                mask=Mask(self._name(mask), read_bytes(mask)) if mask.is_file() else None,
            )

    def _picture(self, one: str) -> Path:
        return self._root / PICTURES / f"{one}.jpg"

    def _annotation(self, one: str) -> Path:
        return self._root / ANNOTATIONS / f"{one}.xml"

    def _mask(self, one: str) -> Path:
        return self._root / MASKS / f"{one}.png"

    def _name(self, path: Path) -> str:
        return path.relative_to(self._place).as_posix()

    def _targets(self, path: Path) -> Iterator[Target]:
        if not path.is_file():
            return  # the test pictures of VOC 2012 have no public annotation
        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            objects = ET.fromstring(read_bytes(path)).findall("object")
            for found in objects:
                name = found.findtext("name", "").strip()
                left, top, right, bottom = (
                    float(found.findtext(f"bndbox/{edge}", "")) for edge in ("xmin", "ymin", "xmax", "ymax")
                )
                difficult = found.findtext("difficult", "0").strip() == "1"
                yield Target(numbers[name], difficult, box_of(left - 1, top - 1, right, bottom))
        except KeyError:
            raise ValueError(
                f"the classes in the annotations of dataset {self.config.name!r} must be of {', '.join(numbers)}; got "
                f"{name!r} in {path}. Name all of them: options: {{classes: [...]}}"
            ) from None
        except (ET.ParseError, ValueError) as error:
            raise ValueError(f"{path} must be an annotation as VOC has it: {error}. Fetch it again") from error
