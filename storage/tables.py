"""The only door to pyarrow: columns to Parquet bytes and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import CorruptFile
from storage.folder import Folder


def table_bytes(
    columns: Mapping[str, np.ndarray | Sequence[Any]], *, metadata: Mapping[str, str] | None = None
) -> bytes:
    """Parquet with a checksum on every page; equal columns give equal bytes under one pyarrow version."""
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    table = table.replace_schema_metadata(dict(metadata or {}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_table(folder: Folder, name: str, *, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The columns of a kept Parquet file, numbers as their own dtype and text as objects.

    Raises:
        CorruptFile: the file is missing or damaged; the message names it.
    """
    path = folder.path / name
    try:
        table = pq.read_table(path, columns=columns, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CorruptFile(f"{path} must be an intact Parquet file: {str(error).splitlines()[0]}") from error
    return {column: table[column].to_numpy(zero_copy_only=False) for column in table.column_names}
