"""What one pass of k-means over the rows adds up, chunk by chunk.

Shapes: N rows of one chunk, D width, K clusters, U clusters used in a block of rows.
"""

from functools import reduce
from operator import add

import numpy as np

from models.collective import all_rows, all_sum
from models.nearest import Nearest, NearestCentroid

SUM_BYTES = 16 << 20  # of float64 rows summed at once; part of the result, as it fixes the order of additions


class FarRows:
    """The rows farthest from their centroids, as many as clusters may still end with no row or one."""

    def __init__(self, width: int) -> None:
        self.distance = np.empty(0, np.float32)
        self.cluster = np.empty(0, np.int64)
        self.rows = np.empty((0, width), np.float32)

    def offer(self, chunk_ND: np.ndarray, near: Nearest, *, room: int) -> None:
        """Keep the `room` farthest of what is held and what comes; the earlier of equals."""
        top = np.argsort(-near.distance, kind="stable")[:room]
        self.distance = np.concatenate([self.distance, near.distance[top]])
        self.cluster = np.concatenate([self.cluster, near.cluster[top]])
        self.rows = np.concatenate([self.rows, chunk_ND[top].astype(np.float32)])
        self._keep(room)

    def join(self, *, room: int) -> None:
        """Keep the `room` farthest of all ranks, whose rows follow each other in the order of ranks."""
        self.distance, self.cluster = all_rows(self.distance), all_rows(self.cluster)
        self.rows = all_rows(self.rows)
        self._keep(room)

    def _keep(self, room: int) -> None:
        keep = np.argsort(-self.distance, kind="stable")[:room]
        self.distance, self.cluster, self.rows = self.distance[keep], self.cluster[keep], self.rows[keep]


class Pass:
    """Sums, sizes and squared norms of one pass over the rows.

    Args:
        first_row: number of this rank's first row, for messages.
    """

    def __init__(self, num_clusters: int, width: int, *, first_row: int = 0) -> None:
        self.sums_KD = np.zeros((num_clusters, width))
        self.sizes_K = np.zeros(num_clusters, np.int64)
        # One a block of rows. They are not exact, as sums of float16 are, and so are added in the order of rows.
        self.squares: list[float] = []
        self.far = FarRows(width)
        self._first_row = first_row

    @property
    def num_rows(self) -> int:
        """Rows taken in so far."""
        return int(self.sizes_K.sum())

    def add(self, chunk_ND: np.ndarray, find: NearestCentroid, *, keep_far: bool) -> None:
        """Assign the rows of one chunk and take them in; `keep_far` keeps the farthest, at some cost."""
        if keep_far:
            near = find(chunk_ND, margin=False, first_row=self._first_row + self.num_rows)
            cluster_N = near.cluster
        else:
            cluster_N = find.assign(chunk_ND, first_row=self._first_row + self.num_rows)
        self.sizes_K += np.bincount(cluster_N, minlength=len(self.sizes_K))
        if keep_far:
            # A cluster that ends with one row may hold a far one, which it must not lose.
            self.far.offer(chunk_ND, near, room=int((self.sizes_K < 2).sum()))
        block_rows = max(1, SUM_BYTES // (8 * chunk_ND.shape[1]))
        for begin in range(0, len(chunk_ND), block_rows):
            block = slice(begin, begin + block_rows)
            rows_ND = chunk_ND[block].astype(np.float64)
            used_U, sums_UD = sums_by_cluster(rows_ND, cluster_N[block])
            self.sums_KD[used_U] += sums_UD
            self.squares.append(float(np.einsum("nd,nd->n", rows_ND, rows_ND).sum()))

    def join(self, *, keep_far: bool) -> None:
        """Take in what the other ranks found; then all hold the same: that of all rows."""
        self.sums_KD, self.sizes_K = all_sum(self.sums_KD), all_sum(self.sizes_K)
        self.squares = all_rows(np.array(self.squares)).tolist()
        if keep_far:
            self.far.join(room=int((self.sizes_K < 2).sum()))

    def inertia(self, centroids_KD: np.ndarray) -> float:
        """Sum of |x - c|^2 as that of |x|^2 - 2 x.c + |c|^2: the sums are at hand, the distances need not be.

        Float64 leaves an error of about 1e-16 of the sum of |x|^2.
        """
        centroids_KD = centroids_KD.astype(np.float64)
        products_K = np.einsum("kd,kd->k", centroids_KD, self.sizes_K[:, None] * centroids_KD - 2 * self.sums_KD)
        return max(0.0, reduce(add, self.squares, 0.0) + float(products_K.sum()))


def sums_by_cluster(rows_ND: np.ndarray, cluster_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the rows of each cluster that has any.

    A sparse product adds each cluster's rows one after the other, in row order, in float64: as exact as
    `np.add.at` and the same bytes, at a fraction of its time.

    Args:
        rows_ND: (N, D) float64.
        cluster_N: (N,) int64.
    Returns:
        The clusters present, ascending, (U,) int64, and their sums, (U, D) float64.
    """
    order_N = np.argsort(cluster_N, kind="stable")
    sorted_N = cluster_N[order_N]
    begin_U = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    bounds = np.append(begin_U, len(order_N))
    from scipy import sparse

    members_UN = sparse.csr_array((np.ones(len(order_N)), order_N, bounds), shape=(len(begin_U), len(order_N)))
    return sorted_N[begin_U], members_UN @ rows_ND
