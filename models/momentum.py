"""A network that follows another slowly and has no gradient."""

import copy
import math
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def slow_copy(module: Module) -> Module:
    """Copy a network, buffers too, into one that no optimiser moves."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(slow: nn.Module, module: nn.Module, *, momentum: float) -> None:
    """Move the parameters of `slow` to momentum * slow + (1 - momentum) * module.

    Buffers stay: in training mode BatchNorm counts for itself, as in the code of MoCo, BYOL and DINO.
    """
    for mine, theirs in zip(slow.parameters(), module.parameters(), strict=True):
        mine.lerp_(theirs, 1 - momentum)


def rising_momentum(start: float, *, progress: float) -> float:
    """Give the momentum after a share of the training: from `start` at 0 to 1 at 1, along a cosine.

    Source: Grill et al. 2020 (arXiv 2006.07733), section 3.3.
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2
