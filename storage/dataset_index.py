"""The rows of a dataset: who they are, what they are labelled, and where their bytes lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from storage.artifact import Artifact
from storage.datasets.source import CorruptSource, DatasetConfig, load_format, open_source
from storage.folder import Folder
from storage.image_cache import ImageCache, PackedRows
from storage.images import HASH_DIGITS, image_hash
from storage.tables import read_table

UNLABELLED = -1
BOX = ("left", "top", "right", "bottom")

INDEX = "index.json"
ROWS = "rows.parquet"
TARGETS = "targets.parquet"
# Where things lie is no content: renamed files and another place give the same index.
LOCATIONS = "locations.parquet"
QUARANTINE = "quarantine.parquet"
SOURCE = "source.json"


class Repeats(NamedTuple):
    """Images that occur more than once, byte for byte.

    Attributes:
        rows: rows that repeat an earlier one.
        across_splits: images that lie in more than one split.
        under_two_labels: images that bear more than one label, or are annotated in more than one way.
    """

    rows: int
    across_splits: int
    under_two_labels: int


class Targets(NamedTuple):
    """What the images of an annotated dataset show; T things, sorted by row.

    Attributes:
        row: position of the image, (T,) int64.
        label: number of the class, (T,) int64.
        difficult: whether it is left out when results are scored, (T,) bool.
        box: left, top, right and bottom edge in pixels of the image as it is stored, (T, 4) float64; NaN for none.
    """

    row: np.ndarray
    label: np.ndarray
    difficult: np.ndarray
    box: np.ndarray


class DatasetIndex(Artifact):
    """All readable images of a dataset, sorted by row id; positions count in this order.

    A row id is the hash of the encoded image and the number of its occurrence; no name and no place is in it.
    """

    kind = "DatasetIndex"
    undigested = frozenset({LOCATIONS, QUARANTINE, SOURCE})

    @cached_property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.folder.read_json(INDEX)
        return facts

    @cached_property
    def source(self) -> DatasetConfig:
        """The dataset that was indexed."""
        return DatasetConfig.model_validate(self.folder.read_json(SOURCE))

    @property
    def name(self) -> str:
        """The dataset's name, which `--data NAME=PATH` gives a place to."""
        return self.source.name

    @property
    def num_rows(self) -> int:
        return int(self._facts["num_rows"])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names, label by label; None for a dataset without labels."""
        names = self._facts["classes"]
        return None if names is None else tuple(names)

    @property
    def repeats(self) -> Repeats:
        return Repeats(**self._facts["repeats"])

    @property
    def num_quarantined(self) -> int:
        """Images that could not be decoded and are no rows."""
        return int(self._facts["quarantined"])

    @property
    def has_labels(self) -> bool:
        """Whether every row has a label."""
        return bool(self._facts["labelled"] == self.num_rows)

    def require_labels(self) -> None:
        """Raises:
        ValueError: not every row has a label.
        """
        if not self.has_labels:
            raise ValueError(
                f"every row of dataset {self.source.name!r} (split {self.source.split}) must have a label; "
                f"{self._facts['labelled']} of {self.num_rows} have one. Choose a labelled dataset or split, "
                f"or check its options"
            )

    @property
    def annotated(self) -> bool:
        """Whether targets and masks say what an image shows, instead of one label."""
        return self.folder.exists(TARGETS)

    def targets(self) -> Targets:
        """What the images of an annotated dataset show."""
        table = read_table(self.folder, TARGETS, columns=["row", "label", "difficult", *BOX])
        box = np.stack([table[edge] for edge in BOX], axis=1)
        return Targets(table["row"], table["label"].astype(np.int64), table["difficult"], box)

    def outlines(self) -> np.ndarray:
        """The outline of each target as COCO's JSON, (T,) of bytes; empty for none."""
        return read_table(self.folder, TARGETS, columns=["outline"])["outline"]

    def shown(self) -> np.ndarray:
        """Which classes each image of an annotated dataset shows, (N, classes) int8.

        1 where it shows the class, 0 where it does not, -1 where it shows it as difficult only, which is not scored.
        """
        targets = self.targets()
        shown = np.zeros((self.num_rows, len(self.classes or ())), dtype=np.int8)
        shown[targets.row[targets.difficult], targets.label[targets.difficult]] = -1
        shown[targets.row[~targets.difficult], targets.label[~targets.difficult]] = 1
        return shown

    def masks(self) -> np.ndarray:
        """The file of the mask of each image of an annotated dataset, (N,) of dtype S; empty for none."""
        return read_table(self.folder, LOCATIONS, columns=["mask"])["mask"]

    def row_ids(self) -> np.ndarray:
        """The row ids in order of position, (N,) of dtype S, sorted and unique."""
        return read_table(self.folder, ROWS, columns=["row_id"])["row_id"]

    def labels(self) -> np.ndarray:
        """The label of each row in order of position, (N,) int64; UNLABELLED where there is none."""
        return read_table(self.folder, ROWS, columns=["label"])["label"].astype(np.int64)

    def sizes(self) -> dict[str, np.ndarray]:
        """`width` and `height` in pixels, upright, and `size` in bytes as encoded, in order of position, (N,) int64."""
        return read_table(self.folder, ROWS, columns=["width", "height", "size"])

    def names(self) -> np.ndarray:
        """The name each row has in its source, in order of position, (N,) of dtype S."""
        return read_table(self.folder, LOCATIONS, columns=["name"])["name"]

    def quarantine(self) -> dict[str, str]:
        """The images that are no rows: name -> reason."""
        table = read_table(self.folder, QUARANTINE)
        return {name.decode(): reason.decode() for name, reason in zip(table["name"], table["reason"], strict=True)}

    def images(self, source_place: Path | None, cache: Path) -> ImageReader:
        """A reader of the encoded images.

        Formats without random access are first copied into the cache, unless they are there.

        Args:
            source_place: where the dataset lies; not needed while a packed copy is there.
            cache: folder of what can be made again (`runtime.cache`).
        Raises:
            ValueError: the dataset is needed and not there.
            CorruptSource: it holds other bytes than when it was indexed.
        """
        if load_format(self.source.format).random_access:
            root = open_source(self.source, place=source_place).place
            assert root is not None
            return FileReader(self.folder, name=self.name, root=root)
        packed = ImageCache(Folder(cache) / "images" / self.key)
        rows = _packed_rows(self.folder)
        if packed.missing(rows):
            packed.fill(rows, source=open_source(self.source, place=source_place))
        return PackedReader(self.folder, name=self.name, packed=packed)


class ImageReader(ABC):
    """Reads the encoded bytes of rows by position, each checked against its row id.

    Picklable and cheap to send: every process reads the tables it needs when it first reads a row.
    """

    def __init__(self, index: Folder, *, name: str) -> None:
        self._index = index
        self._name = name
        self._tables: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tables": {}}

    def row_id(self, position: int) -> str:
        """The id of one row."""
        row_id: str = self._column(ROWS, "row_id")[position].decode()
        return row_id

    def read(self, position: int) -> bytes:
        """The encoded image of one row.

        Raises:
            CorruptSource: the file is gone or is not the one that was indexed; names the row and the file.
        """
        row_id = self.row_id(position)
        data, where, remedy = self._fetch(position)
        if image_hash(data) != row_id[:HASH_DIGITS]:
            raise CorruptSource(
                f"row {row_id} of dataset {self._name!r} must have the bytes that were indexed; "
                f"{where} has others. {remedy}"
            )
        return data

    @abstractmethod
    def _fetch(self, position: int) -> tuple[bytes, str, str]:
        """The bytes of a row, where they lie, and what to do when they are wrong."""

    def _column(self, table: str, column: str) -> np.ndarray:
        """A column of the index."""
        if column not in self._tables:
            self._tables[column] = read_table(self._index, table, columns=[column])[column]
        return self._tables[column]


class FileReader(ImageReader):
    """Reads rows that are files of their own."""

    def __init__(self, index: Folder, *, name: str, root: Path) -> None:
        super().__init__(index, name=name)
        self._root = root

    def _fetch(self, position: int) -> tuple[bytes, str, str]:
        path = self._root / self._column(LOCATIONS, "name")[position].decode()
        remedy = "Bring the file back as it was, or run the recipe again to index the dataset anew"
        try:
            return path.read_bytes(), str(path), remedy
        except OSError as error:
            raise CorruptSource(
                f"the images of dataset {self._name!r} must stay readable after they were indexed; "
                f"{path} (row number {position}) is not: {error.strerror}. {remedy}"
            ) from None


class PackedReader(ImageReader):
    """Reads rows from their packed copy."""

    def __init__(self, index: Folder, *, name: str, packed: ImageCache) -> None:
        super().__init__(index, name=name)
        self._packed = packed

    def _fetch(self, position: int) -> tuple[bytes, str, str]:
        piece, offset = (int(self._column(LOCATIONS, column)[position]) for column in ("piece", "offset"))
        data = self._packed.read(piece, offset=offset, size=int(self._column(ROWS, "size")[position]))
        return data, self._packed.path(piece), "Remove that file and run the same command again"


def _packed_rows(index: Folder) -> PackedRows:
    rows = read_table(index, ROWS, columns=["row_id", "size"])
    at = read_table(index, LOCATIONS, columns=["order", "piece", "offset"])
    return PackedRows(**rows, **at)
