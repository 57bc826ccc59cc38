"""Rows of a dataset to batches of tensors, decoded in worker processes, in an order that only the seed decides."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.collective import share
from models.pretext.base import Batch
from models.views import Draw, center_crop, resize_shorter
from storage.dataset_index import DatasetIndex, ImageReader
from storage.images import decode
from tasks.runtime import Runtime

Viewer = Callable[[Tensor, Draw], dict[str, Tensor]]


class _Place(NamedTuple):
    """One row of one pass over the data."""

    epoch: int
    position: int


class _Rows(Dataset[tuple[dict[str, Tensor], int]]):
    """Decodes a row and makes its views."""

    def __init__(self, images: ImageReader, *, num_rows: int, viewer: Viewer, seed: int) -> None:
        self._images = images
        self._num_rows = num_rows
        self._viewer = viewer
        self._seed = seed

    def __getitem__(self, place: _Place) -> tuple[dict[str, Tensor], int]:
        row_id = self._images.row_id(place.position)
        draw = Draw(self._seed, epoch=place.epoch, row_id=row_id, others=self._another_image)
        return self._viewer(self._image(place.position), draw), place.position

    def _another_image(self, draw: Draw) -> Tensor:
        return self._image(int(draw.integers(0, self._num_rows)))

    def _image(self, position: int) -> Tensor:
        # A decoder gives HWC; the permuted view of it resizes faster than a contiguous CHW image.
        return torch.from_numpy(decode(self._images.read(position))).permute(2, 0, 1)


def _collate(rows: list[tuple[dict[str, Tensor], int]]) -> Batch:
    return Batch(
        views={name: torch.stack([views[name] for views, _ in rows]) for name in rows[0][0]},
        positions=torch.tensor([position for _, position in rows]),
    )


def batches(
    index: DatasetIndex,
    places: Iterable[list[_Place]],
    *,
    viewer: Viewer,
    runtime: Runtime,
    seed: int = 0,
    labels: np.ndarray | None = None,
) -> Iterator[Batch]:
    """Decode rows and give them batch by batch, on the device of the runtime.

    Args:
        index: the dataset.
        places: the rows of each batch.
        viewer: makes the views of one image; runs in worker processes.
        labels: (N,) int64 by row position, or None.
    """
    rows = _Rows(
        index.images(runtime.place(index.name), runtime.cache),
        num_rows=index.num_rows,
        viewer=viewer,
        seed=seed,
    )
    device = torch.device(runtime.torch_device)
    # Any: places are its indices, and batches, not rows, are what it gives.
    loader: DataLoader[Any] = DataLoader(
        rows,
        batch_sampler=places,
        collate_fn=_collate,
        num_workers=runtime.workers,
        # Forked from a clean process: this one holds threads (of torch, of Prefect, of the courier to MLflow).
        multiprocessing_context=_workers_context() if runtime.workers else None,
        pin_memory=device.type == "cuda",
        # The loader draws a seed for its workers; it must not come from the generator that training draws from.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        own = None if labels is None else torch.from_numpy(labels[batch.positions.numpy()])
        yield replace(batch, labels=own).to(device)


def _workers_context() -> ForkServerContext:
    context = get_context("forkserver")
    # Imported once, not once a worker.
    context.set_forkserver_preload(["tasks.loading"])
    return context


def _begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole group of processes; the one that began this stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainingOrder:
    """Which rows each training step sees: every row once an epoch, in an order drawn from (seed, epoch).

    The last incomplete batch of an epoch is left out, as BatchNorm wants full batches.
    """

    def __init__(self, positions: np.ndarray, *, batch_size: int, seed: int) -> None:
        """Fix the rows.

        Args:
            positions: rows to train on, (n,) int64.
            batch_size: rows a step; a smaller dataset is one batch.
        Raises:
            ValueError: there are fewer than two rows.
        """
        if len(positions) < 2:
            raise ValueError(
                f"training needs at least 2 rows, {len(positions)} are left; give a larger dataset or split, or loosen "
                "the cut-off of assign_labels"
            )
        self._positions = positions
        self._seed = seed
        self.batch_size = min(batch_size, len(positions))
        self.steps_per_epoch = len(positions) // self.batch_size

    def places(self, *, first_step: int, total_steps: int) -> Iterator[list[_Place]]:
        """The rows of the steps from `first_step` on; on one of several ranks, its part of each batch."""
        epoch, order = -1, self._positions
        for step in range(first_step, total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.Generator(np.random.Philox([self._seed, epoch])).permutation(self._positions)
            start = step % self.steps_per_epoch * self.batch_size
            own = order[start : start + self.batch_size][share(self.batch_size)]
            yield [_Place(epoch, int(position)) for position in own]


def in_order(start: int, stop: int, *, batch_rows: int) -> Iterator[list[_Place]]:
    """The rows [start, stop) in batches of at most `batch_rows`."""
    for first in range(start, stop, batch_rows):
        yield [_Place(0, position) for position in range(first, min(first + batch_rows, stop))]


def central_pixels(image: Tensor, _draw: Draw, *, size: int, resize: int) -> dict[str, Tensor]:
    """The one view that features and predictions are made of: shorter side to `resize`, central square of `size`.

    Returns:
        "image", (3, size, size) uint8.
    """
    return {"image": center_crop(resize_shorter(image, side=resize), size=size)}
