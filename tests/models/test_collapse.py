import logging
import math

import pytest
import torch
import torch.nn.functional as F

from models.collapse import Watch, effective_rank, entropies, spread


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_spread_is_one_in_random_directions_and_zero_where_all_are_one():
    unit = F.normalize(random(512, 2048))
    assert spread(unit) == pytest.approx(1, abs=0.01)
    assert unit.std(0).mean().item() == pytest.approx(0.0221, abs=1e-4)  # the paper's 1 / sqrt(2048)
    assert spread(unit[:1].expand(8, 2048)) == pytest.approx(0, abs=1e-4)


def test_the_rank_counts_the_directions_in_use():
    assert effective_rank(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    assert effective_rank(torch.eye(16)[:3].repeat(5, 1)) == pytest.approx(3, rel=1e-3)
    outlier = F.normalize(
        torch.cat([-torch.ones(7, 16), torch.ones(1, 16)])
    )  # what BatchNorm makes of one that differs
    assert effective_rank(outlier) == pytest.approx(1, abs=1e-3) and spread(outlier) > 0.5


def test_the_entropies_tell_no_choice_from_one_choice_for_all():
    uniform, one = torch.full((6, 4), 0.25), torch.eye(4)[[2] * 6]
    assert entropies(uniform) == pytest.approx((1, 1))
    assert entropies(one) == pytest.approx((0, 0))
    assert entropies(torch.eye(4)) == pytest.approx((0, 1))
    mixed = F.softmax(random(5, 3), dim=1)
    each = [-sum(float(p) * math.log(float(p)) for p in row) for row in mixed]
    assert entropies(mixed)[0] == pytest.approx(sum(each) / 5 / math.log(3), rel=1e-5)


def test_nothing_noted_gives_no_figures():
    assert Watch("Method").figures() == {}


@pytest.mark.parametrize("sign", ["rank", "mean_entropy"])
def test_collapse_is_a_warning_that_names_the_method_and_the_sign(sign, caplog):
    watch = Watch("SomeMethod")
    with caplog.at_level(logging.WARNING):
        watch.embeddings(random(8, 16))
        watch.assignments(torch.eye(8))
        assert set(watch.figures()) == {"spread", "rank", "entropy", "mean_entropy"} and not caplog.messages
        watch.embeddings(random(1, 16).expand(8, 16)) if sign == "rank" else watch.assignments(torch.eye(8)[[0] * 8])
        watch.figures()
    assert len(caplog.messages) == 1 and f"SomeMethod collapses: its {sign} is" in caplog.messages[0]
