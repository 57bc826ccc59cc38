"""Graft's k-means beside faiss and scikit-learn: same rows, same start, same iterations, one process.

    OMP_NUM_THREADS=2 python -m benchmarks.kmeans --rows 60000 --dim 784 --clusters 1000

Writes one JSON line: seconds and final inertia of each, and the ratios to Graft's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
from sklearn.cluster import KMeans

from models.kmeans import KMeansConfig, LloydState, lloyd

CHUNK_ROWS = 4096


def seeded_rows(num_rows: int, width: int) -> np.ndarray:
    """Rows near a plane of 20 dimensions, cut at zero: as correlated and sparse as pooled ReLU features."""
    rng = np.random.default_rng(0)
    plane_ND = rng.normal(size=(num_rows, 20)) @ rng.normal(size=(20, width))
    return np.maximum(plane_ND + rng.normal(size=(num_rows, width)), 0).astype(np.float32)


def graft(rows_ND: np.ndarray, start_KD: np.ndarray, *, iterations: int, precision: str) -> np.ndarray:
    """Centroids after the given iterations; the final assignment is included."""
    config = KMeansConfig(num_clusters=len(start_KD), iterations=iterations)
    chunks = [rows_ND[i : i + CHUNK_ROWS] for i in range(0, len(rows_ND), CHUNK_ROWS)]
    *_, final = lloyd(lambda: chunks, LloydState(start_KD), config, precision=precision)
    return final.state.centroids_KD


def faiss_kmeans(rows_ND: np.ndarray, start_KD: np.ndarray, *, iterations: int) -> np.ndarray:
    """faiss on all rows: by default it would train on 256 a cluster."""
    peer = faiss.Kmeans(rows_ND.shape[1], len(start_KD), niter=iterations, max_points_per_centroid=len(rows_ND), seed=1)
    peer.train(rows_ND, init_centroids=start_KD)
    return peer.centroids


def sklearn_kmeans(rows_ND: np.ndarray, start_KD: np.ndarray, *, iterations: int) -> np.ndarray:
    """scikit-learn's Lloyd without its stopping rule."""
    peer = KMeans(len(start_KD), init=start_KD, n_init=1, max_iter=iterations, tol=0, algorithm="lloyd")
    return peer.fit(rows_ND).cluster_centers_


def main() -> None:
    """Time each contender once and write the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--iterations", type=int, default=10)
    given = parser.parse_args()
    rows_ND = seeded_rows(given.rows, given.dim)
    start_KD = rows_ND[np.random.default_rng(1).choice(given.rows, given.clusters, replace=False)]
    index = faiss.IndexFlatL2(given.dim)
    contenders: dict[str, Callable[[], np.ndarray]] = {
        "graft_float32": lambda: graft(rows_ND, start_KD, iterations=given.iterations, precision="float32"),
        "graft_bf16": lambda: graft(rows_ND, start_KD, iterations=given.iterations, precision="bf16"),
        "faiss": lambda: faiss_kmeans(rows_ND, start_KD, iterations=given.iterations),
        "sklearn": lambda: sklearn_kmeans(rows_ND, start_KD, iterations=given.iterations),
    }
    seconds, inertia = {}, {}
    for name, contender in contenders.items():
        begin = time.perf_counter()
        centroids_KD = contender()
        seconds[name] = round(time.perf_counter() - begin, 3)
        index.reset()
        index.add(centroids_KD)
        inertia[name] = float(index.search(rows_ND, 1)[0].sum(dtype=np.float64))
    line = {
        "settings": vars(given),
        "seconds": seconds,
        "inertia": inertia,
        "seconds_over_graft_bf16": {name: round(s / seconds["graft_bf16"], 2) for name, s in seconds.items()},
        "inertia_over_graft_bf16": {name: i / inertia["graft_bf16"] for name, i in inertia.items()},
    }
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
