"""Where k-means begins: a seeded sample of the rows, and the centroids chosen from it.

Shapes: S sampled rows, D width, K clusters.
"""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np

from models.kmeans import KMeansConfig


def sample_positions(num_rows: int, *, size: int, seed: int) -> np.ndarray:
    """Draw row positions without repetition, all of them if `size` is no smaller; ascending, (S,) int64."""
    if size >= num_rows:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, size, replace=False, shuffle=False))


def take_rows(read_chunks: Callable[[], Iterable[np.ndarray]], positions_S: np.ndarray) -> np.ndarray:
    """Collect the rows at ascending positions in one streamed pass, (S, D) float32.

    Raises:
        ValueError: a position lies beyond the last row.
    """
    taken: list[np.ndarray] = []
    begin = 0
    for chunk_ND in read_chunks():
        low, high = np.searchsorted(positions_S, (begin, begin + len(chunk_ND)))
        # Chunks without a sampled row count too: they give an empty sample its width.
        taken.append(chunk_ND[positions_S[low:high] - begin].astype(np.float32))
        begin += len(chunk_ND)
    if not taken or (len(positions_S) and positions_S[-1] >= begin):
        raise ValueError(f"Positions must lie within the {begin} rows read. Got {positions_S[-1:].tolist()}.")
    return np.concatenate(taken)


def choose_start(sample_SD: np.ndarray, config: KMeansConfig) -> np.ndarray:
    """Choose the first centroids among sampled rows.

    k-means++ is scikit-learn's greedy one (2 + log K trials a centroid); its distances are float64.

    Args:
        sample_SD: (S, D) float32, finite.
        config: its `num_clusters`, `start` and `seed` are read here.
    Returns:
        Rows of the sample, (K, D) float32.
    Raises:
        ValueError: fewer distinct rows than clusters.
    Source: Arthur, Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007.
    """
    rng = np.random.default_rng(config.seed)
    is_random = config.start == "random"
    order_S = rng.permutation(len(sample_SD)) if is_random else np.arange(len(sample_SD))
    distinct_K = _first_distinct(sample_SD, order_S, limit=config.num_clusters)
    if len(distinct_K) < config.num_clusters:
        raise ValueError(
            "num_clusters must be at most the number of distinct rows in the start sample. "
            f"Got {config.num_clusters} clusters, {len(distinct_K)} distinct rows among {len(sample_SD)}. "
            "Lower num_clusters, raise start_rows, or look for repeated images."
        )
    chosen_K: np.ndarray = distinct_K
    if not is_random:
        from sklearn.cluster import kmeans_plusplus

        _, chosen_K = kmeans_plusplus(sample_SD, config.num_clusters, random_state=config.seed % 2**32)
    start_KD: np.ndarray = sample_SD[chosen_K]
    return start_KD


def _first_distinct(sample_SD: np.ndarray, order_S: np.ndarray, *, limit: int) -> np.ndarray:
    """Positions of the first `limit` rows, taken in the order given, that equal none before them."""
    seen: set[bytes] = set()
    positions = []
    for position in order_S:
        # Adding 0 turns -0.0, which equals 0.0 but has other bytes, into it.
        digest = hashlib.blake2b((sample_SD[position] + 0.0).tobytes(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            positions.append(position)
            if len(positions) == limit:
                break
    return np.array(positions, np.int64)
