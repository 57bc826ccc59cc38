import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from models import probes, row_chunks
from models.probes import (
    LinearProbeConfig,
    accuracy_interval,
    fit_linear_probe,
    knn_predict_scores,
    paired_interval,
)


def clusters(*, rows, width=16, classes=5, spread=0.6, seed=0):
    """Rows around one random centre a class, in random order."""
    centres = np.random.default_rng(7).normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    features = centres[labels] + spread * generator.normal(size=(rows, width))
    return features.astype(np.float32), labels


def cut(features, labels, *, rows):
    return [(features[start : start + rows], labels[start : start + rows]) for start in range(0, len(labels), rows)]


def fit(features, labels, *, rows=100, classes=5, **options):
    chunks = cut(features, labels, rows=rows)
    config = LinearProbeConfig(**{"epochs": 10, "batch": 32, **options})
    return fit_linear_probe(
        config, lambda order: (chunks[index] for index in order), num_chunks=len(chunks), num_classes=classes
    )


@pytest.mark.parametrize("k", [1, 7, 200])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_equals_scikit_learn(k, temperature):
    bank, labels = clusters(rows=500, spread=2.0)
    queries, _ = clusters(rows=60, spread=2.0, seed=1)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(bank.astype(np.float64), labels)
    scores = knn_predict_scores(cut(bank, labels, rows=130), queries, k=k, num_classes=5, temperature=temperature)
    np.testing.assert_allclose(scores, reference.predict_proba(queries.astype(np.float64)), rtol=1e-3, atol=1e-6)


def test_nearest_neighbour_of_the_bank_is_itself():
    bank, labels = clusters(rows=300, spread=3.0)
    scores = knn_predict_scores(cut(bank, labels, rows=64), bank, k=1, num_classes=5)
    assert (scores.argmax(1) == labels).all()


def test_k_larger_than_the_bank_is_the_whole_bank():
    bank, labels = clusters(rows=30)
    queries, _ = clusters(rows=10, seed=1)
    whole, larger = (knn_predict_scores([(bank, labels)], queries, k=k, num_classes=5) for k in (30, 1000))
    assert np.array_equal(whole, larger)


def test_chunk_and_block_sizes_change_nothing(monkeypatch):
    bank, labels = clusters(rows=400, spread=2.0)
    queries, _ = clusters(rows=50, spread=2.0, seed=1)
    expected = knn_predict_scores([(bank, labels)], queries, k=20, num_classes=5)
    monkeypatch.setattr(probes, "BLOCK_ROWS", 32)
    blocked = [knn_predict_scores(cut(bank, labels, rows=rows), queries, k=20, num_classes=5) for rows in (1, 33, 400)]
    assert np.array_equal(blocked[0], blocked[1]) and np.array_equal(blocked[0], blocked[2])
    np.testing.assert_allclose(blocked[0], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("block_rows", [4096, 2])
def test_equal_cosines_go_to_the_earliest_rows(monkeypatch, block_rows):
    monkeypatch.setattr(probes, "BLOCK_ROWS", block_rows)
    # Powers of two: their cosines with the query are exact, so rows 1, 2, 4 and 5 tie.
    bank = np.array([[0, 1], [1, 0], [2, 0], [-1, 0], [4, 0], [8, 0]], dtype=np.float32)
    scores = knn_predict_scores(
        cut(bank, np.arange(6), rows=4), np.array([[1, 0]], dtype=np.float32), k=2, num_classes=6
    )
    np.testing.assert_allclose(scores, [[0, 0.5, 0.5, 0, 0, 0]])


def test_sort_keys_keep_the_order_and_the_cosines():
    cosines = torch.tensor([[-1.0, -0.5, -1e-30, -0.0, 0.0, 1e-30, 0.5, 1.0]])
    rows = torch.arange(2**32 - 9, 2**32 - 1)
    keys = probes._sort_keys(cosines, rows)
    assert (keys.argsort(dim=1, descending=True)[0].tolist()) == [7, 6, 5, 3, 4, 2, 1, 0]
    assert torch.equal(probes._cosines(keys), cosines)
    assert torch.equal(probes._rows(keys), rows[None])


def test_small_temperature_does_not_overflow():
    bank, labels = clusters(rows=50)
    scores = knn_predict_scores([(bank, labels)], bank, k=5, num_classes=5, temperature=1e-4)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)


def test_half_precision_and_read_only_features_are_read():
    bank, labels = clusters(rows=50)
    bank = bank.astype(np.float16)
    bank.flags.writeable = False
    scores = knn_predict_scores([(bank, labels)], bank, k=1, num_classes=5)
    assert scores.dtype == np.float32 and (scores.argmax(1) == labels).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k and temperature must be positive, 0"),
        ({"temperature": 0.0}, "k and temperature must be positive, 5 and 0.0"),
        ({"bank": np.zeros((0, 3))}, "must have rows, 0 and 2 were given"),
        ({"queries": np.zeros((0, 3))}, "must have rows, 2 and 0 were given"),
        ({"queries": np.full((2, 3), np.nan)}, "features must be finite"),
        ({"bank": np.full((2, 3), np.inf)}, "features must be finite"),
        ({"labels": np.array([0, -1])}, "labels must be 0 to 1, -1 to 0"),
        ({"labels": np.array([0, 2])}, "labels must be 0 to 1, 0 to 2"),
        ({"labels": np.array([0, 1, 1])}, "2 rows and 3 labels"),
    ],
)
def test_knn_refuses(change, message):
    given = {
        "bank": np.ones((2, 3)),
        "queries": np.ones((2, 3)),
        "labels": None,
        "k": 5,
        "temperature": 0.07,
    } | change
    labels = np.arange(len(given["bank"])) if given["labels"] is None else given["labels"]
    with pytest.raises(ValueError, match=message):
        knn_predict_scores(
            [(given["bank"], labels)],
            given["queries"],
            k=given["k"],
            num_classes=2,
            temperature=given["temperature"],
        )


def test_linear_probe_separates_what_is_separable():
    features, labels = clusters(rows=600, spread=0.3)
    unseen, unseen_labels = clusters(rows=200, spread=0.3, seed=1)
    assert LogisticRegression().fit(features, labels).score(unseen, unseen_labels) == 1.0
    logits = fit(features, labels).predict(unseen)
    assert logits.shape == (200, 5) and logits.dtype == np.float32
    assert (logits.argmax(1) == unseen_labels).all()


def test_linear_probe_reaches_the_logistic_regression_of_the_same_penalty():
    features, labels = clusters(rows=500, spread=2.5)
    standard = (features - features.mean(0)) / features.std(0)
    # The SGD penalty weight_decay / 2 * |w|^2 on a mean loss is C = 1 / (N * weight_decay) on a sum.
    reference = LogisticRegression(C=1 / (500 * 0.01), tol=1e-8, max_iter=1000).fit(standard, labels)
    probe = fit(features, labels, epochs=100, batch=50, lr=0.05, weight_decay=0.01)
    np.testing.assert_allclose(probe.weight_CD, reference.coef_, atol=0.01)


def test_linear_probe_repeats_from_its_seed_and_leaves_torch_alone():
    features, labels = clusters(rows=300, spread=2.0)
    before = torch.get_rng_state()
    first, again, other = (fit(features, labels, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(first.weight_CD, again.weight_CD)
    assert not np.array_equal(first.weight_CD, other.weight_CD)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_and_shift_of_the_features_do_not_matter(scale):
    features, labels = clusters(rows=300, spread=2.0)
    moved_features = (features + 5) * np.float32(scale)
    plain, moved = fit(features, labels), fit(moved_features, labels)
    np.testing.assert_allclose(moved.weight_CD, plain.weight_CD, atol=1e-4)
    np.testing.assert_allclose(moved.predict(moved_features), plain.predict(features), atol=1e-3)


def test_features_are_standardised_by_all_training_rows():
    features, labels = clusters(rows=301)
    probe = fit(features, labels, rows=37, epochs=1)
    np.testing.assert_allclose(probe.mean_D, features.mean(0), atol=1e-6)
    np.testing.assert_allclose(probe.scale_D, 1 / features.std(0), rtol=1e-4)


def test_constant_features_are_harmless():
    features, labels = clusters(rows=300, spread=0.3)
    with_constant = np.concatenate([features, np.full((300, 2), 5, np.float32)], axis=1)
    assert (fit(with_constant, labels).predict(with_constant).argmax(1) == labels).all()
    assert not fit(np.full((300, 2), 5, np.float32), labels).weight_CD.any()


def test_each_epoch_reads_every_chunk_once_in_a_new_order():
    features, labels = clusters(rows=300)
    chunks, orders = cut(features, labels, rows=20), []

    def read_chunks(order):
        orders.append(list(order))
        return (chunks[index] for index in order)

    fit_linear_probe(LinearProbeConfig(epochs=3), read_chunks, num_chunks=15, num_classes=5)
    assert orders[0] == list(range(15))
    assert all(sorted(order) == list(range(15)) for order in orders)
    assert len(orders) == 4 and len({tuple(order) for order in orders}) == 4


def test_rows_sorted_by_class_are_learnt(monkeypatch):
    monkeypatch.setattr(row_chunks, "SHUFFLE_BYTES", 4 * 16 * 200)  # 200 of the 1000 rows
    features, labels = clusters(rows=1000, spread=0.3)
    order = np.argsort(labels, kind="stable")
    probe = fit(features[order], labels[order], rows=30)
    assert (probe.predict(features).argmax(1) == labels).mean() > 0.99


def test_linear_probe_refuses_no_rows_and_divergence():
    with pytest.raises(ValueError, match="must have training rows"):
        fit(np.zeros((0, 3)), np.zeros(0, np.int64))
    features, labels = clusters(rows=100)
    with pytest.raises(ValueError, match=r"lr 1e\+30 diverged; lower lr"):
        fit(features, labels, lr=1e30, weight_decay=1.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_accuracy_interval_is_the_published_wilson_interval(successes, trials, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    correct = np.arange(trials) < successes
    assert accuracy_interval(correct) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_accuracy_interval_ends_where_the_score_test_does(confidence):
    correct = np.arange(50) < 37
    for end in accuracy_interval(correct, confidence=confidence):
        score = abs(0.74 - end) / (end * (1 - end) / 50) ** 0.5
        assert score == pytest.approx(norm.ppf((1 + confidence) / 2))


def test_paired_interval_is_the_published_one():
    """Agresti 2002, table 10.1: approval of 1600 people at two surveys, -0.04 with standard error 0.0095."""
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    difference, low, high = paired_interval(second, first)
    assert difference == pytest.approx(-0.04)
    assert (high - difference) / norm.ppf(0.975) == pytest.approx(0.0095, abs=5e-5)
    assert difference - low == pytest.approx(high - difference)


def test_paired_interval_is_antisymmetric_and_narrower_than_two_separate_ones():
    generator = np.random.default_rng(0)
    a = generator.random(1000) < 0.6
    b = np.where(generator.random(1000) < 0.9, a, ~a)
    forth, back = paired_interval(a, b), paired_interval(b, a)
    assert forth.difference == -back.difference == pytest.approx(a.mean() - b.mean())
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    separate = accuracy_interval(a)
    assert forth.high - forth.low < separate[1] - separate[0]
    assert paired_interval(a, a) == (0, 0, 0)
    wide = paired_interval(a, b, confidence=0.99)
    assert wide.low < forth.low and wide.high > forth.high


def test_intervals_refuse_no_outcome_and_unequal_lengths():
    empty = np.zeros(0, bool)
    for call in (lambda: accuracy_interval(empty), lambda: paired_interval(empty, empty)):
        with pytest.raises(ValueError, match="must have outcomes"):
            call()
    with pytest.raises(ValueError, match="3 and 2 were given"):
        paired_interval(np.ones(3, bool), np.ones(2, bool))
