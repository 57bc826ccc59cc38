import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import pooled
from models.pretext.byol import BYOL

SMALL = {"crop_size": 32, "hidden_dim": 16, "output_dim": 8}


def test_loss_is_the_squared_distance_of_unit_vectors_in_both_directions(build, batch_of):
    method = build(BYOL, **SMALL).eval()
    nn.init.normal_(method.slow_head[0].weight)  # a slow copy that differs
    batch = batch_of(method)
    views = method.normalise(batch.views["pair"]).unbind(1)
    with torch.no_grad():
        p = [method.predictor(method.head(pooled(method.backbone, view))).double() for view in views]
        z = [method.slow_head(pooled(method.slow_backbone, view)).double() for view in views]
    expected = sum((F.normalize(p[i]) - F.normalize(z[1 - i])).square().sum(1).mean() for i in range(2))
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize(("sign", "expected"), [(1.0, 0.0), (-1.0, 8.0)])
def test_loss_is_zero_for_the_same_and_eight_for_the_opposite(build, batch_of, sign, expected):
    method = build(BYOL, **SMALL).eval()
    method.predictor = nn.Linear(8, 8, bias=False)
    nn.init.eye_(method.predictor.weight)
    with torch.no_grad():
        method.predictor.weight.mul_(sign)
    batch = batch_of(method)
    batch.views["pair"][:, 1] = batch.views["pair"][:, 0]
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected, abs=1e-4)


def test_the_slow_copy_follows_ever_more_slowly_and_has_no_gradient(build, batch_of):
    method = build(BYOL, **SMALL, momentum=0.9)
    method.loss(batch_of(method), 0.0).objectives["main"].backward()
    assert all(p.grad is None for p in [*method.slow_backbone.parameters(), *method.slow_head.parameters()])
    weight, slow = method.head[0].weight, method.slow_head[0].weight
    for progress, moved in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        with torch.no_grad():
            slow.copy_(weight)
            weight.add_(1.0)
            old = slow.clone()
            method.after_step(progress)
        torch.testing.assert_close(slow, old + moved)


def test_numbers_are_the_papers():
    config = BYOL.Config()
    assert (config.momentum, config.hidden_dim, config.output_dim) == (0.996, 4096, 256)
    assert config.blur_probability == (1.0, 0.1) and config.solarize_probability == (0.0, 0.2)
