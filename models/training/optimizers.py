"""Optimisers: one for each objective of a method."""

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, model_validator
from torch.optim import Optimizer

from models.pretext.base import ParameterGroup, PretextMethod
from models.training.lars import LARS


class OptimizerConfig(BaseModel, frozen=True, extra="forbid"):
    """Base values; a method's parameter groups scale them."""

    name: Literal["sgd", "adamw", "lars"] = "sgd"
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 5e-4
    decay_vectors: bool = True  # False: no decay on biases and norms (all parameters of one dimension)
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd, lars
    nesterov: bool = False  # sgd
    betas: tuple[float, float] = (0.9, 0.999)  # adamw

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError(
                f"nesterov needs sgd with momentum. Got name={self.name!r}, momentum={self.momentum}. "
                "Set nesterov to false or give sgd a momentum."
            )
        return self


def build_optimizers(method: PretextMethod, config: OptimizerConfig) -> dict[str, Optimizer]:
    """Build one optimiser for each objective that `method.parameter_groups()` names.

    Raises:
        ValueError: a parameter is in two groups, in none, or in an objective without any; or a group sets its
            own momentum and the optimiser has none.
    """
    objectives = method.parameter_groups()
    _check_groups(method, objectives)
    return {
        objective: _build([part for group in groups for part in _split(group, config)], config=config)
        for objective, groups in objectives.items()
    }


def set_lr(optimizer: Optimizer, *, factor: float) -> None:
    """Set each group's learning rate: the base value times its rate and, where scheduled, `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = optimizer.defaults["lr"] * group["rate"] * (factor if group["scheduled"] else 1.0)


def _check_groups(method: PretextMethod, objectives: dict[str, list[ParameterGroup]]) -> None:
    listed = [id(p) for groups in objectives.values() for group in groups for p in group.parameters]
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    empty = sorted(name for name, groups in objectives.items() if not any(g.parameters for g in groups))
    if len(set(listed)) != len(listed) or set(listed) != trained or empty:
        raise ValueError(
            f"{type(method).__name__}.parameter_groups must name each of its {len(trained)} trained "
            f"parameters once. Got {len(listed)} names of {len(set(listed))}; objectives with none: {empty}. "
            "Correct the groups, or set requires_grad to False on what is not trained."
        )


def _split(group: ParameterGroup, config: OptimizerConfig) -> list[dict[str, Any]]:
    if group.momentum is not None and config.name == "adamw":
        raise ValueError(
            f"A parameter group sets momentum={group.momentum}, which only sgd and lars have. "
            f"Got {config.name!r}. Use sgd for this method."
        )
    decay = config.weight_decay * group.decay
    shared: dict[str, Any] = {"rate": group.rate, "scheduled": group.scheduled}
    if group.momentum is not None:
        shared["momentum"] = group.momentum
        shared["nesterov"] = config.nesterov and group.momentum > 0
    if config.decay_vectors:
        return [{"params": group.parameters, "weight_decay": decay, **shared}]
    matrices = [p for p in group.parameters if p.ndim > 1]
    vectors = [p for p in group.parameters if p.ndim <= 1]
    parts = [
        {"params": matrices, "weight_decay": decay, **shared},
        {"params": vectors, "weight_decay": 0.0, **shared},
    ]
    return [part for part in parts if part["params"]]


def _build(groups: list[dict[str, Any]], *, config: OptimizerConfig) -> Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "lars":
        return LARS(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
