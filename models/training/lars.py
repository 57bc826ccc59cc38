"""LARS: each weight moves in proportion to its own length, which large batches need."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose gradients are scaled, weight by weight, by trust * |w| / |gradient + decay * w|.

    Biases and norms (parameters of one dimension) move as in SGD, and so does a weight of length zero.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: share of the last step in the next.
        weight_decay: times the weight, added to its gradient.
        trust: how far a weight may move at a rate of 1, as a share of its length.
    Source: You et al. 2017 (arXiv 1708.03888), algorithm 1; https://github.com/google-research/simclr
        lars_optimizer.py at 383d414. Differs: the rate is outside of the momentum, as in torch's SGD and the code of
        Barlow Twins.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all parameters that have a gradient; a closure, as other optimisers take, is not for this one."""
        assert closure is None  # no loop here has one
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        change = parameter.grad.add(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1:
            length, size = parameter.norm(), change.norm()
            trusted = (length > 0) & (size > 0)
            change.mul_(torch.where(trusted, group["trust"] * length / size, 1.0))
        velocity = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        velocity.mul_(group["momentum"]).add_(change)
        parameter.add_(velocity, alpha=-group["lr"])
