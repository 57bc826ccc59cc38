"""WebDataset: tar shards in which the files of one sample stand together, `000123.jpg`, `000123.cls`, `000123.json`.

Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path, PurePosixPath

from pydantic import ConfigDict, Field

from storage.datasets.image_folder import SUFFIXES
from storage.datasets.source import DatasetConfig, FormatOptions, Source, is_text, require_split
from storage.entries import Entry
from storage.tar_files import Member, is_tar, tar_members

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
CHOICE = re.compile(r"\{([^{}]*)\}")


class WebdatasetOptions(FormatOptions):
    """Which shards, and where labels are.

    Attributes:
        shards: names of the shards, relative to the place: `*`, `train-*.tar`, `train-{000000..000146}.tar`; with
            braces each must be there.
        label: the file of a sample that holds its class number, `cls`, or `json.FIELD` for a field of its JSON
            file; none reads the images without labels.
    """

    model_config = ConfigDict(extra="forbid")

    shards: str = Field(default="*", pattern=r"^[^/]")
    label: str | None = Field(default="cls", pattern=r"^[^.]+(\.[^.]+)?$")


class Webdataset(Source):
    """One shard, or a folder of shards whose names begin with their split, as in `train-000000.tar`."""

    Options = WebdatasetOptions

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        splits = {path: _split_of(path) for path in self._paths(place)}
        known = sorted({split for split in splits.values() if split is not None})
        require_split(config, known=known, place=place)
        self._shards = {path: split for path, split in splits.items() if config.split in (None, split)}

    @property
    def _options(self) -> WebdatasetOptions:
        assert isinstance(self.config.options, WebdatasetOptions)
        return self.config.options

    def _paths(self, place: Path) -> list[Path]:
        if place.is_file():
            return [place]
        found: set[Path] = set()
        for pattern in _expanded(self._options.shards):
            paths = [path for path in place.glob(pattern) if path.is_file() and is_tar(path)]
            if not paths and "{" in self._options.shards:
                raise ValueError(
                    f"every shard of dataset {self.config.name!r} that the option shards names must be there; "
                    f"{place / pattern} is missing. Fetch it, or correct shards ({self._options.shards})"
                )
            found.update(paths)
        return sorted(found)

    @property
    def classes(self) -> None:
        """The format has no names of classes."""
        return None

    @cached_property
    def _lengths(self) -> dict[Path, int]:
        return {path: sum(1 for _ in _samples(path, label=None, read=False)) for path in self._shards}

    def __len__(self) -> int:
        return sum(self._lengths.values())

    def files(self) -> Iterator[tuple[str, Path]]:
        """One file a shard."""
        return ((path.name, path) for path in self._shards)

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The samples, shard by shard; shards before `start` are not opened."""
        for path, split in self._shards.items():
            if start < self._lengths[path]:
                wanted = self._options.label.partition(".")[0] if self._options.label else None
                for number, (key, files) in enumerate(_samples(path, label=wanted, read=True)):
                    if number >= start:
                        name = f"{path.name}#{key}"
                        label = self._label(files.pop(wanted), name) if wanted in files else None
                        (data,) = files.values()
                        yield Entry(name, split=split, label=label, data=data)
            start = max(0, start - self._lengths[path])

    def _label(self, data: bytes, name: str) -> int | None:
        """The class number that a sample's file of labels holds; a field that is missing or null is none."""
        field = (self._options.label or "").partition(".")[2]
        try:
            found = json.loads(data)
            value = found.get(field) if field else found
        except (ValueError, AttributeError):
            value = data[:40]
        if value is not None and (type(value) is not int or value < 0):
            raise ValueError(
                f"the label of {name} of dataset {self.config.name!r} must be a whole number from 0 on; got {value!r} "
                f"in {self._options.label}. Name another: options: {{label: json.FIELD}}, or null for none"
            )
        return value


def _samples(path: Path, *, label: str | None, read: bool) -> Iterator[tuple[str, dict[str | None, bytes]]]:
    """The samples of a shard that hold an image: key, and its first image and its label by extension."""
    for key, members in groupby(_files(path), key=lambda member: _parts(member)[0]):
        files: dict[str | None, bytes] = {}
        image: str | None = None
        for member in members:
            extension = _parts(member)[1]
            if f".{extension}" in SUFFIXES and image is None:
                image = extension
            if extension in (image, label) and extension not in files:
                files[extension] = member.read() if read else b""
        if image is not None:
            yield key, files


def _files(path: Path) -> Iterator[Member]:
    for member in tar_members(path):
        if not is_text(member.name):
            raise ValueError(f"file names must be UTF-8; got {member.name!r} in {path}. Write the shard again")
        if member.is_file:
            yield member


def _parts(member: Member) -> tuple[str, str]:
    """Key and extension: all up to the first dot of the file's name, and all after it."""
    path = PurePosixPath(member.name)
    stem, _, extension = path.name.partition(".")
    return (path.parent / stem).as_posix(), extension.lower()


def _split_of(path: Path) -> str | None:
    stem = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
    return re.sub(r"(^|[-_])\d+$", "", stem) or None


def _expanded(pattern: str) -> list[str]:
    """The patterns that a pattern with braces stands for, as a shell has it."""
    if match := RANGE.search(pattern):
        first, last = match.groups()
        parts = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    elif match := CHOICE.search(pattern):
        parts = match[1].split(",")
    else:
        return [pattern]
    whole = (pattern[: match.start()] + part + pattern[match.end() :] for part in parts)
    return [one for each in whole for one in _expanded(each)]
