"""The seeded sample and the first centroids of k-means."""

import numpy as np
import pytest

from models.kmeans import KMeansConfig
from models.kmeans_start import choose_start, sample_positions, take_rows


def rows_of(num_rows: int, *, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_rows, width)).astype(np.float32)


@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_more_clusters_than_distinct_rows_is_refused(start: str) -> None:
    rows_ND = rows_of(30)
    with pytest.raises(ValueError, match="Got 31 clusters, 30 distinct rows among 60"):
        choose_start(np.concatenate([rows_ND, rows_ND]), KMeansConfig(num_clusters=31, start=start))


@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_start_is_seeded_distinct_rows_of_the_sample(start: str) -> None:
    sample_SD = np.repeat(rows_of(100), 3, axis=0) + np.float32(1e4)
    chosen = {seed: choose_start(sample_SD, KMeansConfig(num_clusters=40, start=start, seed=seed)) for seed in (1, 2)}
    again = choose_start(sample_SD, KMeansConfig(num_clusters=40, start=start, seed=1))
    assert chosen[1].tobytes() == again.tobytes() != chosen[2].tobytes()
    assert len(np.unique(again, axis=0)) == 40
    assert {row.tobytes() for row in again} <= {row.tobytes() for row in sample_SD}


def test_negative_zero_makes_no_row_distinct() -> None:
    sample_SD = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    with pytest.raises(ValueError, match="1 distinct rows among 2"):
        choose_start(sample_SD, KMeansConfig(num_clusters=2, start="random"))


def test_plus_plus_start_covers_separate_groups() -> None:
    centers_KD = np.random.default_rng(0).normal(size=(20, 8)) * 100
    sample_SD = (np.repeat(centers_KD, 30, axis=0) + np.random.default_rng(1).normal(size=(600, 8))).astype(np.float32)
    start_KD = choose_start(sample_SD, KMeansConfig(num_clusters=20))
    nearest_K = ((start_KD[:, None] - centers_KD) ** 2).sum(axis=2).argmin(axis=1)
    assert len(set(nearest_K.tolist())) == 20


def test_sample_positions_are_seeded_ascending_and_without_repetition() -> None:
    positions_S = sample_positions(10_000, size=500, seed=3)
    np.testing.assert_array_equal(positions_S, sample_positions(10_000, size=500, seed=3))
    assert (np.diff(positions_S) > 0).all() and positions_S[0] >= 0 and positions_S[-1] < 10_000
    assert positions_S.tolist() != sample_positions(10_000, size=500, seed=4).tolist()
    assert abs(positions_S.mean() - 5000) < 500
    np.testing.assert_array_equal(sample_positions(7, size=9, seed=0), np.arange(7))


def test_sampled_rows_are_those_at_the_positions() -> None:
    rows_ND = rows_of(1000).astype(np.float16)
    positions_S = sample_positions(1000, size=60, seed=0)
    taken_SD = take_rows(lambda: iter(np.array_split(rows_ND, 31)), positions_S)
    assert taken_SD.dtype == np.float32
    np.testing.assert_array_equal(taken_SD, rows_ND[positions_S])
    with pytest.raises(ValueError, match="within the 1000 rows read. Got"):
        take_rows(lambda: iter([rows_ND]), np.array([5, 1000]))
