"""A folder of image files: `root[/split]/class/**/name.jpg`, or files without classes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache, cached_property
from itertools import islice
from pathlib import Path

from pydantic import ConfigDict

from storage.datasets.source import DatasetConfig, FormatOptions, Source, is_text, read_bytes, require_split
from storage.entries import Entry

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


class ImageFolderOptions(FormatOptions):
    """How the folders are read.

    Attributes:
        labels: whether the folders right below the root are classes, numbered in alphabetical order. A class
            folder without images keeps its number. Files right in the root, with no folder beside them, have
            no label.
    """

    model_config = ConfigDict(extra="forbid")

    labels: bool = True


class ImageFolder(Source):
    """Every image is a file of its own. Names that begin with a dot are passed over."""

    Options = ImageFolderOptions
    random_access = True

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        if not place.is_dir():
            raise ValueError(
                f"the place of dataset {config.name!r} must be a folder; got the file {place}. "
                f"Give the folder that holds the images: --data {config.name}=PATH"
            )
        require_split(config, known=_folders(place), place=place)
        self._place = place
        self._root = place / config.split if config.split else place

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The class folders, or None for a dataset without labels."""
        folders = _folders(self._root)
        if not self._options.labels or not folders:
            return None
        loose = next((path for path in sorted(self._root.iterdir()) if _is_image(path)), None)
        if loose is not None:
            raise ValueError(
                f"dataset {self.config.name!r} must hold its images in class folders; got the file {loose} "
                f"beside {folders[:3]}. Move it, or read without labels: options: {{labels: false}}"
            )
        return tuple(folders)

    @property
    def _options(self) -> ImageFolderOptions:
        assert isinstance(self.config.options, ImageFolderOptions)
        return self.config.options

    @cached_property
    def _names(self) -> list[str]:
        names = [path.relative_to(self._place).as_posix() for path in _images(self._root, above=frozenset())]
        for name in names:
            if not is_text(name):
                raise ValueError(f"file names must be UTF-8; got {name!r} in {self._place}. Rename the file")
        return names

    def __len__(self) -> int:
        return len(self._names)

    def files(self) -> Iterator[tuple[str, Path]]:
        """One file an image."""
        return ((name, self._place / name) for name in self._names)

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The images in order of their paths."""
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        depth = 1 if self.config.split else 0
        for name in islice(self._names, start, None):
            label = numbers[name.split("/")[depth]] if numbers else None
            yield Entry(name, split=self.config.split, label=label, data=read_bytes(self._place / name))


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
        return False
    if path.is_symlink() and not path.exists():
        _pass_over(path)
    # A pipe would be waited for, a device has no end.
    return path.is_file()


@cache
def _pass_over(path: Path) -> None:
    # Once a process: a source is opened several times in a run.
    log.warning("%s is passed over: the link points to no file", path)


def _images(folder: Path, *, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return  # a link to a folder above: following it would never end
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _images(path, above=above | {identity})
        elif _is_image(path):
            yield path
