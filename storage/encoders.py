"""Encoder: a network's weights and all that is needed to build and feed it; opens without unpickling anything."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, ClassVar

from storage.artifact import Artifact
from storage.errors import CorruptFile, StoreAway, StoreUnwritable
from storage.folder import Folder, canonical_json

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "weights.safetensors"
DESCRIPTION = "encoder.json"


class Encoder(Artifact):
    """A backbone and its named heads.

    The weights' names are `backbone.<...>` and `heads.<name>.<...>`.
    """

    kind: ClassVar[str] = "Encoder"

    def description(self) -> dict[str, Any]:
        """What was written beside the weights: `architecture`, `normalisation`, `method` and more."""
        description: dict[str, Any] = self.folder.read_json(DESCRIPTION)
        return description

    def backbone_weights(self) -> dict[str, Tensor]:
        """The backbone's state dict, on the CPU.

        Raises:
            CorruptFile: the weights file cannot be read.
        """
        return self._weights("backbone.")

    def head_weights(self, head: str) -> dict[str, Tensor]:
        """One head's state dict, on the CPU; empty when the encoder has no such head."""
        return self._weights(f"heads.{head}.")

    def _weights(self, prefix: str) -> dict[str, Tensor]:
        from safetensors import SafetensorError, safe_open

        try:
            with self.folder.local(WEIGHTS) as path, safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        except (StoreAway, StoreUnwritable):
            raise
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{self.folder.at(WEIGHTS)} must be an intact safetensors file: {error}") from error


def write_encoder(
    folder: Folder,
    *,
    backbone: dict[str, Tensor],
    heads: dict[str, dict[str, Tensor]],
    description: dict[str, Any],
) -> None:
    """Write an encoder's two files.

    Args:
        backbone: the backbone's state dict.
        heads: head name -> its state dict.
        description: JSON values; at least `architecture` and `normalisation`.
    """
    from safetensors.torch import save

    weights = {f"backbone.{name}": tensor for name, tensor in backbone.items()}
    for head, state in heads.items():
        weights |= {f"heads.{head}.{name}": tensor for name, tensor in state.items()}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    folder.write(WEIGHTS, save(plain))
    folder.write_json(DESCRIPTION, description)


def space_id(encoder: Encoder, *, layer: str, pooling: dict[str, Any], view: dict[str, Any]) -> str:
    """The name of a feature space: distances between vectors of two spaces mean nothing."""
    parts = {"encoder": encoder.digest, "layer": layer, "pooling": pooling, "view": view}
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:32]
