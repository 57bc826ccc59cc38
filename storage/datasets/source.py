"""What every dataset format gives: name, label and encoded bytes of its images, always in the same order."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

import storage.datasets
from storage.entries import Entry
from storage.folder import canonical_json
from storage.stat_cache import StatCache


class CorruptSource(ValueError):
    """The bytes of a dataset are not the ones that were indexed."""


class FormatOptions(BaseModel):
    """The settings of one format; each format's own class forbids what it does not know."""

    model_config = ConfigDict(frozen=True)


class Fraction(BaseModel):
    """A part of a dataset, drawn by the bytes of each image.

    Order, names and other images decide nothing, and repeats of an image stay together. Of one seed, [0, 0.8) and
    [0.8, 1) share no image and leave none out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = Field(default=0.0, ge=0, lt=1, description="Images drawn at or above this are in.")
    stop: float = Field(default=1.0, gt=0, le=1, description="Images drawn below this are in.")
    seed: int = Field(default=0, description="Of the draw.")

    @model_validator(mode="after")
    def _not_empty(self) -> Fraction:
        if self.start >= self.stop:
            raise ValueError(f"start must be below stop; got {self.start} and {self.stop}")
        return self

    def holds(self, image: str) -> bool:
        """Whether an image is in, by the hash of its bytes."""
        drawn = hashlib.sha256(f"{self.seed} {image}".encode()).digest()
        return self.start <= int.from_bytes(drawn[:6]) / 2**48 < self.stop


class DatasetConfig(BaseModel):
    """A dataset by name, and how to read it; where it lies is Runtime (`--data NAME=PATH`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="The name that --data NAME=PATH gives a place to.")
    format: str = Field(description="How the dataset is stored: the name of a file in storage/datasets.")
    split: str | None = Field(default=None, description="The part to read; none reads all.")
    options: SerializeAsAny[FormatOptions] = Field(
        default_factory=FormatOptions, validate_default=True, description="Settings of the format."
    )
    # Not written where it is not set: the keys of datasets that are read whole are those of before it was there.
    fraction: Fraction | None = Field(
        default=None, exclude_if=lambda value: value is None, description="The share to read; none reads all."
    )

    @field_validator("format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        load_format(value)
        return value

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_the_format(cls, value: object, info: ValidationInfo) -> object:
        if "format" not in info.data:
            return FormatOptions()  # the wrong format is the error to show
        options = load_format(info.data["format"]).Options
        if isinstance(value, FormatOptions) and not isinstance(value, options):
            value = value.model_dump()
        try:
            return options.model_validate(value)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ValueError(
                f"{wrong} (options of format {info.data['format']!r}: {', '.join(options.model_fields)})"
            ) from None


class Source(ABC):
    """A dataset that can be read from its start to its end, in an order that only its content decides.

    Attributes:
        Options: the settings of the format.
        version: raise it when the format's entries change for the same files and options.
        needs_place: whether the user says where the dataset lies.
        random_access: whether an entry is a file of its own below the place, named as the entry is.
    """

    Options: ClassVar[type[FormatOptions]]
    version: ClassVar[int] = 1
    needs_place: ClassVar[bool] = True
    random_access: ClassVar[bool] = False

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        self.config = config
        self.place = place

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, label by label; None where the source names none."""

    @property
    def annotated(self) -> bool:
        """Whether entries say what an image shows by targets and masks, instead of one label."""
        return False

    @abstractmethod
    def __len__(self) -> int:
        """How many entries there are, readable or not; reads no image."""

    @abstractmethod
    def files(self) -> Iterator[tuple[str, Path]]:
        """The files that the entries come from: stable relative name, and path on this machine."""

    @abstractmethod
    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The entries from number `start` on.

        Raises:
            ValueError: a file of the source cannot be read.
        """

    def environment(self) -> dict[str, str]:
        """Versions of packages that decide the bytes of an entry; none where these are stored as they are."""
        return {}

    def fingerprint(self, stat_cache: StatCache) -> str:
        """A digest of all that decides the entries: options, relative names, and the content of every file.

        Lists the source each time; reads only files that the stat cache does not know.
        """
        names, paths = zip(*self.files(), strict=True)
        ingredients = {
            "format": [self.config.format, self.version],
            "split": self.config.split,
            "options": self.config.options.model_dump(mode="json"),
            "environment": self.environment(),
            "files": list(zip(names, stat_cache.digests(paths), strict=True)),
        }
        return hashlib.sha256(canonical_json(ingredients)).hexdigest()


def formats() -> list[str]:
    """The formats that exist, by name."""
    names = [module.name for module in pkgutil.iter_modules(storage.datasets.__path__)]
    return sorted(name for name in names if name != "source")


def load_format(name: str) -> type[Source]:
    """The source class of a format.

    Raises:
        ValueError: there is no such format; lists those that exist.
    """
    if name not in formats():
        raise ValueError(f"the format of a dataset must be one of {', '.join(formats())}; got {name!r}")
    module = importlib.import_module(f"storage.datasets.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Source) and value.__module__ == module.__name__
    )
    return found


def open_source(config: DatasetConfig, *, place: Path | None) -> Source:
    """Open a dataset where it lies on this machine.

    Args:
        config: which dataset, and how to read it.
        place: its path, or None when nobody said; not looked at where the format needs none.
    Raises:
        ValueError: there is nothing at the place, the dataset has no such split, or it is empty.
    """
    kind = load_format(config.format)
    if kind.needs_place and (place is None or not place.exists()):
        given = "none was given" if place is None else f"got {place}"
        raise ValueError(
            f"the place of dataset {config.name!r} must be an existing path; {given}. "
            f"Say where it lies: --data {config.name}=PATH"
        )
    source = kind(config, place=place if kind.needs_place else None)
    if not len(source):
        at = f" at {source.place}" if source.place else ""
        raise ValueError(
            f"dataset {config.name!r} (format {config.format}, split {config.split}) must hold at least "
            f"one image; got none{at}. Check its options, and the path: --data {config.name}=PATH"
        )
    return source


def is_text(name: str) -> bool:
    """Whether a file's name is UTF-8; rows keep names as text, and Linux allows others."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of a source.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"the file {path} must be readable; the system says: {error.strerror}") from None


def require_split(config: DatasetConfig, *, known: list[str], place: Path | None) -> None:
    """Check that the split asked for is one of the dataset's.

    Raises:
        ValueError: it is not; lists those that exist.
    """
    if config.split is not None and config.split not in known:
        at = f" at {place} (given by --data {config.name}=PATH)" if place else ""
        raise ValueError(
            f"the split of dataset {config.name!r} must be one of {known}{at}; got {config.split!r}. "
            "Set split to one of them, or to null to read all"
        )
