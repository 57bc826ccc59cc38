"""Several ranks compute what one computes."""

from __future__ import annotations

import numpy as np
import pytest

from models.split_batch import SplitBatch
from tests.models.rank_checks import NETWORKS, POLICIES, Answers, every_answer
from tests.rank_forks import RankForks


@pytest.fixture(scope="module")
def alone() -> Answers:
    return every_answer()


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest, rank_forks: RankForks, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    place = tmp_path_factory.mktemp("ranks") / "answers.npz"
    codes = rank_forks("tests.models.rank_checks:check", str(place), ranks=request.param)
    assert codes == [0] * request.param
    with np.load(place) as answers:
        return dict(answers)


def test_parts_and_sums_make_the_whole(alone: Answers, several: Answers) -> None:
    for name in ("sum", "rows", "rows of one", "first", "any"):
        np.testing.assert_array_equal(several[name], alone[name])


def test_batch_norm_is_that_of_the_joined_batch(alone: Answers, several: Answers) -> None:
    names = [name for name in alone if name.startswith("bn/")]
    assert len(names) == 7
    for name in names:
        np.testing.assert_allclose(several[name], alone[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_are_those_of_the_joined_batch(alone: Answers, several: Answers, network: str) -> None:
    gradient = alone[f"{network}/gradient"]
    assert np.abs(gradient).max() > 0.01
    np.testing.assert_allclose(several[f"{network}/gradient"], gradient, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_training_is_that_of_one_rank(alone: Answers, several: Answers, network: str) -> None:
    for name in ("loss 1", "loss 2", "weights"):
        np.testing.assert_allclose(several[f"{network}/{name}"], alone[f"{network}/{name}"], atol=1e-4, err_msg=name)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_checkpoint_serves_any_number_of_ranks(alone: Answers, several: Answers, network: str) -> None:
    for name in ("random state", "names"):
        np.testing.assert_array_equal(several[f"{network}/{name}"], alone[f"{network}/{name}"], err_msg=name)


@pytest.mark.parametrize("empty", POLICIES)
def test_clusters_of_float16_are_the_same_bytes(alone: Answers, several: Answers, empty: str) -> None:
    names = [name for name in alone if name.startswith(f"float16/{empty}/")]
    assert len(names) == 5 and alone[f"float16/{empty}/repairs"].any()
    for name in names:
        assert several[name].tobytes() == alone[name].tobytes(), name


def test_clusters_of_float32_differ_by_rounding(alone: Answers, several: Answers) -> None:
    one, other = (answers["float32/split_largest/first"] for answers in (alone, several))
    np.testing.assert_allclose(other, one, atol=1e-5)
    one, other = (answers["float32/split_largest/inertia"] for answers in (alone, several))
    assert other[-1] == pytest.approx(one[-1], rel=1e-3)


def test_more_ranks_than_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.split_batch.world_size", lambda: 3)
    with pytest.raises(ValueError, match="GRAFT_RANKS must be at most the rows of a training step, 2, got 3"):
        SplitBatch(2)
