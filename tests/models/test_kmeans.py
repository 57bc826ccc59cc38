"""Streamed k-means against scikit-learn, faiss and the formulas."""

from collections.abc import Callable, Iterator

import faiss
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.cluster import KMeans

from models.kmeans import (
    Iteration,
    KMeansConfig,
    LloydState,
    Repair,
    cluster_health,
    lloyd,
)
from models.kmeans_pass import sums_by_cluster
from models.kmeans_start import choose_start

Chunks = Callable[[], Iterator[np.ndarray]]


def blobs(num_rows: int, *, seed: int = 0, width: int = 16, centers: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(centers, width)) * 2
    return (means[rng.integers(centers, size=num_rows)] + rng.normal(size=(num_rows, width))).astype(np.float32)


def chunked(rows_ND: np.ndarray, size: int = 250) -> Chunks:
    return lambda: (rows_ND[i : i + size] for i in range(0, len(rows_ND), size))


def run(rows_ND: np.ndarray, start_KD: np.ndarray, *, size: int = 250, **settings: object) -> list[Iteration]:
    ways = {name: settings.pop(name) for name in ("engine", "precision") if name in settings}
    config = KMeansConfig(num_clusters=len(start_KD), **settings)
    return list(lloyd(chunked(rows_ND, size), LloydState(start_KD), config, **ways))


def as_bytes(iterations: list[Iteration]) -> list[tuple]:
    return [(i.state.centroids_KD.tobytes(), *i.state[1:], i.sizes_K.tobytes(), *i[2:]) for i in iterations]


def test_one_iteration_is_sklearns() -> None:
    rows_ND = blobs(2000)
    start_KD = rows_ND[:30]
    first, final = run(rows_ND, start_KD, iterations=1)
    theirs = KMeans(30, init=start_KD, n_init=1, max_iter=1, tol=0, algorithm="lloyd").fit(rows_ND)
    np.testing.assert_allclose(first.state.centroids_KD, theirs.cluster_centers_, atol=1e-5)
    assert final.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    differs = np.abs(final.sizes_K - np.bincount(theirs.labels_, minlength=30)).sum()
    assert differs <= 2  # one row between two centroids at most


def test_twenty_iterations_reach_sklearns_inertia() -> None:
    rows_ND = blobs(3000, centers=40)
    start_KD = choose_start(rows_ND[:600], KMeansConfig(num_clusters=40))
    final = run(rows_ND, start_KD, iterations=20, precision="bf16")[-1]
    theirs = KMeans(40, init=start_KD, n_init=1, max_iter=20, tol=0, algorithm="lloyd").fit(rows_ND)
    assert final.inertia == pytest.approx(theirs.inertia_, rel=1e-3)


def test_inertia_is_no_worse_than_faiss() -> None:
    rows_ND = blobs(3000, centers=40)
    peer = faiss.Kmeans(16, 40, niter=20, seed=1, max_points_per_centroid=10**7)
    peer.train(rows_ND)
    theirs = float(peer.index.search(rows_ND, 1)[0].astype(np.float64).sum())
    start_KD = choose_start(rows_ND, KMeansConfig(num_clusters=40))
    assert run(rows_ND, start_KD, iterations=20)[-1].inertia <= theirs * 1.02


def test_inertia_never_rises_and_belongs_to_the_centroids_used() -> None:
    rows_ND = blobs(1000)
    start_KD = rows_ND[:20]
    iterations = run(rows_ND, start_KD, iterations=8, empty="keep")
    used = [start_KD, *(i.state.centroids_KD for i in iterations)]
    inertias = [i.inertia for i in iterations]
    assert inertias == sorted(inertias, reverse=True)
    for iteration, centroids_KD in zip(iterations, used, strict=False):
        squared_NK = ((rows_ND[:, None].astype(np.float64) - centroids_KD) ** 2).sum(axis=2)
        assert iteration.inertia == pytest.approx(squared_NK.min(axis=1).sum(), rel=1e-6)
        np.testing.assert_array_equal(iteration.sizes_K, np.bincount(squared_NK.argmin(axis=1), minlength=20))


def test_only_the_last_pass_is_final_and_moves_nothing() -> None:
    iterations = run(blobs(500), blobs(500)[:10], iterations=3)
    assert [i.final for i in iterations] == [False, False, False, True]
    assert [i.state.number for i in iterations] == [1, 2, 3, 3]
    assert iterations[-1].shift == 0
    assert iterations[-1].state.centroids_KD is iterations[-2].state.centroids_KD


def test_bytes_do_not_depend_on_engine_or_precision() -> None:
    rows_ND = blobs(1200).astype(np.float16)
    start_KD = rows_ND[:25].astype(np.float32)
    reference = as_bytes(run(rows_ND, start_KD, iterations=5))
    assert as_bytes(run(rows_ND, start_KD, iterations=5, precision="bf16")) == reference
    assert as_bytes(run(rows_ND, start_KD, iterations=5, engine="faiss")) == reference


def test_centroids_of_float16_rows_do_not_depend_on_chunks_or_their_order() -> None:
    rows_ND = blobs(1200).astype(np.float16)
    start_KD = rows_ND[:25].astype(np.float32)
    reference = run(rows_ND, start_KD, iterations=5)
    shards = [rows_ND[i : i + 100] for i in range(0, 1200, 100)]
    for other in (rows_ND, np.concatenate(shards[::-1])):
        for size in (1200, 77):
            found = run(other, start_KD, iterations=5, size=size)[-1]
            assert found.state.centroids_KD.tobytes() == reference[-1].state.centroids_KD.tobytes()
            assert found.sizes_K.tobytes() == reference[-1].sizes_K.tobytes()


@pytest.mark.parametrize("empty", ["split_largest", "farthest", "keep"])
@pytest.mark.parametrize("tolerance", [0.0, 0.01])
def test_resumed_equals_never_stopped(empty: str, tolerance: float) -> None:
    rows_ND = blobs(600)
    start_KD = np.concatenate([rows_ND[:12], rows_ND[:3] + 100])
    config = KMeansConfig(num_clusters=15, iterations=40, empty=empty, tolerance=tolerance)
    whole = list(lloyd(chunked(rows_ND), LloydState(start_KD), config))
    assert whole[-2].state.converged
    for stop in range(len(whole)):
        rest = list(lloyd(chunked(rows_ND), whole[stop].state, config))
        expected = whole[stop + 1 :] if not whole[stop].final else whole[-1:]
        assert as_bytes(rest) == as_bytes(expected)


def test_stops_when_no_centre_moves_and_earlier_with_a_tolerance() -> None:
    rows_ND = blobs(500, centers=4)
    exact = run(rows_ND, rows_ND[:4], iterations=100)
    loose = run(rows_ND, rows_ND[:4], iterations=100, tolerance=0.05)
    assert exact[-2].shift == 0 and all(i.shift > 0 for i in exact[:-2])
    assert len(loose) < len(exact) < 100
    assert loose[-3].inertia - loose[-2].inertia <= 0.05 * loose[-3].inertia


def far_start() -> tuple[np.ndarray, np.ndarray]:
    """Two groups of rows, 6 at 0 .. 5 and 4 at 100 .. 103, and four centroids of which two get nothing."""
    places = [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]
    rows_ND = np.array([[place, 1] for place in places], np.float32)
    return rows_ND, np.array([[0, 1], [9e3, 0], [100, 1], [8e3, 0]], np.float32)


def test_empty_cluster_splits_the_largest_as_faiss_does() -> None:
    rows_ND, start_KD = far_start()
    first = run(rows_ND, start_KD, iterations=1)[0]
    assert first.sizes_K.tolist() == [6, 0, 4, 0]
    # Split, the first counts 3, so the next donor is the one with 4.
    assert first.repairs == (Repair(1, "split", 0), Repair(3, "split", 2))
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    expected_KD = [[2.5 * down, up], [2.5 * up, down], [101.5 * down, up], [101.5 * up, down]]
    np.testing.assert_allclose(first.state.centroids_KD, expected_KD, rtol=1e-6)


def test_empty_cluster_takes_the_farthest_row_from_its_donor() -> None:
    rows_ND, start_KD = far_start()
    for size in (2, 9):
        first = run(rows_ND, start_KD, iterations=1, empty="farthest", size=size)[0]
        assert first.repairs == (Repair(1, "moved", 0), Repair(3, "moved", 0))
        np.testing.assert_allclose(first.state.centroids_KD, [[1.5, 1], [5, 1], [101.5, 1], [4, 1]])
    theirs = KMeans(4, init=start_KD, n_init=1, max_iter=1, tol=0).fit(rows_ND)
    np.testing.assert_allclose(
        np.sort(theirs.cluster_centers_, axis=0), np.sort(first.state.centroids_KD, axis=0), rtol=1e-6
    )


def test_empty_cluster_can_be_kept() -> None:
    rows_ND, start_KD = far_start()
    first = run(rows_ND, start_KD, iterations=1, empty="keep")[0]
    assert first.repairs == (Repair(1, "kept", -1), Repair(3, "kept", -1))
    np.testing.assert_array_equal(first.state.centroids_KD[[1, 3]], start_KD[[1, 3]])


@pytest.mark.parametrize("empty", ["split_largest", "farthest"])
def test_repairs_leave_no_empty_cluster(empty: str) -> None:
    rows_ND = blobs(800)
    start_KD = np.concatenate([rows_ND[:5], np.full((15, 16), 1e3, np.float32)])
    assert (run(rows_ND, start_KD, iterations=15, empty=empty)[-1].sizes_K > 0).all()


def test_farthest_row_is_not_taken_from_a_cluster_of_one() -> None:
    rows_ND = np.array([[0], [1], [2], [50]], np.float32)
    start_KD = np.array([[0], [99], [900]], np.float32)
    first = run(rows_ND, start_KD, iterations=1, empty="farthest")[0]
    assert first.sizes_K.tolist() == [3, 1, 0]
    assert first.repairs == (Repair(2, "moved", 0),)
    assert first.state.centroids_KD.ravel().tolist() == [0.5, 50, 2]


@pytest.mark.parametrize(
    ("empty", "before", "stops"),
    [
        ("keep", 1.001, True),
        ("keep", 1.2, False),
        ("keep", 0.999, False),
        ("split_largest", 1.001, False),
    ],
)
def test_neither_a_repair_nor_a_rise_counts_as_converged(empty: str, before: float, stops: bool) -> None:
    rows_ND, start_KD = far_start()
    inertia = run(rows_ND, start_KD, iterations=1)[0].inertia
    config = KMeansConfig(num_clusters=4, tolerance=0.1, empty=empty)
    first = next(lloyd(chunked(rows_ND), LloydState(start_KD, 1, inertia * before), config))
    assert first.state.converged is stops


def test_identical_rows_leave_nothing_to_repair_with() -> None:
    rows_ND = np.ones((10, 2), np.float32)
    start_KD = np.array([[1, 1], [5, 5]], np.float32)
    assert run(rows_ND, start_KD, iterations=1, empty="farthest")[0].repairs == (Repair(1, "kept", -1),)


def test_sums_are_those_of_add_at() -> None:
    rng = np.random.default_rng(0)
    rows_ND, cluster_N = rng.normal(size=(500, 7)).astype(np.float32), rng.integers(0, 40, 500) * 2
    expected_KD = np.zeros((80, 7))
    np.add.at(expected_KD, cluster_N, rows_ND.astype(np.float64))
    used_U, sums_UD = sums_by_cluster(rows_ND.astype(np.float64), cluster_N)
    np.testing.assert_array_equal(used_U, np.unique(cluster_N))
    assert sums_UD.tobytes() == expected_KD[used_U].tobytes()


def test_sums_keep_what_float32_would_lose() -> None:
    rows_ND = np.full((4000, 1), 16777217.0, np.float32) + np.float32(2)
    final = run(rows_ND, rows_ND[:1], iterations=1)[-1]
    assert final.state.centroids_KD[0, 0] == rows_ND[0, 0]
    assert 0 <= final.inertia <= 1e-12 * (rows_ND.astype(np.float64) ** 2).sum()


def test_chunks_are_read_one_at_a_time_and_once_a_pass() -> None:
    rows_ND = blobs(1000)
    alive, most, passes = 0, 0, 0

    class Chunk(np.ndarray):
        def __array_finalize__(self, _: object) -> None:
            self.counted = False

        def __del__(self) -> None:
            nonlocal alive
            alive -= self.counted

    def read_chunks() -> Iterator[np.ndarray]:
        nonlocal alive, most, passes
        passes += 1
        for begin in range(0, 1000, 50):
            chunk = rows_ND[begin : begin + 50].view(Chunk)
            chunk.counted = True
            alive += 1
            most = max(most, alive)
            yield chunk
            del chunk

    config = KMeansConfig(num_clusters=5, iterations=2, empty="farthest")
    assert len(list(lloyd(read_chunks, LloydState(rows_ND[:5].copy()), config))) == passes == 3
    assert most <= 2  # the one in use and the one being read


def test_bad_row_is_named_by_its_place_in_the_data_set() -> None:
    rows_ND = blobs(1000)
    rows_ND[777, 3] = np.nan
    with pytest.raises(ValueError, match="Feature row 777 must be finite"):
        run(rows_ND, rows_ND[:5])


def test_more_clusters_than_rows_is_refused() -> None:
    rows_ND = blobs(30)
    with pytest.raises(ValueError, match="Got 9 rows, 10 clusters. Lower num_clusters"):
        run(rows_ND[:9], rows_ND[:10])
    with pytest.raises(ValueError, match="must hold num_clusters = 4 centroids. Got 3"):
        next(lloyd(chunked(rows_ND), LloydState(rows_ND[:3]), KMeansConfig(num_clusters=4)))


def test_health_of_even_skewed_and_single_clusters() -> None:
    assert cluster_health(np.array([5, 5, 5, 5])) == {"largest_share": 0.25, "entropy": 1.0, "empty": 0}
    assert cluster_health(np.array([9, 0, 0])) == {"largest_share": 1.0, "entropy": 0.0, "empty": 2}
    assert cluster_health(np.array([4])) == {"largest_share": 1.0, "entropy": 1.0, "empty": 0}
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(2)
    assert cluster_health(np.array([3, 1]))["entropy"] == pytest.approx(expected)


def test_config_refuses_what_it_does_not_know() -> None:
    assert KMeansConfig(num_clusters=2000).sample_rows == 16_000
    assert KMeansConfig(num_clusters=2000, start_rows=50).sample_rows == 50
    for wrong in (
        {"num_clusters": 0},
        {"num_clusters": 2, "iteration": 3},
        {"num_clusters": 2, "empty": "drop"},
    ):
        with pytest.raises(ValidationError):
            KMeansConfig(**wrong)
