"""Datasets of torchvision, by the name of their class; their pixels become PNG.

torchvision holds the small ones in memory whole. For large ones that lie on disk as image files, read these as
`image_folder`: that keeps their bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from pydantic import ConfigDict, Field, JsonValue

from storage.datasets.source import DatasetConfig, FormatOptions, Source, require_split
from storage.entries import Entry
from storage.images import encode_png

# CIFAR's files are pickles too; torchvision compares their digests with its own before it reads them.
UNPICKLING = "LSUN"
TRAIN_OR_TEST = {"train": True, "test": False}


class TorchvisionOptions(FormatOptions):
    """Which dataset, and how it is made.

    Attributes:
        dataset: its class in `torchvision.datasets`, such as `CIFAR10`.
        labels: whether to read the class numbers.
        arguments: what else its class takes, such as `{split: letters}` of EMNIST.
        download: whether torchvision may fetch what is not there; without, nothing is fetched.
    """

    model_config = ConfigDict(extra="forbid")

    dataset: str
    labels: bool = True
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    # Fetched or not, the images are the same: this is in no key.
    download: bool = Field(default=False, exclude=True)


class Torchvision(Source):
    """A folder that holds the files of this dataset and no others."""

    Options = TorchvisionOptions

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        self._place = place
        # Takes seconds, and only this format needs it.
        import torchvision

        found = getattr(torchvision.datasets, self._options.dataset, None)
        takes = inspect.signature(found).parameters if inspect.isclass(found) else {}
        if found is None or "root" not in takes or self._options.dataset.startswith(UNPICKLING):
            raise ValueError(
                "the option dataset must be a class of torchvision.datasets that is read from a folder, such as "
                f"CIFAR10, and not {UNPICKLING}, which unpickles what nothing vouches for; "
                f"got {self._options.dataset!r}"
            )
        self._kind, self._takes = found, takes
        if "train" in takes:
            require_split(config, known=list(TRAIN_OR_TEST), place=place)
        elif "split" not in takes:
            require_split(config, known=[], place=place)

    @property
    def _options(self) -> TorchvisionOptions:
        assert isinstance(self.config.options, TorchvisionOptions)
        return self.config.options

    @cached_property
    def _parts(self) -> list[tuple[str | None, Any]]:
        """Split and dataset; without a split, train and test where the class knows these."""
        split = self.config.split
        if "train" in self._takes:
            return [(one, self._make(train=TRAIN_OR_TEST[one])) for one in ([split] if split else TRAIN_OR_TEST)]
        return [(split, self._make(**({"split": split} if split else {})))]

    def _make(self, **part: object) -> Any:
        arguments = {**self._options.arguments, **part}
        if "download" in self._takes:
            arguments["download"] = self._options.download
        try:
            return self._kind(root=str(self._place), **arguments)
        except Exception as error:
            # Each class says in its own way that files are missing or damaged.
            raise ValueError(
                f"torchvision.datasets.{self._options.dataset} must find its files at {self._place}; it says: {error}. "
                "Put them there, or let torchvision fetch them: options: {download: true}"
            ) from error

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The classes, where the dataset names them."""
        names = getattr(self._parts[0][1], "classes", None)
        return tuple(map(str, names)) if names and self._options.labels else None

    def __len__(self) -> int:
        return sum(len(part) for _, part in self._parts)

    def files(self) -> Iterator[tuple[str, Path]]:
        """Every file at the place."""
        assert self._parts  # fetched now, if they may be
        for path in sorted(self._place.rglob("*")):
            if path.is_file():
                yield path.relative_to(self._place).as_posix(), path

    def environment(self) -> dict[str, str]:
        """torchvision may decode the images, and Pillow writes them as PNG."""
        import torchvision

        return {"pillow": PIL.__version__, "torchvision": torchvision.__version__}

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The images as PNG, in the order that torchvision has them in."""
        everything = ((split, part, number) for split, part in self._parts for number in range(len(part)))
        for split, part, number in islice(everything, start, None):
            name = f"{split or self._options.dataset}#{number}"
            try:
                image, label, *_ = part[number]
            except Exception as error:
                raise ValueError(
                    f"image {name} of torchvision.datasets.{self._options.dataset} at {self._place} must be readable; "
                    f"torchvision says: {type(error).__name__}: {error}. Fetch it again"
                ) from error
            yield Entry(name, split=split, label=self._label(label, name), data=self._png(image, name))

    def _label(self, label: object, name: str) -> int | None:
        if not self._options.labels:
            return None
        if not isinstance(label, int):
            raise ValueError(
                f"labels of torchvision.datasets.{self._options.dataset} must be class numbers; got "
                f"{type(label).__name__} at {name}. Read it without labels: options: {{labels: false}}"
            )
        return label

    def _png(self, image: object, name: str) -> bytes:
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"torchvision.datasets.{self._options.dataset} must give images; got {type(image).__name__} at {name}. "
                "Choose another dataset"
            )
        return encode_png(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
