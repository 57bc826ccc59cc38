"""Reduced precision, as a recipe names it."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal

import torch

log = logging.getLogger(__name__)

Precision = Literal["bf16", "float32"]


def autocast(device: torch.device, *, precision: Precision) -> torch.autocast:
    """A block whose matrix products and convolutions are in this precision.

    Args:
        device: of the tensors.
        precision: bf16 where the hardware does not multiply it is emulated: the same results, slower, and a warning.
    """
    if precision == "bf16" and not multiplies_bf16(device.type):
        _warn_once(device.type)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def full_precision(device: torch.device) -> torch.autocast:
    """A block in float32 inside `autocast`, for a loss: the three digits of bf16 are too few for an exponent."""
    return torch.autocast(device.type, enabled=False)


@cache
def multiplies_bf16(kind: str) -> bool:
    """Whether the hardware of a kind of device (cpu, cuda) multiplies bf16 itself."""
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@cache
def _warn_once(kind: str) -> None:
    log.warning("this %s does not multiply bf16 and emulates it, slowly; precision: float32 is faster here", kind)
