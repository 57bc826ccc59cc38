"""Sets of permutations far from each other in Hamming distance, the classes of a jigsaw puzzle.

Shapes: P candidate permutations, K chosen ones, S slots.
"""

from typing import Literal

import numpy as np

MIN_DISTANCE = 3  # hiding any two slots then leaves every two permutations distinct


def permutation_set(
    count: int,
    *,
    method: Literal["max_avg", "max_min", "min_distance"],
    seed: int,
    num_slots: int = 9,
) -> np.ndarray:
    """Choose permutations that differ in many slots.

    Args:
        count: permutations to choose, K.
        method: "max_avg" adds the one farthest from the chosen ones on average, which does not bound the
            smallest distance; "max_min" adds the one whose nearest chosen one is farthest; "min_distance"
            goes through all in random order and takes each at distance 3 or more from all taken.
        seed: of the first permutation, or of the order. Ties go to the first in lexicographic order.
        num_slots: S, at most 9: all S! permutations are held in memory.
    Returns:
        (K, S) int64, rows distinct, each a permutation of 0, ..., S - 1.
    Raises:
        ValueError: there are not so many permutations, or not so many that keep the distance.
    Source: "max_avg" is Algorithm 1 of Noroozi and Favaro 2016 (arXiv 1603.09246), with "max_min" in
        https://github.com/facebookresearch/fair_self_supervision_benchmark at 1e5d165,
        extra_scripts/generate_jigsaw_permutations.py. "min_distance" is ours for Noroozi et al. 2018 (arXiv
        1805.00385), whose 701 permutations have smallest distance 3 and mean 8.00.
    """
    candidates_SP = _all_permutations(num_slots)
    if not 1 <= count <= candidates_SP.shape[1]:
        raise ValueError(
            f"count must be from 1 to {candidates_SP.shape[1]}, the permutations of {num_slots} slots. "
            f"Got {count}. Choose a smaller set."
        )
    generator = np.random.default_rng(seed)
    if method == "min_distance":
        chosen = _spread(candidates_SP, count=count, generator=generator)
    else:
        chosen = _greedy(candidates_SP, count=count, generator=generator, average=method == "max_avg")
    return np.ascontiguousarray(candidates_SP[:, chosen].T, dtype=np.int64)


def _all_permutations(num_slots: int) -> np.ndarray:
    """List all permutations in lexicographic order, (S, P) uint8, each slot contiguous."""
    columns_SP = np.zeros((1, 1), dtype=np.uint8)
    for size in range(2, num_slots + 1):
        num = columns_SP.shape[1]
        first = np.repeat(np.arange(size, dtype=np.uint8), num)
        rest = np.tile(columns_SP, size)
        columns_SP = np.vstack([first, rest + (rest >= first)])
    return columns_SP


def _distances(candidates_SP: np.ndarray, row_S: np.ndarray) -> np.ndarray:
    """Count the slots in which each candidate differs from one permutation, (P,) int32."""
    differ = np.zeros(candidates_SP.shape[1], dtype=np.int32)
    for column_P, value in zip(candidates_SP, row_S, strict=True):
        differ += column_P != value
    return differ


def _greedy(candidates_SP: np.ndarray, *, count: int, generator: np.random.Generator, average: bool) -> list[int]:
    """Add the candidate with the largest summed (or smallest) distance to the chosen ones, K times."""
    chosen = [int(generator.integers(candidates_SP.shape[1]))]
    score_P = _distances(candidates_SP, candidates_SP[:, chosen[0]])
    taken_P = np.zeros(candidates_SP.shape[1], dtype=bool)
    while len(chosen) < count:
        taken_P[chosen[-1]] = True
        chosen.append(int(np.argmax(np.where(taken_P, -1, score_P))))
        nearest_P = _distances(candidates_SP, candidates_SP[:, chosen[-1]])
        score_P = score_P + nearest_P if average else np.minimum(score_P, nearest_P)
    return chosen


def _spread(candidates_SP: np.ndarray, *, count: int, generator: np.random.Generator) -> list[int]:
    """Take candidates in random order that are MIN_DISTANCE or more from all taken."""
    taken_KS = np.empty((count, len(candidates_SP)), dtype=np.uint8)
    chosen: list[int] = []
    for candidate in generator.permutation(candidates_SP.shape[1]):
        row_S = candidates_SP[:, candidate]
        if np.all((taken_KS[: len(chosen)] != row_S).sum(axis=1) >= MIN_DISTANCE):
            taken_KS[len(chosen)] = row_S
            chosen.append(int(candidate))
            if len(chosen) == count:
                return chosen
    raise ValueError(
        f"{count} permutations of {len(candidates_SP)} slots at distance {MIN_DISTANCE} were asked for. "
        f"The search found {len(chosen)}. Choose a smaller set, or method 'max_min'."
    )
