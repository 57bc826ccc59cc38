"""The only door to Zarr: sharded arrays whose every write goes through the folder's door."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer, default_buffer_prototype

from storage.errors import CorruptFile, StoreAway, StoreUnwritable
from storage.folder import FileRecord, Folder

# Zarr reads a whole inner chunk; 8 MB keeps a random read cheap and a scan at the disk's speed.
INNER_CHUNK_BYTES = 8 * 2**20

# What Zarr raises for damaged data and descriptions.
READ_ERRORS = (ValueError, OSError, RuntimeError, KeyError, TypeError)
# What says already what is wrong, or is no damage.
PASSED_ON = (CorruptFile, StoreAway, StoreUnwritable)
REMEDY = "recompute the step that wrote it (--force)"

# Zarr leaves out chunks that hold only zeros; then nobody could tell them from lost ones.
zarr.config.set({"array.write_empty_chunks": True})


class _FolderStore(Store):
    """A folder as Zarr sees it: reads of files that are on this machine, writes through Folder.write.

    Attributes:
        written: the records of what was written since it was last cleared.
    """

    supports_writes = True
    supports_deletes = False
    supports_listing = True

    def __init__(self, folder: Folder, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self.folder = folder
        self.written: dict[str, FileRecord] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _FolderStore) and str(other.folder) == str(self.folder)

    def with_read_only(self, read_only: bool = False) -> _FolderStore:
        return _FolderStore(self.folder, read_only=read_only)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        # In this thread: each of a pool's threads would keep freed memory of its own, and shards are large.
        self.written[key] = self.folder.write(key, value.to_bytes())

    async def get(self, key: str, prototype: Any = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        try:
            data = self._read(key, byte_range)
        except FileNotFoundError:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return self.folder.exists(key)

    async def delete(self, key: str) -> None:
        raise NotImplementedError("what is kept is replaced or dropped whole")

    async def list(self) -> AsyncIterator[str]:
        for name in self.folder.files():
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in self.folder.files():
            if name.startswith(prefix):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        below = (name.removeprefix(start) for name in self.folder.files() if name.startswith(start))
        for name in sorted({name.partition("/")[0] for name in below}):
            yield name

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        with self.folder.local(key) as path, path.open("rb") as stream:
            if isinstance(byte_range, RangeByteRequest):
                stream.seek(byte_range.start)
                return stream.read(byte_range.end - byte_range.start)
            if isinstance(byte_range, OffsetByteRequest):
                stream.seek(byte_range.offset)
            if isinstance(byte_range, SuffixByteRequest):
                stream.seek(max(0, stream.seek(0, io.SEEK_END) - byte_range.suffix))
            return stream.read()


class ArrayWriter:
    """Writes the shards of one (N, ...) array. A shard is one assignment, one file, one record."""

    def __init__(self, folder: Folder, name: str, *, shape: tuple[int, ...], dtype: str, shard_rows: int) -> None:
        self._store = _FolderStore(folder)
        self._name = name
        self._shard_rows = shard_rows
        if not folder.exists(f"{name}/zarr.json"):
            _create(self._store, name, shape=shape, dtype=dtype, shard_rows=shard_rows)
        self._array = zarr.open_array(self._store, path=name, mode="r+", zarr_format=3)

    def write(self, shard: int, rows: np.ndarray) -> list[FileRecord]:
        """Write shard number `shard`; returns the records of the files that it made."""
        start = shard * self._shard_rows
        self._store.written.clear()
        self._array[start : start + len(rows)] = rows
        return list(self._store.written.values())


def _create(store: _FolderStore, name: str, *, shape: tuple[int, ...], dtype: str, shard_rows: int) -> None:
    row_bytes = int(np.dtype(dtype).itemsize * np.prod(shape[1:], dtype=np.int64))
    inner_rows = shard_rows
    # Inner chunks must divide the shard: halve it, or take single rows when it is odd.
    while inner_rows * row_bytes > INNER_CHUNK_BYTES and inner_rows > 1:
        inner_rows = inner_rows // 2 if inner_rows % 2 == 0 else 1
    zarr.create_array(
        store,
        name=name,
        shape=shape,
        dtype=dtype,
        chunks=(inner_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        serializer=BytesCodec(endian="little"),
        compressors=(Crc32cCodec(),),
        fill_value=0,
    )


def write_array(folder: Folder, name: str, values: np.ndarray) -> None:
    """Write a whole small array (centroids, say) as one shard."""
    rows = max(1, len(values))
    ArrayWriter(folder, name, shape=values.shape, dtype=str(values.dtype), shard_rows=rows).write(0, values)


def write_group(folder: Folder, attributes: Mapping[str, Any]) -> None:
    """Make the folder a Zarr group with these attributes."""
    zarr.create_group(_FolderStore(folder), attributes=dict(attributes), overwrite=False)


def read_group(folder: Folder) -> dict[str, Any]:
    """The attributes of the folder's Zarr group.

    Raises:
        CorruptFile: the group's file is missing or damaged.
    """
    try:
        attributes: dict[str, Any] = folder.read_json("zarr.json")["attributes"]
    except (FileNotFoundError, KeyError) as error:
        raise CorruptFile(f"{folder.at('zarr.json')} must describe a Zarr group; {REMEDY}") from error
    return attributes


class ArrayReader:
    """Reads rows of a kept array; a damaged chunk is named, never returned.

    Raises:
        CorruptFile: the array's description is missing or damaged.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        try:
            self._array = zarr.open_array(_FolderStore(folder, read_only=True), path=name, mode="r", zarr_format=3)
        except PASSED_ON:
            raise
        except READ_ERRORS as error:
            described = folder.at(f"{name}/zarr.json")
            raise CorruptFile(f"{described} must describe a Zarr array: {error}; {REMEDY}") from error

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def shard_rows(self) -> int:
        """Rows of one shard: the unit of writing."""
        return int((self._array.shards or self._array.chunks)[0])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop) as they were written.

        Raises:
            CorruptFile: a shard is missing, fails its checksum or is cut short; the message names its file.
        """
        shards = range(start // self.shard_rows, -(-stop // self.shard_rows))
        for shard in shards:
            self._require_kept(shard)
        try:
            return np.asarray(self._array[start:stop])
        except PASSED_ON:
            raise
        except READ_ERRORS as error:
            raise CorruptFile(f"{self._damaged(shards)} must be as it was written: {error}; {REMEDY}") from error

    def _file(self, shard: int) -> str:
        return "/".join([self._name, "c", str(shard), *["0"] * (len(self.shape) - 1)])

    def _require_kept(self, shard: int) -> None:
        """Zarr reads a shard that is missing or empty as zeros."""
        name = self._file(shard)
        # Of a remote folder this brings the shard here, whole, before Zarr reads parts of it.
        with self._folder.local(name) as path:
            if not path.is_file() or path.stat().st_size == 0:
                raise CorruptFile(f"the shard {self._folder.at(name)} must be there, and is missing or empty; {REMEDY}")

    def _damaged(self, shards: range) -> str:
        """The file of the first of these shards that cannot be read; the array's folder if all can, the second time."""
        for shard in shards:
            try:
                self._array[shard * self.shard_rows : (shard + 1) * self.shard_rows]
            except READ_ERRORS:
                return self._folder.at(self._file(shard))
        return self._folder.at(self._name)
