"""The only door to pyarrow: columns to Parquet bytes and back.

Text lives in memory as UTF-8 bytes of one width, numpy's dtype S: a quarter of numpy's own text, and no Python object a
row. In a file it is Arrow's string.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import CorruptFile, StoreAway, StoreUnwritable
from storage.folder import Folder

# Arrow's own pool keeps much of what it once took; the system takes it back.
pa.set_memory_pool(pa.system_memory_pool())

# A mask of so many rows is made at a time while text is laid out.
TEXT_ROWS = 65_536


def text_column(values: Iterable[str]) -> np.ndarray:
    """Text as a column, (N,) of dtype S."""
    return np.array([value.encode() for value in values], dtype=bytes)


def table_bytes(columns: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None) -> bytes:
    """Parquet with a checksum on every page; equal columns give equal bytes under one pyarrow version."""
    table = pa.table({name: _to_arrow(values) for name, values in columns.items()})
    table = table.replace_schema_metadata(dict(metadata or {}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def read_table(folder: Folder, name: str, *, columns: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The columns of a kept Parquet file, numbers as their own dtype and text as dtype S.

    Raises:
        CorruptFile: the file is missing or damaged; the message names it.
    """
    try:
        with folder.local(name) as path:
            table = pq.read_table(path, columns=columns, page_checksum_verification=True, partitioning=None)
    except (StoreAway, StoreUnwritable):
        raise
    except (OSError, pa.ArrowException) as error:
        raise CorruptFile(f"{folder.at(name)} must be an intact Parquet file: {str(error).splitlines()[0]}") from error
    return {column: _to_numpy(table[column]) for column in table.column_names}


def _to_arrow(values: np.ndarray) -> pa.Array | pa.ChunkedArray:
    array = pa.array(values)
    return array.cast(pa.string()) if values.dtype.kind == "S" else array


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    if not pa.types.is_string(column.type):
        numbers: np.ndarray = column.to_numpy(zero_copy_only=False)
        return numbers
    # Numpy has no width of 0.
    width = max([1, *(int(np.diff(offsets).max()) for offsets, _ in _text_buffers(column))])
    rows = np.zeros((len(column), width), dtype=np.uint8)
    first = 0
    for offsets, data in _text_buffers(column):
        used = np.arange(width) < np.diff(offsets)[:, None]
        rows[first : first + len(used)][used] = data[offsets[0] : offsets[-1]]
        first += len(used)
    return rows.view(f"S{width}").ravel()


def _text_buffers(column: pa.ChunkedArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per at most TEXT_ROWS rows: offsets, (rows + 1,) int32, and the UTF-8 bytes that they point into."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), TEXT_ROWS):
            part = chunk[start : start + TEXT_ROWS]
            _, offsets, data = part.buffers()
            bounds = np.frombuffer(offsets, dtype=np.int32, count=len(part) + 1, offset=4 * part.offset)
            yield bounds, np.frombuffer(data or b"", dtype=np.uint8)
