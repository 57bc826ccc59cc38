import itertools
import math

import numpy as np
import pytest

from models.permutations import permutation_set

METHODS = ["max_avg", "max_min", "min_distance"]


def distances(rows):
    pairs = np.triu_indices(len(rows), 1)
    return (rows[:, None] != rows[None]).sum(-1)[pairs]


@pytest.fixture(scope="module")
def set_701():
    return permutation_set(701, method="min_distance", seed=0)


def test_set_of_701_has_permutations_at_distance_3(set_701):
    assert set_701.shape == (701, 9) and set_701.dtype == np.int64
    assert np.array_equal(np.sort(set_701, axis=1), np.tile(np.arange(9), (701, 1)))
    found = distances(set_701)
    assert found.min() >= 3
    assert found.mean() == pytest.approx(8.0, abs=0.02)  # that of the released set is 7.999


def test_hiding_any_two_slots_leaves_distinct_permutations(set_701):
    for hidden in itertools.combinations(range(9), 2):
        assert len(np.unique(np.delete(set_701, hidden, axis=1), axis=0)) == 701


@pytest.mark.parametrize(("method", "smallest", "mean"), [("max_avg", 2, 8.08), ("max_min", 6, 8.03)])
def test_greedy_sets_of_100_have_the_known_distances(method, smallest, mean):
    found = distances(permutation_set(100, method=method, seed=0))
    assert found.min() == smallest
    assert found.mean() == pytest.approx(mean, abs=0.01)


@pytest.mark.parametrize("method", ["max_avg", "max_min"])
def test_greedy_equals_its_definition_on_five_slots(method):
    chosen = permutation_set(20, method=method, seed=3, num_slots=5)
    everything = np.array(list(itertools.permutations(range(5))))
    measure = np.sum if method == "max_avg" else np.min
    for size in range(1, 20):
        so_far = chosen[:size]
        left = [row for row in everything if not (so_far == row).all(axis=1).any()]
        scores = [measure((so_far != row).sum(axis=1)) for row in left]
        assert np.array_equal(chosen[size], left[int(np.argmax(scores))])


@pytest.mark.parametrize("method", METHODS)
def test_seed_decides_the_set(method):
    first, again, other = (permutation_set(10, method=method, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_permutations_can_be_chosen_once():
    assert len(np.unique(permutation_set(24, method="max_avg", seed=0, num_slots=4), axis=0)) == 24


@pytest.mark.parametrize("count", [0, math.factorial(4) + 1])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"from 1 to 24.*Got {count}"):
        permutation_set(count, method="max_avg", seed=0, num_slots=4)


def test_too_many_for_the_distance_says_how_many_there_are():
    # In four slots, distance 3 leaves at most the 12 even permutations.
    with pytest.raises(ValueError, match="Choose a smaller set"):
        permutation_set(13, method="min_distance", seed=0, num_slots=4)
