"""The training loop: a generator of steps; saving, logging and stopping are its user's."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from pydantic import BaseModel, PositiveFloat, PositiveInt
from torch.optim import Optimizer

from models.precision import Precision, autocast
from models.pretext.base import MAIN, Batch, Output, PretextMethod
from models.split_batch import SplitBatch
from models.training.optimizers import set_lr
from models.training.schedules import ScheduleConfig, scale


class LoopConfig(BaseModel, frozen=True, extra="forbid"):
    """What the loop needs to know about a training."""

    epochs: PositiveInt
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Precision = "float32"
    clip_norm: PositiveFloat | None = None  # largest L2 norm of an objective's gradient


class NonFiniteLoss(ValueError):
    """A loss became infinite or not a number; what is in memory cannot be trained on."""


@dataclass(frozen=True)
class StepReport:
    """One finished step.

    Attributes:
        step: steps done, this one included.
        epoch: the epoch it belongs to, from 0.
        epoch_ends: it was the last of its epoch.
        losses: by objective.
        metrics: as the method names them.
        lr: learning rate of the objective "main".
    """

    step: int
    epoch: int
    epoch_ends: bool
    losses: dict[str, float]
    metrics: dict[str, float]
    lr: float


@dataclass
class TrainState:
    """All that changes during a training, and so all that a checkpoint holds.

    The epoch and the place in the data follow from `step`; views have no state (see `models.views.Draw`).

    Attributes:
        method: on its device.
        optimizers: by objective, from `build_optimizers`.
        step: steps done.
    """

    method: PretextMethod
    optimizers: dict[str, Optimizer]
    step: int = 0

    @property
    def device(self) -> torch.device:
        """Where the method's parameters lie."""
        return next(self.method.parameters()).device

    def state_dict(self) -> dict[str, Any]:
        """Gather the state, torch's random states included; `torch.load(weights_only=True)` can read it.

        The tensors are those in use: serialise before the next step.
        """
        on_cuda = self.device.type == "cuda"
        return {
            "method": self.method.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "step": self.step,
            "random": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state(self.device) if on_cuda else None,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a gathered state; loaded tensors may lie on any device.

        Raises:
            ValueError: the state has other objectives than this training.
        """
        if set(state["optimizers"]) != set(self.optimizers):
            raise ValueError(
                f"A checkpoint must hold the objectives {sorted(self.optimizers)}. "
                f"Got {sorted(state['optimizers'])}. Resume with the method that wrote it."
            )
        self.method.load_state_dict(state["method"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.step = state["step"]
        torch.set_rng_state(state["random"]["cpu"].cpu())
        if self.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"].cpu(), self.device)


def train(
    state: TrainState,
    read_epoch: Callable[[int, int], Iterable[Batch]],
    *,
    config: LoopConfig,
    steps_per_epoch: int,
    read_chunks: Callable[[], Iterator[Batch]],
    split: SplitBatch | None = None,
) -> Iterator[StepReport]:
    """Train from `state.step` to the end, one step for each report.

    Args:
        state: is advanced in place; between two reports it may be saved.
        read_epoch: (epoch, start) -> the epoch's batches from number `start` on, in the epoch's order.
        config: epochs, schedule, precision, clipping.
        steps_per_epoch: batches of a whole epoch.
        read_chunks: starts a pass over all rows, for methods that prepare an epoch (`before_epoch`).
        split: what part of each batch `read_epoch` gives here, on one of several ranks.
    Raises:
        ValueError: an epoch has too few batches, or the loss has other objectives than the optimisers.
        NonFiniteLoss: after the step whose loss was not finite; the state is then of no use.
    """
    total_steps = config.epochs * steps_per_epoch
    split = split or SplitBatch(1)
    while state.step < total_steps:
        epoch, start = divmod(state.step, steps_per_epoch)
        if start == 0:
            state.method.before_epoch(read_chunks)
        state.method.train()
        for batch in _read(read_epoch, epoch=epoch, start=start, stop=steps_per_epoch):
            factor = scale(state.step, config=config.schedule, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
            for optimizer in state.optimizers.values():
                set_lr(optimizer, factor=factor)
            scalars = _step(state, batch, config=config, progress=state.step / total_steps, split=split)
            losses, metrics = scalars.wait()
            _require_finite(losses, step=state.step)
            yield StepReport(
                step=state.step,
                epoch=epoch,
                epoch_ends=state.step % steps_per_epoch == 0,
                losses=losses,
                metrics=metrics,
                lr=factor * state.optimizers[MAIN].defaults["lr"],
            )


def _read(read_epoch: Callable[[int, int], Iterable[Batch]], *, epoch: int, start: int, stop: int) -> Iterator[Batch]:
    """Give the batches start, ..., stop - 1 of an epoch.

    A reader may draw from torch's generator (a DataLoader does whenever it starts), and a resumed run starts
    one more than a run that never stopped. So reading leaves the generator that dropout uses as it was.
    """
    with torch.random.fork_rng(devices=[]):
        batches = iter(read_epoch(epoch, start))
    for number in range(start, stop):
        with torch.random.fork_rng(devices=[]):
            batch = next(batches, None)
        if batch is None:
            raise ValueError(
                f"Epoch {epoch} must give {stop} batches. The reader ended after {number}. "
                "Give train the steps_per_epoch that the reader has."
            )
        yield batch


def _step(state: TrainState, batch: Batch, *, config: LoopConfig, progress: float, split: SplitBatch) -> "_Scalars":
    """Compute losses and gradients, move the parameters, and count the step."""
    device = state.device
    with autocast(device, precision=config.precision):
        output = state.method.loss(batch.to(device), progress)
    if set(output.objectives) != set(state.optimizers):
        raise ValueError(
            f"The loss must have the objectives of parameter_groups(), {sorted(state.optimizers)}. "
            f"Got {sorted(output.objectives)}. Correct {type(state.method).__name__}."
        )
    scalars = _Scalars(output, split)
    for name, loss in output.objectives.items():
        state.optimizers[name].zero_grad(set_to_none=True)
        own = [p for group in state.optimizers[name].param_groups for p in group["params"]]
        # Several losses may share one graph.
        split.weigh(loss).backward(inputs=own, retain_graph=len(output.objectives) > 1)
        split.sum_gradients(own)
        if config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(own, config.clip_norm)
    # All gradients are taken before any parameter moves: a graph may hold another's parameters.
    for optimizer in state.optimizers.values():
        optimizer.step()
    with torch.no_grad():
        state.method.after_step(progress)
    state.step += 1
    return scalars


class _Scalars:
    """Losses and metrics on their way from the device.

    The copy is queued right after the forward pass. Waiting for it leaves the backward pass and the update
    running, so that the device does not idle while the next step is being queued.
    """

    def __init__(self, output: Output, split: SplitBatch) -> None:
        self._losses, self._metrics = list(output.objectives), list(output.metrics)
        scalars = [*output.objectives.values(), *output.metrics.values()]
        self._host = split.mean(torch.stack([scalar.detach().to(torch.float32) for scalar in scalars]))
        self._copied: torch.cuda.Event | None = None
        if self._host.device.type == "cuda":
            pinned = torch.empty(len(scalars), pin_memory=True)
            self._host = pinned.copy_(self._host, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def wait(self) -> tuple[dict[str, float], dict[str, float]]:
        """Give losses and metrics by name."""
        if self._copied is not None:
            self._copied.synchronize()
        values = self._host.tolist()
        cut = len(self._losses)
        return (
            dict(zip(self._losses, values[:cut], strict=True)),
            dict(zip(self._metrics, values[cut:], strict=True)),
        )


def _require_finite(losses: dict[str, float], *, step: int) -> None:
    for name, loss in losses.items():
        if not isfinite(loss):
            raise NonFiniteLoss(
                f"Every loss must be finite. At step {step} the loss {name!r} is {loss}. Resume "
                "from the last checkpoint with 1. a lower lr, 2. a longer warm-up, 3. clip_norm, "
                "or 4. precision float32."
            )
