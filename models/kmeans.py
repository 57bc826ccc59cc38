"""Lloyd's k-means over every row, one streamed pass an iteration.

Memory is a few (K, D) arrays and one chunk, whatever the number of rows. The result depends on the rows and
on the order and size of the chunks, on nothing else: labels come from `NearestCentroid`, sums are float64 in
chunk order. (Sums of float16 features are even exact, and so free of that order, while they stay below 2^29.)
Several ranks read a part of the rows each and add up their sums: equal bytes for float16, and for float32 a
difference in the last places of float64.

Shapes: N rows of one chunk, D width, K clusters.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt

from models.kmeans_pass import FarRows, Pass
from models.nearest import NearestCentroid

SPLIT = 1 / 1024


class KMeansConfig(BaseModel, frozen=True, extra="forbid"):
    """What changes the centroids."""

    num_clusters: PositiveInt
    iterations: PositiveInt = 20
    # Stop when an iteration lowers the inertia by no more than this share; 0 stops only when no centre moves.
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    start: Literal["k-means++", "random"] = "k-means++"
    start_rows: PositiveInt | None = None  # size of the seeded sample that the start is chosen from
    empty: Literal["split_largest", "farthest", "keep"] = "split_largest"
    seed: NonNegativeInt = 0

    @property
    def sample_rows(self) -> int:
        """Rows to sample for the start: `start_rows`, by default 8 a cluster and at least 4,096."""
        return self.start_rows or max(8 * self.num_clusters, 4096)


class Repair(NamedTuple):
    """What was done about an empty cluster.

    Attributes:
        cluster: the empty one.
        action: "split" (made one half of the donor), "moved" (put on a far row of the donor) or "kept".
        donor: the cluster that gave, -1 if none did.
    """

    cluster: int
    action: str
    donor: int


class LloydState(NamedTuple):
    """All that the next iteration needs: a run that goes on from it equals, in bytes, one never stopped.

    Attributes:
        centroids_KD: (K, D) float32.
        number: iterations done.
        inertia: of the last assignment, inf before the first.
        converged: only the final assignment is left to do.
    """

    centroids_KD: np.ndarray
    number: int = 0
    inertia: float = float("inf")
    converged: bool = False


class Iteration(NamedTuple):
    """One pass over the rows.

    `sizes_K` and `inertia` belong to the centroids that the pass began with. In the final pass, which moves
    nothing, those are `state.centroids_KD`: keep the artifact's sizes and inertia from there.

    Attributes:
        state: what comes after this pass.
        sizes_K: rows of each cluster, (K,) int64.
        inertia: sum of the squared distances of all rows to their centroid, in float64.
        shift: Euclidean norm of the move of all centroids, repairs included.
        repairs: what was done about each empty cluster.
        final: whether this is the final pass.
    """

    state: LloydState
    sizes_K: np.ndarray
    inertia: float
    shift: float
    repairs: tuple[Repair, ...]
    final: bool


def lloyd(
    read_chunks: Callable[[], Iterable[np.ndarray]],
    state: LloydState,
    config: KMeansConfig,
    *,
    first_row: int = 0,
    engine: Literal["torch", "faiss"] = "torch",
    device: str = "cpu",
    precision: Literal["float32", "bf16"] = "float32",
) -> Iterator[Iteration]:
    """Run Lloyd's iterations, then one final assignment.

    Args:
        read_chunks: starts a pass; gives chunks (N, D) float16 or float32, the same ones in every pass; each of
            several ranks gives its own, in the order of ranks.
        state: `LloydState(start_KD)`, or the state of the last iteration kept.
        config: its `iterations`, `tolerance` and `empty` are read here.
        first_row: number of this rank's first row, for messages.
        engine: as device and precision, see `NearestCentroid`; none of them changes the result.
        device: "cpu" or "cuda".
        precision: of the product that finds the candidates.
    Yields:
        Each iteration once its centroids are ready; the last one is `final`.
    Raises:
        ValueError: fewer rows than clusters, a row that is not finite, or another width than the centroids'.
    Source: Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28 (1982).
    """
    if len(state.centroids_KD) != config.num_clusters:
        raise ValueError(
            f"The state must hold num_clusters = {config.num_clusters} centroids. "
            f"Got {len(state.centroids_KD)}. Start anew with choose_start."
        )
    while True:
        final = state.converged or state.number >= config.iterations
        find = NearestCentroid(state.centroids_KD, engine=engine, device=device, precision=precision)
        found = Pass(*state.centroids_KD.shape, first_row=first_row)
        keep_far = config.empty == "farthest" and not final
        for chunk_ND in read_chunks():
            found.add(chunk_ND, find, keep_far=keep_far)
        found.join(keep_far=keep_far)
        if found.num_rows < config.num_clusters:
            raise ValueError(
                f"k-means needs at least as many rows as clusters. Got {found.num_rows} rows, "
                f"{config.num_clusters} clusters. Lower num_clusters, add images, or check that every pass "
                "can read the rows anew."
            )
        if final:
            inertia = found.inertia(state.centroids_KD)
            yield Iteration(state, found.sizes_K, inertia, shift=0.0, repairs=(), final=True)
            return
        iteration = _advance(state, found, config)
        state = iteration.state
        yield iteration


def _advance(state: LloydState, found: Pass, config: KMeansConfig) -> Iteration:
    """Move the centroids and tell whether that was the last time."""
    inertia = found.inertia(state.centroids_KD)
    centroids_KD, repairs = _update(found, state.centroids_KD, empty=config.empty)
    shift = float(np.linalg.norm(centroids_KD.astype(np.float64) - state.centroids_KD))
    # A repair may raise the inertia of the next pass: neither it nor the rise is a sign of convergence.
    little_gained = (1 - config.tolerance) * state.inertia <= inertia <= state.inertia
    repaired = any(repair.action != "kept" for repair in repairs)
    converged = shift == 0 or (config.tolerance > 0 and little_gained and not repaired)
    after = LloydState(centroids_KD, state.number + 1, inertia, converged)
    return Iteration(after, found.sizes_K, inertia, shift, repairs, final=False)


def _update(found: Pass, used_KD: np.ndarray, *, empty: str) -> tuple[np.ndarray, tuple[Repair, ...]]:
    """Mean of each cluster, and centroids for the empty ones by the policy, (K, D) float32."""
    empties = np.flatnonzero(found.sizes_K == 0)
    sums_KD, sizes_K = found.sums_KD, found.sizes_K.copy()
    moves = _far_moves(empties, found.far, sizes_K) if empty == "farthest" else {}
    for cluster, place in moves.items():
        row_D, donor = found.far.rows[place], found.far.cluster[place]
        sums_KD[donor] -= row_D
        sizes_K[donor] -= 1
        sums_KD[cluster] = row_D
        sizes_K[cluster] = 1
    repairs = [Repair(cluster, "moved", int(found.far.cluster[place])) for cluster, place in moves.items()]
    filled_K = sizes_K > 0
    centroids_KD = used_KD.astype(np.float32)
    centroids_KD[filled_K] = sums_KD[filled_K] / sizes_K[filled_K, None]
    for cluster in empties[len(moves) :].tolist():
        split = empty == "split_largest"
        repairs.append(_split_largest(cluster, centroids_KD, sizes_K) if split else Repair(cluster, "kept", -1))
    return centroids_KD, tuple(repairs)


def _far_moves(empties: np.ndarray, far: FarRows, sizes_K: np.ndarray) -> dict[int, int]:
    """Which far row each empty cluster takes: the farthest first, never a row on its centroid or a last row.

    Source: scikit-learn `_relocate_empty_clusters_dense` (sklearn/cluster/_k_means_common.pyx).
    Differs: that one also takes a cluster's last row, and so empties it.
    """
    left = sizes_K.copy()
    moves: dict[int, int] = {}
    for place, (distance, donor) in enumerate(zip(far.distance, far.cluster, strict=True)):
        if len(moves) == len(empties) or distance == 0:
            break
        if left[donor] > 1:
            left[donor] -= 1
            moves[int(empties[len(moves)])] = place
    return moves


def _split_largest(cluster: int, centroids_KD: np.ndarray, sizes_K: np.ndarray) -> Repair:
    """Make an empty cluster one half of the largest, in place; the two differ by 2/1024 of each coordinate.

    Source: faiss `split_clusters` (faiss/impl/ClusteringHelpers.cpp). Differs: the donor is the largest
    cluster, the lowest id of equals, where faiss draws one with a probability that grows with its size.
    """
    donor = int(sizes_K.argmax())
    if sizes_K[donor] < 2:
        return Repair(cluster, "kept", -1)
    sign_D = np.where(np.arange(centroids_KD.shape[1]) % 2 == 0, 1, -1)
    centre_D = centroids_KD[donor].astype(np.float64)
    centroids_KD[cluster] = centre_D * (1 + SPLIT * sign_D)
    centroids_KD[donor] = centre_D * (1 - SPLIT * sign_D)
    sizes_K[cluster] = sizes_K[donor] // 2
    sizes_K[donor] -= sizes_K[cluster]
    return Repair(cluster, "split", donor)


def cluster_health(sizes_K: np.ndarray) -> dict[str, float]:
    """How evenly the rows are spread.

    Args:
        sizes_K: rows of each cluster, (K,) integers, at least one row in all.
    Returns:
        "largest_share" of the rows, "entropy" (1 if even or a single cluster, 0 if all in one) and how
        many are "empty".
    """
    share_K = sizes_K[sizes_K > 0] / sizes_K.sum()
    even = np.log(len(sizes_K))
    return {
        "largest_share": float(share_K.max()),
        "entropy": float(-(share_K * np.log(share_K)).sum() / even) if even else 1.0,
        "empty": float((sizes_K == 0).sum()),
    }
