"""What one rank computes, alone or among several; the tests compare the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from models.backbones import Architecture, build_backbone
from models.collective import (
    all_rows,
    all_sum,
    any_rank,
    first_rank_first,
    mine,
    of_first,
    rank,
    share,
    wait,
    world_size,
)
from models.kmeans import KMeansConfig, LloydState, lloyd
from models.pretext.base import Batch
from models.pretext.rotation import Rotation
from models.split_batch import SplitBatch, SplitBatchNorm
from models.training.loop import LoopConfig, TrainState, train
from models.training.optimizers import OptimizerConfig, build_optimizers
from models.training.schedules import ScheduleConfig
from tests.rank_forks import open_group

# The parts of 2 ranks are equal, those of 4 are not.
BATCH, STEPS, CLUSTERS = 6, 2, 20
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (STEPS * BATCH, 4, 3, 32, 32), dtype=np.uint8))
NETWORKS = {
    # Without BatchNorm, with dropout; and the other way round.
    "alexnet": {"head": "fc", "head_grid": 2},
    "alexnet_bn": {"head": "linear"},
}
POLICIES = ("split_largest", "farthest", "keep")
# dtype and policy -> iterations.
CLUSTERINGS = {("float16", empty): 4 for empty in POLICIES} | {("float32", "split_largest"): 20}

Answers = dict[str, np.ndarray]


def check(rank: int, number: int, meet: str, place: str) -> None:
    """On one of several ranks: rank 0 keeps the answers; all must have the same."""
    open_group(rank, number, meet)
    answers = every_answer()
    for name, values in answers.items():
        several = all_rows(values[None])
        assert (several == several[0]).all(), f"ranks differ in {name}"
    if rank == 0:
        np.savez(Path(place), **answers)


def every_answer() -> Answers:
    answers = {**talk(), **batch_norm()}
    for network in NETWORKS:
        answers |= {f"{network}/{name}": values for name, values in training(network).items()}
    for dtype, empty in CLUSTERINGS:
        answers |= {f"{dtype}/{empty}/{name}": values for name, values in clusters(dtype, empty).items()}
    return answers


def talk() -> Answers:
    """What ranks say to each other."""
    own = np.arange(10)[share(10)]
    with tempfile.TemporaryDirectory() as own_folder:
        # Rank 0's, for all: a folder's name in bytes.
        folder = Path(of_first(np.frombuffer(own_folder.encode(), np.uint8)).tobytes().decode())
        with first_rank_first():
            assert (folder / "made").exists() == (rank() > 0)
            (folder / "made").touch()
        wait()
    assert list(mine(range(10))) == own.tolist()
    assert not any_rank(False)
    return {
        "sum": all_sum(np.array([own.sum(), len(own)])),
        "rows": all_rows(np.stack([own, own**2], axis=1).astype(np.float32)),
        "rows of one": all_rows(own[-1:] if rank() == world_size() - 1 else own[:0]),
        "first": of_first(np.full(3, rank())),
        "any": np.array([any_rank(rank() == world_size() - 1)]),
    }


def batch_norm() -> Answers:
    """A layer alone: what comes out, what goes back, and what it remembers."""
    rng = np.random.default_rng(1)
    values = torch.tensor(rng.normal(3, 2, (BATCH, 5, 4, 4)), dtype=torch.float32)[share(BATCH)].requires_grad_()
    asked = torch.tensor(rng.normal(size=(BATCH, 5, 4, 4)), dtype=torch.float32)[share(BATCH)]
    layer: nn.Module = nn.BatchNorm2d(5)
    nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(0))
    holder = nn.Sequential(layer)
    SplitBatch(BATCH).prepare(holder)
    assert isinstance(holder[0], SplitBatchNorm) == (world_size() > 1)
    out = holder(values)
    (out * asked).sum().backward()
    state = holder.state_dict()
    learnt = [all_sum(p.grad.numpy()) for p in holder.parameters()]
    holder.eval()
    return {
        "bn/out": all_rows(out.detach().numpy()),
        "bn/back": all_rows(values.grad.numpy()),
        "bn/learnt": np.stack(learnt),
        "bn/mean": state["0.running_mean"].numpy(),
        "bn/variance": state["0.running_var"].numpy(),
        "bn/count": state["0.num_batches_tracked"].numpy()[None],
        "bn/evaluated": all_rows(holder(values).detach().numpy()),
    }


def training(network: str) -> Answers:
    """Steps of SGD at rate 1 without momentum: the first moves the weights by the gradient."""
    torch.manual_seed(0)
    backbone = build_backbone(Architecture(name=network, stem="small", width=0.0625))
    config = Rotation.Config(crop_size=32, **NETWORKS[network])
    method = Rotation(config, backbone, num_rows=len(IMAGES))
    before = vector(method)
    split = SplitBatch(BATCH)
    split.prepare(method)
    optimizer = OptimizerConfig(lr=0.05, momentum=0.0, weight_decay=0.0)
    state = TrainState(method, build_optimizers(method, optimizer))

    def batches(_epoch: int, _start: int) -> Iterator[Batch]:
        for step in range(STEPS):
            rows = torch.arange(step * BATCH, (step + 1) * BATCH)[share(BATCH)]
            yield Batch({"turns": IMAGES[rows]}, rows)

    answers: Answers = {}
    loop = LoopConfig(epochs=1, schedule=ScheduleConfig(kind="constant"), clip_norm=None)
    reports = train(state, batches, config=loop, steps_per_epoch=STEPS, read_chunks=lambda: iter(()), split=split)
    for report in reports:
        answers[f"loss {report.step}"] = np.array([*report.losses.values(), *report.metrics.values()])
        answers.setdefault("gradient", (before - vector(method)) / 0.05)
    answers["weights"] = vector(method)
    answers["random state"] = torch.get_rng_state().numpy()
    answers["names"] = np.array([hash_of("".join(method.state_dict()))])
    return answers


def vector(method: nn.Module) -> np.ndarray:
    state = method.state_dict()
    return np.concatenate([state[name].double().flatten().numpy() for name in sorted(state)])


def hash_of(text: str) -> int:
    return sum(ord(letter) * place for place, letter in enumerate(text, 1))


def clusters(dtype: str, empty: str) -> Answers:
    """Lloyd's iterations from a start that leaves clusters empty."""
    rng = np.random.default_rng(2)
    means = rng.normal(size=(8, 12)) * 3
    # Their squares need more than the 53 bits of a float64: the order of their sum shows.
    widths_D = np.logspace(-4, 1, 12)
    rows_ND = (widths_D * (means[rng.integers(8, size=700)] + rng.normal(size=(700, 12)))).astype(dtype)
    start_KD = rows_ND[:CLUSTERS].astype(np.float32)
    start_KD[-3:] += 100
    chunks = [rows_ND[first : first + 10] for first in range(0, len(rows_ND), 10)]
    config = KMeansConfig(num_clusters=CLUSTERS, iterations=CLUSTERINGS[dtype, empty], empty=empty)
    iterations = list(lloyd(lambda: iter(mine(chunks)), LloydState(start_KD), config))
    return {
        "first": iterations[0].state.centroids_KD,
        "last": iterations[-1].state.centroids_KD,
        "sizes": iterations[-1].sizes_K,
        "inertia": np.array([iteration.inertia for iteration in iterations]),
        "repairs": np.array([len(iteration.repairs) for iteration in iterations]),
    }
