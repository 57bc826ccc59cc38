"""What all stages that train have in common: settings, checkpoints, progress, and the encoder that comes out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from models.backbones import Architecture, build_backbone
from models.collective import any_rank, rank
from models.precision import Precision
from models.pretext.base import Batch, PretextMethod
from models.split_batch import SplitBatch
from models.training.loop import LoopConfig, StepReport, TrainState, train
from models.training.optimizers import OptimizerConfig, build_optimizers
from models.training.schedules import ScheduleConfig
from storage.dataset_index import DatasetIndex
from storage.encoders import write_encoder
from tasks.interruption import deferred_signals
from tasks.loading import TrainingOrder, batches
from tasks.stage import Work

log = logging.getLogger(__name__)

# About as many points as a curve on a screen can show.
LOGGED_STEPS = 500


class TrainingSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings of a training of any network; what a method adds to them is in `options`."""

    method: str = Field(description="Name of the file in models/pretext or models/transfer.")
    options: dict[str, Any] = Field(
        default_factory=dict, validate_default=True, description="The method's own settings."
    )
    epochs: NonNegativeInt = Field(description="Passes over the data; 0 keeps the random weights.")
    batch_size: PositiveInt = Field(256, description="Images a step, over all ranks.")
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: Precision = Field("float32", description="Of the forward pass.")
    clip_norm: PositiveFloat | None = Field(None, description="Largest norm of the gradient; none does not clip.")
    seed: int = Field(0, description="Of the weights, the order and the views.")


class TrainingConfig(TrainingSettings, frozen=True, extra="forbid"):
    """Settings of the training of a network that is made anew."""

    architecture: Architecture = Field(description="The network that is trained.")


def full_options(kind: type[PretextMethod], options: dict[str, Any]) -> dict[str, Any]:
    """The method's settings with every default written out, so that the key holds them all.

    Raises:
        ValueError: a key that the method does not have, or a value that it does not allow.
    """
    try:
        return kind.Config.model_validate(options).model_dump(mode="json")
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        known = ", ".join(kind.Config.model_fields)
        raise ValueError(f"{wrong} (the options of {kind.__name__} are {known})") from None


def rows_apart(kind: type[PretextMethod]) -> bool:
    """Whether a method's batches can be split over ranks; says so if not."""
    if not kind.rows_apart:
        log.warning("%s looks at all rows of a batch at once: it is trained on one rank", kind.__name__)
    return kind.rows_apart


def build_method(
    kind: type[PretextMethod], config: TrainingConfig, *, num_rows: int, num_labels: int | None = None
) -> PretextMethod:
    """A method with fresh weights drawn from the config's seed, on the CPU."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.architecture)
    return kind(kind.Config.model_validate(config.options), backbone, num_rows=num_rows, num_labels=num_labels)


def fit(
    config: TrainingConfig,
    work: Work,
    *,
    method: PretextMethod,
    images: DatasetIndex,
    labels: np.ndarray | None = None,
    positions: np.ndarray | None = None,
) -> None:
    """Train a method, from its last checkpoint if there is one.

    Args:
        labels: (N,) int64 by row position.
        positions: rows to train on; all by default.
    Raises:
        ValueError: a checkpoint of another network lies in the work folder.
        NonFiniteLoss: the training diverged.
    """
    order = TrainingOrder(
        np.arange(images.num_rows) if positions is None else positions, batch_size=config.batch_size, seed=config.seed
    )
    total = config.epochs * order.steps_per_epoch
    method.to(work.runtime.torch_device).to(memory_format=torch.channels_last)
    split = SplitBatch(order.batch_size)
    split.prepare(method)
    state = TrainState(method, build_optimizers(method, config.optimizer))
    _restore(state, work)
    if state.step >= total:
        return
    stream = batches(
        images,
        order.places(first_step=state.step, total_steps=total),
        viewer=method.viewer(),
        runtime=work.runtime,
        seed=config.seed,
        labels=labels,
    )
    reports = train(
        state,
        # One stream runs through all epochs, so that workers start once.
        lambda _epoch, _start: stream,
        config=LoopConfig(
            epochs=config.epochs, schedule=config.schedule, precision=config.precision, clip_norm=config.clip_norm
        ),
        steps_per_epoch=order.steps_per_epoch,
        read_chunks=_no_chunks,
        split=split,
    )
    _follow(reports, state, work, total=total)


def _no_chunks() -> Iterator[Batch]:
    """No method of today clusters while it trains."""
    return iter(())


def _follow(reports: Iterator[StepReport], state: TrainState, work: Work, *, total: int) -> None:
    """Log, show and save; stop between two steps when asked to."""
    saved = time.monotonic()
    every = max(1, total // LOGGED_STEPS)
    with deferred_signals() as interruption:
        for report in reports:
            if report.step % every == 0 or report.epoch_ends:
                losses = {f"loss/{name}": value for name, value in report.losses.items()}
                work.log({**losses, **report.metrics, "lr": report.lr, "epoch": report.epoch}, step=report.step)
            if report.epoch_ends:
                health = {f"health/{name}": value for name, value in state.method.health().items()}
                work.log(health, step=report.step)
            work.progress(report.step, total, unit="steps")
            due = time.monotonic() - saved >= work.runtime.checkpoint_seconds
            if any_rank(interruption.asked):
                interruption.ask()
            if due or interruption.asked or report.step == total:
                work.save(state.state_dict())
                saved = time.monotonic()
            interruption.stop()


def _restore(state: TrainState, work: Work) -> None:
    checkpoint = work.load()
    if checkpoint is None:
        return
    try:
        state.load_state_dict(checkpoint)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint in {work.state} must be of this very network and method, and is not: {reason}. "
            "Remove that folder to train from the beginning"
        ) from error


def keep_encoder(config: TrainingConfig, work: Work, *, method: PretextMethod) -> None:
    """Write the encoder that a training ends with."""
    if rank() > 0:
        return
    write_encoder(
        work.data,
        backbone=method.backbone.state_dict(),
        heads={name: head.state_dict() for name, head in method.heads().items()},
        description={
            "architecture": config.architecture.model_dump(mode="json"),
            "method": config.method,
            "options": config.options,
            "normalisation": {"mean": list(method.config.mean), "std": list(method.config.std)},
            "layers": list(method.backbone.layers),
        },
    )
