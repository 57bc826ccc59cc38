"""Nearest centroid: one reduced-precision matrix product, then float64 for whatever it cannot tell apart.

The answer is that of float64 arithmetic on each (row, centroid) pair alone. Engine, device, precision and
block size decide only how fast the few pairs worth it are found, so they never change a byte of the answer.

Shapes: N rows, D width, K centroids, B rows of one block, P candidate (row, centroid) pairs.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.nearest_sieve import ROUND_UP, TINY, Candidates, Sieve, TorchSieve

BLOCK_BYTES = 8 << 20  # the (B, K) block stays in a CPU's cache
MAX_BLOCK_BYTES = 64 << 20
MIN_BLOCK_ROWS = 256  # fewer make a matrix product slow
PAIR_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 24}  # float64 values re-scored at once
MAX_WIDTH = 1 << 17  # beyond it gamma, and with it the bound, says nothing
MAX_SQUARED_NORM = 1e36  # leaves float32 room for the scores


class Nearest(NamedTuple):
    """Nearest centroid of each row.

    Attributes:
        cluster: id of the nearest centroid, the lowest one of equals, (N,) int64.
        distance: squared L2 distance to it, (N,) float32.
        margin: how much farther (squared) the second nearest is, (N,) float32, inf if K is 1; None if not
            asked for.
    """

    cluster: np.ndarray
    distance: np.ndarray
    margin: np.ndarray | None


class Pairs:
    """Candidate pairs (P,), by row, then centroid; where each row's begin and how many they are, (B,)."""

    def __init__(self, row_P: np.ndarray, cluster_P: np.ndarray) -> None:
        self.row_P, self.cluster_P = row_P, cluster_P
        self.start_B = np.flatnonzero(np.diff(row_P, prepend=-1))
        self.count_B = np.diff(self.start_B, append=len(row_P))

    def where(self, chosen_B: np.ndarray) -> "Pairs":
        """The pairs of the chosen rows."""
        chosen_P = np.repeat(chosen_B, self.count_B)
        return Pairs(self.row_P[chosen_P], self.cluster_P[chosen_P])


def squared_distances(rows_PD: Tensor, centroids_PD: Tensor) -> Tensor:
    """Squared L2 distance of each pair of rows in float64, (P,).

    Only elementwise operations in a fixed order over D are used: a library's sum may add in another order for
    another number of rows, threads or device, these cannot.
    """
    terms_PD = rows_PD.double()
    terms_PD.sub_(centroids_PD.double())
    terms_PD.mul_(terms_PD)
    width = terms_PD.shape[1]
    while width > 1:
        half = width // 2
        terms_PD[:, :half].add_(terms_PD[:, half : 2 * half])
        if width % 2:
            terms_PD[:, :1].add_(terms_PD[:, width - 1 : width])
        width = half
    return terms_PD[:, 0].clone()


class FaissSieve:
    """Candidates by faiss's float32 search; rows whose last neighbour is still within the bound stay open."""

    neighbours = 8

    def __init__(self, shifted_KD: Tensor) -> None:
        import faiss

        self.num_clusters, width = shifted_KD.shape
        self.index: faiss.Index = faiss.IndexFlatL2(width)
        if shifted_KD.device.type == "cuda":
            self.resources = faiss.StandardGpuResources()  # must outlive the index
            self.index = faiss.index_cpu_to_gpu(self.resources, shifted_KD.device.index or 0, self.index)
        self.index.add(shifted_KD.cpu().numpy())
        self.largest_norm = float(torch.linalg.vector_norm(shifted_KD, dim=1).max()) * ROUND_UP
        # faiss adds two squared norms, each a sum of D terms, to the product; all three are float32.
        accumulated = (width + 3) * 2.0**-24
        self.rounding = 1.2 * accumulated / (1 - accumulated) + 2.0**-22

    def candidates(self, shifted_BD: Tensor, *, wanted: int) -> Candidates:
        """As TorchSieve, with |computed - true| <= rounding * (|Y| + max |Z|)^2 on the squared distance."""
        rows_BD = shifted_BD.cpu().numpy()
        near_BM, cluster_BM = self.index.search(rows_BD, min(self.neighbours, self.num_clusters))
        norm_B = np.linalg.norm(rows_BD, axis=1).astype(np.float64) * ROUND_UP
        error_B = self.rounding * (norm_B + self.largest_norm) ** 2 + TINY
        ceiling_B1 = (near_BM[:, wanted - 1].astype(np.float64) + 2 * error_B)[:, None]
        inside_BM = near_BM <= ceiling_B1
        open_B = inside_BM.all(axis=1) & (near_BM.shape[1] < self.num_clusters)
        row_P, place_P = np.nonzero(inside_BM & ~open_B[:, None])
        cluster_P = cluster_BM[row_P, place_P]
        order_P = np.lexsort((cluster_P, row_P))
        return Candidates(row_P, cluster_P[order_P], open_B)


class NearestCentroid:
    """Finds each row's nearest centroid; the centroids are prepared once.

    Args:
        centroids_KD: (K, D) float32.
        engine: what finds the candidates; the answer is the same bytes with either.
        device: "cpu" or "cuda"; the answer is the same bytes on either.
        precision: of the torch engine's product; the answer is the same bytes with either.
    Raises:
        ValueError: centroids are not a (K, D) array of finite numbers; unknown engine, device or precision.
    """

    def __init__(
        self,
        centroids_KD: np.ndarray,
        *,
        engine: Literal["torch", "faiss"] = "torch",
        device: str = "cpu",
        precision: Literal["float32", "bf16"] = "float32",
    ) -> None:
        _require(engine, "engine", ("torch", "faiss"))
        _require(precision, "precision", ("float32", "bf16"))
        self.device = torch.device(device)
        _require(self.device.type, "device", tuple(PAIR_ELEMENTS))
        centroids_KD = np.asarray(centroids_KD)
        if centroids_KD.ndim != 2 or 0 in centroids_KD.shape or centroids_KD.shape[1] > MAX_WIDTH:
            raise ValueError(
                f"Centroids must be a (K, D) array with K >= 1 and 1 <= D <= {MAX_WIDTH}. "
                f"Got shape {centroids_KD.shape}."
            )
        self.num_clusters, self.width = centroids_KD.shape
        self.centroids_KD = torch.tensor(centroids_KD, dtype=torch.float32, device=self.device)
        _require_finite(self.centroids_KD, what="Centroid", first_row=0)
        exact_KD = self.centroids_KD.double()
        self.offset_D = exact_KD.mean(dim=0).float()
        half_norm_K = (exact_KD - self.offset_D).square().sum(dim=1) / 2
        shifted_KD = self.centroids_KD - self.offset_D
        # Re-scoring K / 128 pairs of a row costs a CPU about what a float32 product with all K does.
        limit = max(4, self.num_clusters // 128)
        self.sieves: list[Sieve] = []
        if engine == "faiss":
            self.sieves.append(FaissSieve(shifted_KD))
        elif precision == "bf16":
            self.sieves.append(TorchSieve(shifted_KD, half_norm_K, dtype=torch.bfloat16, limit=limit))
        self.sieves.append(TorchSieve(shifted_KD, half_norm_K, dtype=torch.float32, limit=self.num_clusters))
        cached = max(BLOCK_BYTES // (4 * self.num_clusters), MIN_BLOCK_ROWS)
        self.block_rows = max(1, min(cached, MAX_BLOCK_BYTES // (4 * max(self.num_clusters, self.width))))

    def __call__(self, features_ND: np.ndarray, *, margin: bool = True, first_row: int = 0) -> Nearest:
        """Find the nearest centroid of each row.

        Args:
            features_ND: (N, D) float16 or float32.
            margin: whether to find the second nearest too; it is faster without.
            first_row: number of the first row in the data set, for messages.
        Returns:
            Cluster, distance and margin; a row's values do not depend on the other rows of the call.
        Raises:
            ValueError: wrong width or dtype, or a row that is not finite (its number is named).
        """
        cluster_N = np.empty(len(features_ND), np.int64)
        distance_N, margin_N = np.empty((2, len(features_ND)), np.float32)
        for begin, rows_BD in self._blocks(features_ND, first_row=first_row):
            for pairs in self._pairs(rows_BD, wanted=2 if margin else 1):
                row_B = begin + pairs.row_P[pairs.start_B]
                cluster_N[row_B], distance_N[row_B], margin_N[row_B] = self._decide(rows_BD, pairs)
        return Nearest(cluster_N, distance_N, margin_N if margin else None)

    def assign(self, features_ND: np.ndarray, *, first_row: int = 0) -> np.ndarray:
        """Find only the id of each row's nearest centroid, (N,) int64: the ids of a call, sooner."""
        cluster_N = np.empty(len(features_ND), np.int64)
        for begin, rows_BD in self._blocks(features_ND, first_row=first_row):
            for pairs in self._pairs(rows_BD, wanted=1):
                cluster_N[begin + pairs.row_P[pairs.start_B]] = pairs.cluster_P[pairs.start_B]
                several = pairs.where(pairs.count_B > 1)
                if several.row_P.size:
                    cluster_N[begin + several.row_P[several.start_B]] = self._decide(rows_BD, several)[0]
        return cluster_N

    def _blocks(self, features_ND: np.ndarray, *, first_row: int) -> Iterator[tuple[int, Tensor]]:
        """Checked float32 blocks on the device, (B, D), each with the place of its first row."""
        if features_ND.ndim != 2 or features_ND.shape[1] != self.width:
            raise ValueError(
                f"Features must have the centroids' width, (N, {self.width}). Got shape {features_ND.shape}. "
                "Use features and centroids of one encoder, layer and pooling."
            )
        if features_ND.dtype not in (np.float16, np.float32):
            raise ValueError(f"Features must be float16 or float32. Got {features_ND.dtype}. Cast them.")
        for begin in range(0, len(features_ND), self.block_rows):
            rows_BD = torch.tensor(features_ND[begin : begin + self.block_rows], device=self.device).float()
            _require_finite(rows_BD, what="Feature row", first_row=first_row + begin)
            yield begin, rows_BD

    def _pairs(self, rows_BD: Tensor, *, wanted: int) -> Iterator[Pairs]:
        """Candidate pairs of every row of a block, sieve after sieve until no row is open."""
        shifted_BD = rows_BD - self.offset_D
        open_B = np.arange(len(rows_BD))
        for sieve in self.sieves:
            found = sieve.candidates(shifted_BD, wanted=min(wanted, self.num_clusters))
            if found.row_P.size:
                yield Pairs(open_B[found.row_P], found.cluster_P)
            open_B = open_B[found.open_B]
            if not open_B.size:
                return
            shifted_BD = shifted_BD[torch.from_numpy(found.open_B).to(self.device)]

    def _decide(self, rows_BD: Tensor, pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cluster, distance and margin of each row that has pairs; the lowest id wins among equals."""
        score_P = self._rescore(rows_BD, pairs)
        distance_B = np.minimum.reduceat(score_P, pairs.start_B)
        is_best_P = score_P == np.repeat(distance_B, pairs.count_B)
        best_P = np.where(is_best_P, pairs.cluster_P, self.num_clusters)
        cluster_B = np.minimum.reduceat(best_P, pairs.start_B)
        others_P = np.where(pairs.cluster_P == np.repeat(cluster_B, pairs.count_B), np.inf, score_P)
        return cluster_B, distance_B, np.minimum.reduceat(others_P, pairs.start_B) - distance_B

    def _rescore(self, rows_BD: Tensor, pairs: Pairs) -> np.ndarray:
        """Float64 squared distance of every pair, (P,), a bounded number of pairs at a time."""
        step = max(1, PAIR_ELEMENTS[self.device.type] // self.width)
        row_P = torch.from_numpy(pairs.row_P).to(self.device)
        cluster_P = torch.from_numpy(pairs.cluster_P).to(self.device)
        score_P = torch.empty(len(row_P), dtype=torch.float64, device=self.device)
        for begin in range(0, len(row_P), step):
            part = slice(begin, begin + step)
            score_P[part] = squared_distances(rows_BD[row_P[part]], self.centroids_KD[cluster_P[part]])
        return score_P.cpu().numpy()


def _require(value: str, name: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}. Got {value!r}.")


def _require_finite(rows_BD: Tensor, *, what: str, first_row: int) -> None:
    """Raise ValueError naming the first row with a NaN, an infinity or a norm that float32 cannot square."""
    # The comparison is false for NaN too.
    good_B = torch.linalg.vector_norm(rows_BD, dim=1) <= MAX_SQUARED_NORM**0.5
    if bool(good_B.all()):
        return
    bad = int((~good_B).nonzero()[0])
    found = "values too large for float32 distances" if rows_BD[bad].isfinite().all() else "NaN or infinity"
    raise ValueError(
        f"{what} {first_row + bad} must be finite, with a norm of at most {MAX_SQUARED_NORM**0.5:.0e}. "
        f"It holds {found}. Look for overflow in what made it (float16 ends at 65504), or scale it down."
    )
