"""A tar archive of an image folder: `[root/][split/]class/**/name.jpg`, or files without classes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from pydantic import ConfigDict

from storage.datasets.image_folder import SUFFIXES
from storage.datasets.source import DatasetConfig, FormatOptions, Source, is_text, require_split
from storage.entries import Entry
from storage.tar_files import Member, is_tar, tar_members


class TarOptions(FormatOptions):
    """How the folders in the archive are read.

    Attributes:
        labels: whether the folders right below the root (and the split) are classes, numbered in alphabetical
            order; files right in the root, with no folder beside them, have no label.
        root: folder of the archive that holds the images; empty is the archive itself.
    """

    model_config = ConfigDict(extra="forbid")

    labels: bool = True
    root: str = ""


class Tar(Source):
    """One archive (`.tar`, `.tar.gz`, `.tgz`), read in the order of its members and never extracted."""

    Options = TarOptions

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        if not place.is_file() or not is_tar(place):
            raise ValueError(
                f"the place of dataset {config.name!r} must be a file .tar, .tar.gz or .tgz; got {place}. "
                f"Give the archive: --data {config.name}=PATH"
            )
        self._place = place
        root = PurePosixPath(self._options.root)
        require_split(config, known=sorted(self._folders_below(root)), place=place)
        self._root = root / config.split if config.split else root

    @property
    def _options(self) -> TarOptions:
        assert isinstance(self.config.options, TarOptions)
        return self.config.options

    @cached_property
    def _listing(self) -> tuple[list[str], set[PurePosixPath]]:
        """The names of all images in the order of the archive, and all folders of it."""
        names: list[str] = []
        folders: set[PurePosixPath] = set()
        for member in tar_members(self._place):
            if not is_text(member.name):
                raise ValueError(f"file names must be UTF-8; got {member.name!r} in {self._place}. Rename the file")
            path = PurePosixPath(member.name)
            # Archives need not name their folders.
            folders.update(path.parents if member.is_file else (path, *path.parents))
            if _is_image(member):
                names.append(member.name)
        return names, folders

    def _folders_below(self, root: PurePosixPath) -> list[str]:
        return [folder.name for folder in self._listing[1] if folder != root and folder.parent == root]

    def _is_own(self, name: str) -> bool:
        return PurePosixPath(name).is_relative_to(self._root)

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The class folders, or None for a dataset without labels."""
        folders = sorted(self._folders_below(self._root))
        if not self._options.labels or not folders:
            return None
        loose = next((name for name in self._listing[0] if PurePosixPath(name).parent == self._root), None)
        if loose is not None:
            raise ValueError(
                f"dataset {self.config.name!r} must hold its images in class folders; got the file {loose} beside "
                f"{folders[:3]} in {self._place}. Read it without labels: options: {{labels: false}}"
            )
        return tuple(folders)

    def __len__(self) -> int:
        return sum(map(self._is_own, self._listing[0]))

    def files(self) -> Iterator[tuple[str, Path]]:
        """The archive; what it is called decides nothing."""
        yield "archive", self._place

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The images in the order of the archive."""
        numbers = {name: number for number, name in enumerate(self.classes or ())}
        depth = len(self._root.parts)
        number = -1
        for member in tar_members(self._place):
            if not _is_image(member) or not self._is_own(member.name):
                continue
            number += 1
            if number >= start:
                label = numbers[PurePosixPath(member.name).parts[depth]] if numbers else None
                yield Entry(member.name, split=self.config.split, label=label, data=member.read())


def _is_image(member: Member) -> bool:
    return member.is_file and PurePosixPath(member.name).suffix.lower() in SUFFIXES
