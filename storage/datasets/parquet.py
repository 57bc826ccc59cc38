"""Parquet files in the layout of Hugging Face `datasets`: an image column and a label column.

Source: https://huggingface.co/docs/datasets/image_dataset, and /about_dataset_features for ClassLabel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict

from storage.datasets.source import DatasetConfig, FormatOptions, Source, require_split
from storage.entries import Entry, Target

# train.parquet, train-00000-of-00002.parquet, train-00000-of-00002-0a1b2c3d4e5f.parquet
SHARD_NAME = re.compile(r"(?P<split>.+?)(-\d+-of-\d+(-[0-9a-f]+)?|-\d+)?\.parquet")
BATCH_ROWS = 256
READ_BYTES = 2**20


class ParquetOptions(FormatOptions):
    """Where in the table things are.

    Attributes:
        image: column of the encoded images: a struct with a field `bytes`, or bytes.
        label: column of the class number, or of a list of numbers where an image shows several classes; none reads
            the images without labels.
    """

    model_config = ConfigDict(extra="forbid")

    image: str = "image"
    label: str | None = "label"


class Parquet(Source):
    """One Parquet file, or a folder of shards whose names begin with their split."""

    Options = ParquetOptions

    def __init__(self, config: DatasetConfig, *, place: Path | None) -> None:
        super().__init__(config, place=place)
        assert place is not None
        paths = [place] if place.is_file() else sorted(place.glob("*.parquet"))
        splits = {path: match["split"] for path in paths if (match := SHARD_NAME.fullmatch(path.name))}
        if paths:
            require_split(config, known=sorted(set(splits.values())), place=place)
        self._shards = {path: name for path, name in splits.items() if config.split in (None, name)}

    @property
    def _options(self) -> ParquetOptions:
        assert isinstance(self.config.options, ParquetOptions)
        return self.config.options

    @cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The class names of the `huggingface` schema metadata, which all shards must share."""
        named = {path: self._classes_of(path) for path in self._shards} if self._options.label else {}
        if len(set(named.values())) > 1:
            raise ValueError(
                f"all shards of dataset {self.config.name!r} must name the same classes; got different "
                f"ones in {', '.join(path.name for path in named)}. Read one split, or repair the shards"
            )
        return next(iter(named.values()), None)

    @cached_property
    def annotated(self) -> bool:
        """Whether the column of labels holds lists."""
        label = self._options.label
        return label is not None and any(
            _is_list(self._open(path).schema_arrow.field(label).type) for path in self._shards
        )

    def _classes_of(self, path: Path) -> tuple[str, ...] | None:
        metadata = (self._open(path).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        features: dict[str, Any] = json.loads(metadata).get("info", {}).get("features", {})
        feature = features.get(self._options.label or "", {})
        # Of a list: the feature of its items, in a list of one in older files.
        item = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        names = item.get("names")
        return tuple(names) if names else None

    def __len__(self) -> int:
        return sum(self._open(path).metadata.num_rows for path in self._shards)

    def files(self) -> Iterator[tuple[str, Path]]:
        """One file a shard."""
        return ((path.name, path) for path in self._shards)

    def entries(self, *, start: int = 0) -> Iterator[Entry]:
        """The rows, shard by shard; row groups before `start` are not read."""
        for path, split in self._shards.items():
            file = self._open(path)
            rows = file.metadata.num_rows
            if start < rows:
                for row, data, found in self._rows(file, path, start=start):
                    name = f"{path.name}#{row}"
                    labels = self._labels(found, name=name)
                    if self.annotated:
                        yield Entry(name, split, label=None, data=data, targets=tuple(map(Target, labels)))
                    else:
                        yield Entry(name, split, label=labels[0] if labels else None, data=data)
            start = max(0, start - rows)

    def _labels(self, found: int | list[int] | None, *, name: str) -> list[int]:
        listed = found if isinstance(found, list) else [found]
        # Hugging Face writes -1 for "not labelled".
        labels = [label for label in listed if label is not None and label >= 0]
        if self.classes is not None and labels and max(labels) >= len(self.classes):
            raise ValueError(
                f"labels of dataset {self.config.name!r} must be below {len(self.classes)} (classes); "
                f"got {max(labels)} at {name}. Repair it, or set options: {{label: null}}"
            )
        return labels

    def _rows(
        self, file: pq.ParquetFile, path: Path, *, start: int
    ) -> Iterator[tuple[int, bytes, int | list[int] | None]]:
        """Row number, image and label or labels of the rows of one shard from `start` on."""
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        skipped, row = 0, 0
        while row + groups[skipped] <= start:
            row += groups[skipped]
            skipped += 1
        options = self._options
        columns = [options.image] + ([options.label] if options.label else [])
        batches = file.iter_batches(
            batch_size=BATCH_ROWS, row_groups=list(range(skipped, len(groups))), columns=columns
        )
        try:
            for batch in batches:
                images = batch.column(options.image)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                labels = batch.column(options.label) if options.label else pa.nulls(len(batch))
                for image, label in zip(images, labels, strict=True):
                    if row >= start:
                        # No bytes: the probe quarantines the row as empty.
                        yield row, image.as_py() or b"", label.as_py()
                    row += 1
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error

    def _open(self, path: Path) -> pq.ParquetFile:
        try:
            # Neither mapped nor buffered before it is asked for: either way a shard would lie in memory whole.
            file = pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        self._require_columns(file.schema_arrow, path)
        return file

    def _require_columns(self, schema: pa.Schema, path: Path) -> None:
        options = self._options
        for option, column in (("image", options.image), ("label", options.label)):
            if column is not None and column not in schema.names:
                raise ValueError(
                    f"{path} must have a column {column!r} (option {option}); got {', '.join(schema.names)}. "
                    f"Name another: options: {{{option}: NAME}}; label may be null"
                )
        image = schema.field(options.image).type
        in_struct = pa.types.is_struct(image) and image.get_field_index("bytes") >= 0
        holds = image.field("bytes").type if in_struct else image
        if not (pa.types.is_binary(holds) or pa.types.is_large_binary(holds)):
            raise ValueError(
                f"the column {options.image!r} of {path} must hold encoded images as bytes; got {image}. "
                f"Name another: options: {{image: NAME}}"
            )
        kind = schema.field(options.label).type if options.label else pa.int64()
        if not pa.types.is_integer(kind.value_type if _is_list(kind) else kind):
            raise ValueError(
                f"the column {options.label!r} of {path} must hold class numbers; got {kind}. "
                f"Name another: options: {{label: NAME}}, or null for none"
            )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} must be an intact Parquet file: {str(error).splitlines()[0]}. Fetch it again")
