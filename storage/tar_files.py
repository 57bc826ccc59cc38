"""Files in a tar archive, in their order and one at a time; nothing is ever extracted to disk."""

from __future__ import annotations

import posixpath
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (".tar", ".tar.gz", ".tgz")
READ_BYTES = 2**20
# What Python raises on archives that are cut short or damaged.
DAMAGE = (tarfile.TarError, zlib.error, EOFError, OSError)


class Member(NamedTuple):
    """A file or folder in an archive.

    Attributes:
        name: its path in the archive, posix, without a leading `./` or `/`.
        is_file: or else a folder.
        read: its bytes; to be called before the next member is asked for.
    """

    name: str
    is_file: bool
    read: Callable[[], bytes]


class _Archive(tarfile.TarFile):
    """Python's reader, whose list of all members seen is no secret."""

    members: list[tarfile.TarInfo]


def is_tar(path: Path) -> bool:
    """Whether a file's name is that of an archive."""
    return path.name.endswith(SUFFIXES)


def tar_members(path: Path) -> Iterator[Member]:
    """The files and folders of an archive in their order; links, devices and hidden names are passed over.

    Raises:
        ValueError: the archive is damaged or cut short; reading a member of it raises the same.
    """
    try:
        with _Archive.open(path, "r:" if path.suffix == ".tar" else "r:gz") as tar:
            while (info := tar.next()) is not None:
                # Or every member's header would stay in memory.
                tar.members = []
                name = posixpath.normpath(info.name).lstrip("/")
                if _is_shown(name) and (info.isdir() or (info.isreg() and not info.issparse())):
                    yield Member(name, info.isreg(), partial(_read, tar, info, path))
            _require_end(tar, path)
    except DAMAGE as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _is_shown(name: str) -> bool:
    parts = name.split("/")
    return name != "." and not any(part.startswith(".") and part != ".." for part in parts)


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo, path: Path) -> bytes:
    stream = tar.extractfile(info)
    assert stream is not None
    try:
        return stream.read()
    except DAMAGE as error:
        raise _damaged(path, str(error) or type(error).__name__) from error


def _require_end(tar: tarfile.TarFile, path: Path) -> None:
    # Python takes a damaged header for the end of the archive, and a missing end for an end.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block.count(0) != tarfile.BLOCKSIZE:
        raise _damaged(path, "a damaged header" if block else "its end is missing")
    # The checksum of compressed data comes last.
    while tar.fileobj.read(READ_BYTES):
        pass


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} must be an intact tar archive: {reason}. Fetch it again")
