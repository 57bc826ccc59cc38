"""COCO: folders of pictures, and beside them `annotations/instances_SPLIT.json`; boxes and outlines.

Source: https://cocodataset.org/#format-data, sections "Data format" and "1. Object Detection".
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, Field

from storage.datasets.source import DatasetConfig, FormatOptions, Source, read_bytes, require_split
from storage.entries import Entry, Target, box_of
from storage.folder import canonical_json

SPLIT = "{split}"


class CocoOptions(FormatOptions):
    """Where things lie, relative to the place; `{split}` stands for the split.

    Attributes:
        annotations: the file that lists pictures, objects and classes.
        images: the folder of the pictures.
    """

    model_config = ConfigDict(extra="forbid")

    annotations: str = Field(default=f"annotations/instances_{SPLIT}.json", pattern=r"^[^/]")
    images: str = Field(default=SPLIT, pattern=r"^[^/]")


class _Part(NamedTuple):
    """What one file of annotations says.

    Attributes:
        classes: names by number; COCO's own ids have gaps, the numbers follow their order.
        pictures: file name and id of each picture, in order of the names.
        targets: id of a picture -> what it shows.
    """

    classes: tuple[str, ...]
    pictures: list[tuple[str, int]]
    targets: dict[int, list[Target]]


class Coco(Source):
    """Each picture shows several things, and has no label of its own. A file of annotations is read whole."""

    Options = CocoOptions
    random_access = True
    annotated = True

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        self._place = place
        found = place.glob(self._options.annotations.replace(SPLIT, "*"))
        before, _, after = self._options.annotations.partition(SPLIT)
        names = {path.relative_to(place).as_posix(): path for path in sorted(found)}
        splits = {name[len(before) : len(name) - len(after)]: path for name, path in names.items()}
        if not splits:
            raise ValueError(
                f"dataset {config.name!r} must have its annotations in {place / self._options.annotations}; there is "
                "no such file. Set options: {annotations: PATH, images: PATH}, relative to the place"
            )
        require_split(config, known=list(splits), place=place)
        self._files = {split: path for split, path in splits.items() if config.split in (None, split)}

    @property
    def _options(self) -> CocoOptions:
        assert isinstance(self.config.options, CocoOptions)
        return self.config.options

    @cached_property
    def _parts(self) -> dict[str, _Part]:
        return {split: _read_part(path) for split, path in self._files.items()}

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The names of the categories, which all splits must share."""
        named = {part.classes for part in self._parts.values()}
        if len(named) > 1:
            raise ValueError(
                f"all splits of dataset {self.config.name!r} must name the same categories; those of "
                f"{', '.join(map(str, self._files.values()))} differ. Read one split"
            )
        return named.pop()

    def __len__(self) -> int:
        return sum(len(part.pictures) for part in self._parts.values())

    def files(self) -> Iterator[tuple[str, Path]]:
        """The annotations, and one file a picture."""
        yield from ((f"annotations of {split}", path) for split, path in self._files.items())
        for split, part in self._parts.items():
            yield from ((self._name(split, file), self._place / self._name(split, file)) for file, _ in part.pictures)

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The pictures split by split, in order of their names."""
        pictures = ((split, part, *one) for split, part in self._parts.items() for one in part.pictures)
        for split, part, file, number in islice(pictures, start, None):
            name = self._name(split, file)
            targets = tuple(part.targets.get(number, ()))
            yield Entry(name, split=split, label=None, data=read_bytes(self._place / name), targets=targets)

    def _name(self, split: str, file: str) -> str:
        return f"{self._options.images.replace(SPLIT, split).rstrip('/')}/{file}"


def _read_part(path: Path) -> _Part:
    try:
        content: dict[str, Any] = json.loads(read_bytes(path))
        categories = sorted((int(one["id"]), str(one["name"])) for one in content["categories"])
        numbers = {category: number for number, (category, _) in enumerate(categories)}
        targets: dict[int, list[Target]] = defaultdict(list)
        for one in content.get("annotations", ()):
            targets[one["image_id"]].append(_target(one, numbers))
        pictures = sorted((str(one["file_name"]), int(one["id"])) for one in content["images"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold images, categories and annotations as COCO has them: {type(error).__name__}: {error}. "
            "Fetch or write it again"
        ) from error
    return _Part(tuple(name for _, name in categories), pictures, targets)


def _target(annotation: dict[str, Any], numbers: dict[int, int]) -> Target:
    left, top, width, height = map(float, annotation["bbox"])
    outline = annotation.get("segmentation")
    return Target(
        numbers[annotation["category_id"]],
        difficult=bool(annotation.get("iscrowd", 0)),
        box=box_of(left, top, left + width, top + height),
        outline=canonical_json(outline) if outline else b"",
    )
