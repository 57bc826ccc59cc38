"""Checkpoints: one file, replaced whole; read back without running anything that it holds."""

from __future__ import annotations

import io
import pickle
import zipfile
import zlib
from typing import Any

from storage.errors import CorruptFile
from storage.folder import Folder

CHECKPOINT = "checkpoint.pt"
# What zipfile and torch raise for bytes that are no checkpoint.
READ_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    zipfile.BadZipFile,
    zlib.error,
)


def save_checkpoint(folder: Folder, state: dict[str, Any]) -> None:
    """Write a checkpoint over the one before.

    Args:
        state: tensors, numbers, strings, None, and lists and dicts of them.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    folder.write(CHECKPOINT, buffer.getbuffer())


def load_checkpoint(folder: Folder) -> dict[str, Any] | None:
    """The last checkpoint, its tensors on the CPU, or None when there is none.

    Raises:
        CorruptFile: the file is not a checkpoint, or holds more than data.
    """
    import torch

    try:
        data = folder.read(CHECKPOINT)
    except FileNotFoundError:
        return None
    try:
        _require_checksums(data)
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise CorruptFile(
            f"{folder.at(CHECKPOINT)} must be a checkpoint: {reason}. Remove the folder {folder} to begin this "
            "step anew"
        ) from error
    return state


def _require_checksums(data: bytes) -> None:
    """torch writes the CRC-32 of every part and does not look at it when it reads."""
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        if damaged := parts.testzip():
            raise zipfile.BadZipFile(f"the part {damaged} fails its checksum")
