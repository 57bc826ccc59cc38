"""What the ranks of one piece of work say to each other. A process alone is rank 0 of 1, and its sums are its own.

A stage is written once: it takes `mine(...)` of the units and adds up with `all_sum`. Whoever starts the ranks opens
torch's process group before, and all ranks call the same functions in the same order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

T = TypeVar("T")


def rank() -> int:
    """Number of this rank, from 0. Rank 0 alone writes what belongs to all."""
    return dist.get_rank() if _several() else 0


def world_size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _several() else 1


def share(count: int) -> slice:
    """The part of `count` things that is this rank's: ranks in order give all of them in order."""
    return slice(count * rank() // world_size(), count * (rank() + 1) // world_size())


def mine(items: Sequence[T]) -> Sequence[T]:
    """This rank's part of a list that all ranks have, by `share`."""
    return items[share(len(items))]


def wait() -> None:
    """Go on when all ranks are here."""
    all_sum(np.zeros(1))


@contextmanager
def first_rank_first() -> Iterator[None]:
    """A block that rank 0 has left before any other rank enters it."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def all_sum(values: np.ndarray) -> np.ndarray:
    """Add up an array over the ranks; any shape and number type, equal bytes on all ranks."""
    if not _several():
        return values
    total = torch.tensor(values)
    dist.all_reduce(total)
    return total.numpy()


def all_rows(values: np.ndarray) -> np.ndarray:
    """Put the arrays of all ranks one below the other, in the order of ranks.

    Args:
        values: (n, ...); n may differ between ranks, the rest may not.
    """
    if not _several():
        return values
    counts = np.zeros(world_size(), np.int64)
    counts[rank()] = len(values)
    counts = all_sum(counts)
    # Ranks must give equally many rows to an all_gather.
    padded = torch.zeros((int(counts.max()), *values.shape[1:]), dtype=torch.from_numpy(values[:0]).dtype)
    padded[: len(values)] = torch.tensor(values)
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return np.concatenate([part[:count].numpy() for part, count in zip(parts, counts, strict=True)])


def of_first(values: np.ndarray) -> np.ndarray:
    """The array of rank 0, on all ranks; the others give one of its shape and type."""
    if not _several():
        return values
    tensor = torch.tensor(values)
    dist.broadcast(tensor, 0)
    return tensor.numpy()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on one of the ranks at least."""
    return bool(all_sum(np.array([flag], np.int64))[0])


def _several() -> bool:
    return dist.is_initialized()
