"""Small methods, and batches of their views."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch, PretextMethod
from models.views import Draw

NUM_ROWS = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small wait for each other's threads longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def build() -> Callable[..., Any]:
    """Make a method of small settings, with the same weights every time."""

    def build(cls: type[PretextMethod], **settings: Any) -> PretextMethod:
        torch.manual_seed(0)
        backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
        return cls(cls.Config(**settings), backbone, num_rows=NUM_ROWS)

    return build


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """Make a batch of the views of some rows."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (NUM_ROWS, 3, 48, 56), dtype=np.uint8))

    def batch_of(method: PretextMethod, rows: tuple[int, ...] = (0, 1, 2, 3), *, epoch: int = 0) -> Batch:
        views = [method.views(images[row], Draw(0, epoch=epoch, row_id=str(row))) for row in rows]
        return Batch({name: torch.stack([view[name] for view in views]) for name in views[0]}, torch.tensor(rows))

    return batch_of
