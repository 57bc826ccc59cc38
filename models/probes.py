"""What frozen features are worth: a k-NN vote, a linear layer, and how sure the accuracy is.

Shapes: N bank rows, Q queries, B rows of a block, D feature width, K neighbours, C classes.
Memory never holds more than one chunk of the caller's and a fixed number of bytes of this module's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.nn import functional

from models.row_chunks import Chunk, blocks, checked, finite_rows, shuffled

BLOCK_ROWS = 4096  # rows of a k-NN tile: 4096 x 4096 int64 keys take 128 MiB
NORM_EPSILON = 1e-5  # BatchNorm's, relative to the mean variance here
MOMENTUM = 0.9


class LinearProbeConfig(BaseModel, frozen=True, extra="forbid"):
    """Training of the linear probe; the numbers of Zhang et al., arXiv 1603.08511, with a cosine schedule."""

    epochs: PositiveInt = 28
    batch: PositiveInt = 256
    lr: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 5e-4
    seed: int = 0


class PairedDifference(NamedTuple):
    """Accuracy of a minus accuracy of b, with its interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of standardised features; made by `fit_linear_probe`.

    Attributes:
        mean_D: training mean, float32.
        scale_D: reciprocal training deviation, float32.
        weight_CD: float32.
        bias_C: float32.
    """

    mean_D: np.ndarray
    scale_D: np.ndarray
    weight_CD: np.ndarray
    bias_C: np.ndarray

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Give the logits (N, C) float32 of features (N, D)."""
        standard_ND = (features_ND.astype(np.float32) - self.mean_D) * self.scale_D
        logits_NC: np.ndarray = standard_ND @ self.weight_CD.T + self.bias_C
        return logits_NC


def knn_predict_scores(
    bank_chunks: Iterable[Chunk],
    query_QD: np.ndarray,
    *,
    k: int,
    num_classes: int,
    temperature: float = 0.07,
    device: str = "cpu",
) -> np.ndarray:
    """Score the classes of each query by a vote of its k nearest bank rows, weighted exp(cosine / temperature).

    The bank is cut into blocks of a fixed size, so its chunk size never changes the result; of bank rows
    with equal cosines the earliest are taken.

    Args:
        bank_chunks: the bank in row order, features (n, D) and labels (n,); read once.
        query_QD: rows to classify, (Q, D) floating point; neither side need be normalised.
        k: neighbours that vote; all of the bank if it has fewer.
        num_classes: labels are 0 to num_classes - 1.
        temperature: the smaller, the more the nearest neighbours count.
        device: torch device where the cosines are computed.
    Returns:
        (Q, num_classes) float32; each row sums to 1.
    Raises:
        ValueError: k or temperature is not positive, the bank is empty, a label is out of range, or a
            feature is not finite.
    Source: Wu et al. 2018, arXiv 1805.01978, section 3.4. Differs: the weights of a query are divided by
        their sum, which changes no ranking and keeps exp from overflowing at a small temperature.
    """
    if k < 1 or temperature <= 0:
        raise ValueError(f"k and temperature must be positive, {k} and {temperature} were given; 20 and 0.07 are usual")
    queries = [
        _unit_rows(finite_rows(query_QD[start : start + BLOCK_ROWS]), device)
        for start in range(0, len(query_QD), BLOCK_ROWS)
    ]
    keys = [torch.empty((len(rows_BD), 0), dtype=torch.int64, device=device) for rows_BD in queries]
    label_blocks: list[np.ndarray] = []
    num_rows = 0
    for features_BD, labels_B in blocks(checked(bank_chunks, num_classes=num_classes), rows=BLOCK_ROWS):
        bank_BD = _unit_rows(features_BD, device)
        row_B = torch.arange(num_rows, num_rows + len(bank_BD), device=device)
        for index, rows_BD in enumerate(queries):
            candidates = torch.cat([keys[index], _sort_keys(rows_BD @ bank_BD.T, row_B)], dim=1)
            keys[index] = candidates.topk(min(k, candidates.shape[1]), dim=1).values
        label_blocks.append(labels_B)
        num_rows += len(bank_BD)
    if num_rows == 0 or not queries:
        raise ValueError(
            f"the bank and the queries must have rows, {num_rows} and {len(query_QD)} were given; "
            "check that both splits have features"
        )
    key_QK = torch.cat(keys).cpu()
    weight_QK = torch.softmax(_cosines(key_QK) / temperature, dim=1)
    label_QK = torch.from_numpy(np.concatenate(label_blocks))[_rows(key_QK)]
    return torch.zeros((len(query_QD), num_classes)).scatter_add_(1, label_QK, weight_QK).numpy()


def fit_linear_probe(
    config: LinearProbeConfig,
    read_chunks: Callable[[Sequence[int]], Iterable[Chunk]],
    *,
    num_chunks: int,
    num_classes: int,
    device: str = "cpu",
) -> LinearProbe:
    """Train a linear layer on standardised features with SGD and cross-entropy.

    One pass measures mean and variance; then `epochs` passes train, each with a new order of the chunks
    and of the rows. The rows mix within a buffer of 256 MiB: where the chunks are sorted by class and
    the set is much larger than that, shuffle it when writing. The seed fixes the result; torch's global
    generator is left alone.

    Args:
        config: epochs, batch and optimiser.
        read_chunks: given chunk numbers, yields those chunks in that order: features (n, D) and labels (n,).
        num_chunks: chunks are 0 to num_chunks - 1.
        num_classes: labels are 0 to num_classes - 1.
        device: torch device that trains.
    Returns:
        The trained probe, on the CPU.
    Raises:
        ValueError: there is no row, a label is out of range, a feature is not finite, or training diverged.
    Source: Zhang, Isola and Efros 2016, arXiv 1603.08511, and
        https://github.com/richzhang/colorization feature_learning_tests/linear/train_val.prototxt at 4617507
        (BatchNorm without scale and shift, then one layer from zero, no decay of its bias). Differs: cosine
        schedule; the bias learns at the rate of the weight, not twice that; BatchNorm's epsilon is relative
        to the mean variance, so that the scale of the features does not matter.
    """
    num_rows, *moments = _mean_and_scale(checked(read_chunks(range(num_chunks)), num_classes=num_classes))
    mean, scale = (torch.from_numpy(moment_D).float().to(device) for moment_D in moments)
    weight = torch.zeros((num_classes, len(mean)), device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": config.weight_decay},
        {"params": [bias]},
    ]
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM)
    steps = config.epochs * ceil(num_rows / config.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    generator = np.random.default_rng(config.seed)
    for _ in range(config.epochs):
        chunks = checked(read_chunks(generator.permutation(num_chunks).tolist()), num_classes=num_classes)
        for features_BD, labels_B in blocks(shuffled(chunks, generator=generator), rows=config.batch):
            standard_BD = (torch.from_numpy(features_BD).to(device) - mean) * scale
            logits_BC = functional.linear(standard_BD, weight, bias)
            loss = functional.cross_entropy(logits_BC, torch.from_numpy(labels_B).to(device))
            weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
            optimizer.step()
            schedule.step()
    if not torch.isfinite(weight).all():
        raise ValueError(f"the linear probe must converge, lr {config.lr} diverged; lower lr")
    return LinearProbe(*(value.detach().cpu().numpy() for value in (mean, scale, weight, bias)))


def accuracy_interval(correct_N: np.ndarray, *, confidence: float = 0.95) -> tuple[float, float]:
    """Give the Wilson score interval of an accuracy.

    Args:
        correct_N: (N,) bool, one outcome per image.
        confidence: between 0 and 1.
    Returns:
        Low and high end, within 0 and 1.
    Raises:
        ValueError: there is no outcome.
    Source: Wilson 1927, JASA 22:209; advised by Brown, Cai and DasGupta 2001, doi:10.1214/ss/1009213286.
    """
    from scipy.stats import binomtest

    successes = int(np.count_nonzero(correct_N))
    interval = binomtest(successes, _num_outcomes(correct_N)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def paired_interval(correct_a_N: np.ndarray, correct_b_N: np.ndarray, *, confidence: float = 0.95) -> PairedDifference:
    """Give how much more accurate a is than b on the same images, with a normal interval.

    Judging the difference image by image removes the difficulty that both share, so the interval is
    narrower than that of two separate accuracies. It has no width where a and b never disagree.

    Args:
        correct_a_N: (N,) bool, one outcome per image.
        correct_b_N: (N,) bool, of the same images in the same order.
        confidence: between 0 and 1.
    Returns:
        Mean difference and its ends, within -1 and 1.
    Raises:
        ValueError: there is no outcome, or the two differ in length.
    Source: Agresti, Categorical Data Analysis, second edition 2002, section 10.1.1 (dependent proportions).
    """
    if correct_a_N.shape != correct_b_N.shape:
        raise ValueError(
            f"paired outcomes must be of the same images, {len(correct_a_N)} and {len(correct_b_N)} were given; "
            "judge both on one test set in one order"
        )
    num_rows = _num_outcomes(correct_a_N)
    difference_N = correct_a_N.astype(np.float64) - correct_b_N.astype(np.float64)
    difference = float(difference_N.mean())
    half = NormalDist().inv_cdf((1 + confidence) / 2) * float(difference_N.std()) / sqrt(num_rows)
    return PairedDifference(difference, max(-1.0, difference - half), min(1.0, difference + half))


def _sort_keys(cosine_QB: Tensor, row_B: Tensor) -> Tensor:
    """Give int64 keys without ties: a larger key is a larger cosine or, of equals, an earlier row.

    The high half orders float32 values as integers, the low half counts rows downwards. One top-k of such
    keys is exact and, unlike a top-k of floats, leaves no tie to the device.
    """
    bits_QB = (cosine_QB + 0.0).view(torch.int32)  # adding zero turns -0.0 into 0.0
    return (_flip_negatives(bits_QB).long() << 32) | (2**32 - 1 - row_B)


def _cosines(key_QK: Tensor) -> Tensor:
    return _flip_negatives((key_QK >> 32).int()).view(torch.float32)


def _rows(key_QK: Tensor) -> Tensor:
    return 2**32 - 1 - (key_QK & (2**32 - 1))


def _flip_negatives(bits: Tensor) -> Tensor:
    """Map float32 bits to integers of the same order; its own inverse."""
    return torch.where(bits < 0, bits ^ (2**31 - 1), bits)


def _unit_rows(features_ND: np.ndarray, device: str) -> Tensor:
    return functional.normalize(torch.tensor(features_ND, device=device), dim=1)


def _mean_and_scale(chunks: Iterable[Chunk]) -> tuple[int, np.ndarray, np.ndarray]:
    """Give row count, mean and reciprocal deviation (D,) float64."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for features_ND, _ in chunks:
        scaler.partial_fit(features_ND)
    if not hasattr(scaler, "mean_"):
        raise ValueError("the probe must have training rows, none was given; check the split it reads")
    floor = NORM_EPSILON * scaler.var_.mean()
    # Features that are all constant carry nothing: a scale of zero instead of a division by zero.
    scale_D = 1 / np.sqrt(scaler.var_ + floor) if floor > 0 else np.zeros_like(scaler.var_)
    return int(scaler.n_samples_seen_), scaler.mean_, scale_D


def _num_outcomes(correct_N: np.ndarray) -> int:
    if len(correct_N) == 0:
        raise ValueError("an accuracy must have outcomes, none was given; check that the test set has rows")
    return len(correct_N)
