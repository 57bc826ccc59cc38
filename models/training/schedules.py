"""Schedules: each value is a pure function of the step, so a resumed run needs no state for it."""

import math
from bisect import bisect_right
from typing import Literal, Self

from pydantic import BaseModel, Field, NonNegativeInt, model_validator


class ScheduleConfig(BaseModel, frozen=True, extra="forbid"):
    """How a learning rate moves between the first and the last step."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 0  # linear rise to the base value
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)  # the same as a share of all steps
    warmup_start: float = Field(default=0.0, ge=0, le=1)  # share of the base value before the first step
    final: float = Field(default=0.0, ge=0, le=1)  # cosine: share of the base value after the last step
    milestones: tuple[float, ...] = ()  # step: in epochs, rising
    gamma: float = Field(default=0.1, gt=0)  # step: factor at each milestone

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps and self.warmup_fraction:
            raise ValueError("A warm-up has one length. Got both warmup_steps and warmup_fraction. Set one to 0.")
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must rise. Got {self.milestones}. Sort them and drop repeats.")
        if (self.kind == "step") != bool(self.milestones):
            raise ValueError(
                f"milestones belong to kind 'step', and it needs some. Got kind={self.kind!r}, "
                f"milestones={self.milestones}. Change one of the two."
            )
        return self


def scale(step: int, *, config: ScheduleConfig, total_steps: int, steps_per_epoch: int) -> float:
    """Give the factor of the base value at a step.

    Args:
        step: from 0 to total_steps - 1.
        total_steps: of the whole training.
        steps_per_epoch: turns milestones into steps.
    Returns:
        The factor; the last step of the warm-up is the first at 1.
    """
    warmup = config.warmup_steps or round(config.warmup_fraction * total_steps)
    if step < warmup:
        return config.warmup_start + (1 - config.warmup_start) * (step + 1) / warmup
    if config.kind == "cosine":
        done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return config.final + (1 - config.final) * (1 + math.cos(math.pi * done)) / 2
    if config.kind == "step":
        return config.gamma ** bisect_right(config.milestones, step / steps_per_epoch)
    return 1.0
