"""Nearest centroid against float64 brute force, whatever the engine, precision, block or order."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances_argmin

from models import nearest as nearest_module
from models.nearest import Nearest, NearestCentroid, squared_distances
from models.nearest_sieve import TorchSieve

WAYS = [("torch", "float32"), ("torch", "bf16"), ("faiss", "float32")]


def brute_force(features_ND: np.ndarray, centroids_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lowest id of the smallest float64 squared distance, that distance, and the margin to the second."""
    rows_ND, centroids_KD = features_ND.astype(np.float64), centroids_KD.astype(np.float64)
    squared_NK = np.stack([((rows_ND - centroid_D) ** 2).sum(axis=1) for centroid_D in centroids_KD], axis=1)
    sorted_NK = np.sort(squared_NK, axis=1)
    return squared_NK.argmin(axis=1), sorted_NK[:, 0], sorted_NK[:, 1] - sorted_NK[:, 0]


def adversarial(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centroids on which a plain reduced-precision argmin goes wrong."""
    rng = np.random.default_rng(7)
    rows_ND = rng.normal(size=(300, 24)).astype(np.float32)
    centroids_KD = rng.normal(size=(90, 24)).astype(np.float32)
    match name:
        case "duplicated centroids":
            return rows_ND, np.repeat(centroids_KD[:30], 3, axis=0)
        case "near-equal centroids":
            return rows_ND, (centroids_KD[:1] * (1 + 1e-6 * rng.normal(size=(90, 24)))).astype(np.float32)
        case "mean far beyond the spread":
            return rows_ND + np.float32(1e4), centroids_KD + np.float32(1e4)
        case "one centroid far out":
            return rows_ND, np.concatenate([centroids_KD[:1] * 1000, centroids_KD])
        case "float16":
            return rows_ND.astype(np.float16), rows_ND[:90].astype(np.float16).astype(np.float32)
        case "integer lattice":
            return rng.integers(-2, 3, (300, 5)).astype(np.float32), rng.integers(-2, 3, (90, 5)).astype(np.float32)
        case "exact in bf16 but for the result":
            half_KD = rng.integers(-8, 9, (45, 24)).astype(np.float32)
            ends_KD = np.concatenate([half_KD, -half_KD])  # their mean is 0
            return rng.integers(-8, 9, (300, 24)).astype(np.float32), ends_KD
        case "midpoints":
            ends_KD = rng.integers(-9, 9, (90, 24)).astype(np.float32)
            return (ends_KD[rng.integers(90, size=300)] + ends_KD[rng.integers(90, size=300)]) / 2, ends_KD
        case "below float32's smallest squares":
            return rows_ND * np.float32(1e-30), centroids_KD * np.float32(1e-30)
        case "width one":
            return rows_ND[:, :1].copy(), centroids_KD[:, :1].copy()
    raise AssertionError(name)


ADVERSARIES = [
    "duplicated centroids",
    "near-equal centroids",
    "mean far beyond the spread",
    "one centroid far out",
    "float16",
    "integer lattice",
    "exact in bf16 but for the result",
    "midpoints",
    "below float32's smallest squares",
    "width one",
]


def assert_same_bytes(one: Nearest, other: Nearest) -> None:
    for column_one, column_other in zip(one, other, strict=True):
        assert column_one.tobytes() == column_other.tobytes()


@pytest.mark.parametrize(("engine", "precision"), WAYS)
@pytest.mark.parametrize("name", ADVERSARIES)
def test_equals_float64_brute_force(name: str, engine: str, precision: str) -> None:
    features_ND, centroids_KD = adversarial(name)
    near = NearestCentroid(centroids_KD, engine=engine, precision=precision)(features_ND)
    cluster_N, distance_N, margin_N = brute_force(features_ND, centroids_KD)
    np.testing.assert_array_equal(near.cluster, cluster_N)
    # atol: what is below float32's smallest number.
    np.testing.assert_allclose(near.distance, distance_N, rtol=1e-6, atol=1e-45)
    np.testing.assert_allclose(near.margin, margin_N, rtol=1e-6, atol=1e-45 + 1e-12 * distance_N.max())
    assert (near.cluster.dtype, near.distance.dtype, near.margin.dtype) == (np.int64, np.float32, np.float32)


@pytest.mark.parametrize("name", ["mean far beyond the spread", "integer lattice", "near-equal centroids"])
def test_bytes_do_not_depend_on_engine_precision_batch_or_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features_ND, centroids_KD = adversarial(name)
    features_ND = np.tile(features_ND, (4, 1))
    reference = NearestCentroid(centroids_KD)(features_ND)
    order_N = np.random.default_rng(0).permutation(len(features_ND))
    back_N = np.argsort(order_N)
    for engine, precision in WAYS:
        find = NearestCentroid(centroids_KD, engine=engine, precision=precision)
        for size, rows in ((1, 40), (64, 1200), (4096, 1200)):
            parts = [find(features_ND[i : i + size]) for i in range(0, rows, size)]
            joined = Nearest(*map(np.concatenate, zip(*parts, strict=True)))
            assert_same_bytes(Nearest(*(column[:rows] for column in reference)), joined)
        assert_same_bytes(reference, Nearest(*(column[back_N] for column in find(features_ND[order_N]))))
        assert find.assign(features_ND).tobytes() == reference.cluster.tobytes()
        without = find(features_ND, margin=False)
        assert without.margin is None
        assert_same_bytes(Nearest(*reference[:2], reference.margin), without._replace(margin=reference.margin))
    monkeypatch.setattr(nearest_module, "BLOCK_BYTES", 1)
    monkeypatch.setattr(nearest_module, "MIN_BLOCK_ROWS", 7)
    monkeypatch.setitem(nearest_module.PAIR_ELEMENTS, "cpu", 50)
    assert_same_bytes(reference, NearestCentroid(centroids_KD, precision="bf16")(features_ND))


def test_process_wide_reduced_precision_changes_nothing() -> None:
    features_ND, centroids_KD = adversarial("near-equal centroids")
    reference = NearestCentroid(centroids_KD)(features_ND)
    before = torch.get_float32_matmul_precision()
    try:
        for setting in ("high", "medium"):
            torch.set_float32_matmul_precision(setting)
            assert_same_bytes(reference, NearestCentroid(centroids_KD)(features_ND))
            assert torch.get_float32_matmul_precision() == setting
        # "medium" lets a product round its operands to bf16, whether this machine does so or not.
        assert NearestCentroid(centroids_KD).sieves[0].operand_rounding >= 2.0**-8
    finally:
        torch.set_float32_matmul_precision(before)


def test_agrees_with_sklearn_but_for_counted_ties() -> None:
    rng = np.random.default_rng(1)
    features_ND = rng.normal(size=(2000, 32)).astype(np.float32)
    centroids_KD = rng.normal(size=(100, 32)).astype(np.float32)
    near = NearestCentroid(centroids_KD, precision="bf16")(features_ND)
    differs_N = near.cluster != pairwise_distances_argmin(features_ND, centroids_KD)
    assert differs_N.sum() <= (near.margin < 1e-4).sum() < 10
    assert (near.margin[differs_N] < 1e-4).all()


def exact_score(row_D: np.ndarray, centroid_D: np.ndarray, offset_D: np.ndarray) -> Fraction:
    """Y.Z - |Z|^2 / 2 in rational arithmetic."""
    terms = zip(row_D.tolist(), centroid_D.tolist(), offset_D.tolist(), strict=True)
    shifted = [(Fraction(x) - Fraction(m), Fraction(c) - Fraction(m)) for x, c, m in terms]
    return sum((y * z - z * z / 2 for y, z in shifted), Fraction(0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 40),
    scale=st.sampled_from([1e-25, 1e-3, 1.0, 1e8]),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_product_bounds_the_true_score(seed: int, width: int, scale: float, offset: float, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    # Heavy tails and one sign: the roundings of a product's terms then add up instead of cancelling.
    draws = np.abs(rng.standard_t(2, size=(9, width))) * 10 ** rng.uniform(-2, 2, size=(9, 1))
    values = torch.tensor((draws + offset) * scale, dtype=torch.float32)
    rows_BD, centroids_KD = values[:4], values[4:]
    offset_D = centroids_KD.double().mean(dim=0).float()
    half_norm_K = (centroids_KD.double() - offset_D).square().sum(dim=1) / 2
    sieve = TorchSieve(centroids_KD - offset_D, half_norm_K, dtype=dtype, limit=5)
    upper_BK, by_norm_B, by_residual_B = sieve.upper(rows_BD - offset_D)
    error_BK = torch.outer(by_norm_B.double(), sieve.norm_K.double())
    error_BK += torch.outer(by_residual_B.double(), sieve.residual_K.double()) + sieve.constant_K
    for b, k in np.ndindex(4, 5):
        score = float(exact_score(rows_BD[b].numpy(), centroids_KD[k].numpy(), offset_D.numpy()))
        upper = float(upper_BK[b, k])
        rounding = sieve.result_rounding * abs(upper)
        assert score <= upper + rounding
        assert upper - rounding - 2 * float(error_BK[b, k]) <= score


def test_scores_one_bf16_step_apart_may_be_equal_before_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    sieve = TorchSieve(torch.zeros(3, 4), torch.zeros(3).double(), dtype=torch.bfloat16, limit=3)
    step = 2.0**-7
    product_BK, none_B = torch.tensor([[1.0, 1 + step, 1 - step]]), torch.zeros(1, dtype=torch.bfloat16)
    monkeypatch.setattr(sieve, "upper", lambda _: (product_BK, none_B, none_B))
    assert sieve.candidates(torch.zeros(1, 4), wanted=1).cluster_P.tolist() == [0, 1]


def test_sieve_keeps_few_candidates_on_ordinary_data() -> None:
    rng = np.random.default_rng(2)
    features_ND = rng.normal(size=(500, 8)) @ rng.normal(size=(8, 128)) + rng.normal(size=(500, 128))
    rows_BD = torch.tensor(features_ND, dtype=torch.float32) + 1000
    find = NearestCentroid((rows_BD[:200] + 0.1).numpy(), precision="bf16")
    for sieve in find.sieves:
        found = sieve.candidates(rows_BD - find.offset_D, wanted=1)
        assert len(found.row_P) + 200 * found.open_B.sum() < 3 * len(rows_BD)


def test_rows_with_many_candidates_are_left_to_the_sharper_product() -> None:
    features_ND, centroids_KD = adversarial("float16")
    find = NearestCentroid(np.repeat(centroids_KD[:9], 10, axis=0), precision="bf16")
    found = find.sieves[0].candidates(torch.tensor(features_ND) - find.offset_D, wanted=1)
    assert found.open_B.all() and not len(found.row_P)


def test_row_on_a_centroid_has_distance_zero() -> None:
    centroids_KD = (np.random.default_rng(3).normal(size=(50, 33)) * 1e3 + 1e5).astype(np.float32)
    for engine, precision in WAYS:
        near = NearestCentroid(centroids_KD, engine=engine, precision=precision)(centroids_KD)
        np.testing.assert_array_equal(near.cluster, np.arange(50))
        assert (near.distance == 0).all()


def test_pair_distance_does_not_depend_on_the_other_pairs() -> None:
    rng = np.random.default_rng(4)
    for width in (1, 2, 3, 7, 64, 129, 1000):
        rows_PD, centroids_PD = torch.tensor(rng.normal(size=(2, 333, width)), dtype=torch.float32)
        together_P = squared_distances(rows_PD, centroids_PD)
        alone = [squared_distances(rows_PD[p : p + 1], centroids_PD[p : p + 1]) for p in range(333)]
        assert together_P.numpy().tobytes() == torch.cat(alone).numpy().tobytes()
        expected_P = ((rows_PD.double() - centroids_PD.double()) ** 2).sum(dim=1)
        torch.testing.assert_close(together_P, expected_P, rtol=1e-14, atol=0)


def test_single_centroid_has_infinite_margin_and_no_rows_are_no_error() -> None:
    rows_ND = np.ones((3, 4), np.float32)
    for engine, precision in WAYS:
        find = NearestCentroid(np.zeros((1, 4), np.float32), engine=engine, precision=precision)
        near = find(rows_ND)
        assert near.distance.tolist() == [4, 4, 4] and np.isposinf(near.margin).all()
        assert len(find(rows_ND[:0]).cluster) == 0


def test_read_only_and_strided_features_are_accepted() -> None:
    features_ND = np.arange(24, dtype=np.float16).reshape(4, 6)
    features_ND.setflags(write=False)
    near = NearestCentroid(np.ones((2, 3), np.float32))(features_ND[:, ::2])
    assert near.cluster.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_bad_row_is_named(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_module, "MAX_BLOCK_BYTES", 4 * 3 * 100)
    find = NearestCentroid(np.zeros((2, 3), np.float32))
    features_ND = np.ones((1000, 3), np.float32)
    features_ND[[700, 900], 1] = value
    with pytest.raises(ValueError, match=r"Feature row 5700 must be finite"):
        find(features_ND, first_row=5000)
    with pytest.raises(ValueError, match=r"Centroid 700 must be finite"):
        NearestCentroid(features_ND)


def test_wrong_arguments_are_refused() -> None:
    centroids_KD = np.zeros((2, 3), np.float32)
    find = NearestCentroid(centroids_KD)
    with pytest.raises(ValueError, match=r"\(N, 3\). Got shape \(5, 4\)"):
        find(np.zeros((5, 4), np.float32))
    with pytest.raises(ValueError, match="float16 or float32. Got float64"):
        find(np.zeros((5, 3)))
    for shape in ((0, 3), (2, 0), (3,)):
        with pytest.raises(ValueError, match="Centroids must be"):
            NearestCentroid(np.zeros(shape, np.float32))
    for wrong in ({"engine": "scann"}, {"precision": "int8"}, {"device": "meta"}):
        with pytest.raises(ValueError, match="must be one of"):
            NearestCentroid(centroids_KD, **wrong)
