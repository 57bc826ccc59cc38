"""Checkpoints: one file, replaced whole; read back without running anything that it holds."""

from __future__ import annotations

import io
import pickle
from typing import Any

from storage.errors import CorruptFile
from storage.folder import Folder

CHECKPOINT = "checkpoint.pt"


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
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise CorruptFile(
            f"{folder.path / CHECKPOINT} must be a checkpoint: {str(error).splitlines()[0]}. Remove the folder "
            f"{folder.path} to begin this step anew"
        ) from error
    return state
