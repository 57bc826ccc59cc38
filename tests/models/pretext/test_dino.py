import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import pooled
from models.pretext.dino import DINO
from models.pretext.swav import swapped_prediction
from models.training.optimizers import OptimizerConfig, build_optimizers, set_lr

SMALL = {"large_size": 32, "small_size": 16, "num_small": 2, "hidden_dim": 16, "bottleneck_dim": 8, "num_outputs": 12}


def outputs(backbone, head, method, views):
    with torch.no_grad():
        return [head(pooled(backbone, method.normalise(view))).double() for view in views.unbind(1)]


def test_loss_predicts_the_centred_and_sharpened_large_views_from_every_other(build, batch_of):
    method = build(DINO, **SMALL).eval()
    nn.init.normal_(method.slow_head.last)  # a slow copy that differs
    method.center.normal_(std=0.1)
    batch = batch_of(method)
    slow = outputs(method.slow_backbone, method.slow_head, method, batch.views["large"])
    fast = [
        view for size in ("large", "small") for view in outputs(method.backbone, method.head, method, batch.views[size])
    ]
    terms = []
    for index in range(2):
        target = ((slow[index] - method.center.double()) / 0.04).softmax(1)
        terms += [-(target * (fast[other] / 0.1).log_softmax(1)).sum(1).mean() for other in range(4) if other != index]
    expected = sum(terms).item() / 6
    assert method.loss(batch, 0.5).objectives["main"].item() == pytest.approx(expected, rel=1e-3)


def test_the_centre_moves_after_its_use(build, batch_of):
    method = build(DINO, **SMALL).eval()
    batch = batch_of(method)
    method.loss(batch, 0.5)
    assert method.center.abs().max() == 0
    slow = torch.cat(outputs(method.slow_backbone, method.slow_head, method, batch.views["large"]))
    with torch.no_grad():
        method.after_step(0.5)
    torch.testing.assert_close(method.center.double(), 0.1 * slow.mean(0), atol=1e-6, rtol=1e-4)


def test_equal_outputs_cost_their_entropy_and_zeros_the_logarithm_of_the_outputs():
    logits = torch.randn(1, 4, 12).expand(3, 4, 12)
    probabilities = logits[:2].softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean()
    torch.testing.assert_close(swapped_prediction(logits, probabilities), entropy)
    zero = swapped_prediction(torch.zeros(3, 4, 32), torch.zeros(2, 4, 32).softmax(-1))
    assert zero.item() == pytest.approx(math.log(32))


def test_the_last_layer_stands_still_at_first(build, batch_of):
    method = build(DINO, **SMALL, last_layer_frozen=0.2)
    batch = batch_of(method)
    method.loss(batch, 0.1).objectives["main"].backward()
    assert method.head.last.grad is None and method.head.mlp[0].weight.grad.abs().max() > 0
    method.loss(batch, 0.2).objectives["main"].backward()
    assert method.head.last.grad.abs().max() > 0
    assert all(p.grad is None for p in [*method.slow_backbone.parameters(), *method.slow_head.parameters()])


def test_the_length_of_the_last_layers_rows_does_not_matter(build):
    head, values = build(DINO, **SMALL).head, torch.randn(3, 32)
    before = head(values)
    with torch.no_grad():
        head.last.mul_(torch.rand(12, 1) + 0.5)
    torch.testing.assert_close(head(values), before)
    assert before.abs().max() <= 1  # cosines


def test_the_slow_temperature_warms_up_and_the_slow_copy_follows_ever_more_slowly(build, batch_of):
    method = build(DINO, **SMALL, slow_temperature=0.07, temperature_warmup=0.5, momentum=0.9)
    found = [method._slow_temperature(progress) for progress in (0.0, 0.25, 0.5, 0.9)]
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    method.loss(batch_of(method), 0.0)
    slow, old = method.slow_head.mlp[0].bias, method.slow_head.mlp[0].bias.clone()
    with torch.no_grad():
        method.head.mlp[0].bias.add_(1.0)
        method.after_step(0.5)
    torch.testing.assert_close(slow, old + 0.05)


@pytest.mark.parametrize("center_momentum", [0.5, 1.0])
def test_collapse_without_the_centre_is_noticed(build, batch_of, caplog, center_momentum):
    method = build(DINO, **SMALL, center_momentum=center_momentum, momentum=0.99, last_layer_frozen=0.0)
    optimizer = build_optimizers(method, OptimizerConfig(lr=0.1, momentum=0.0))["main"]
    set_lr(optimizer, factor=1.0)
    batches = [batch_of(method, tuple(range(8)), epoch=epoch) for epoch in range(4)]
    for step in range(24):
        optimizer.zero_grad()
        method.loss(batches[step % 4], step / 24).objectives["main"].backward()
        optimizer.step()
        with torch.no_grad():
            method.after_step(step / 24)
    with caplog.at_level(logging.WARNING):
        mean_entropy = method.health()["mean_entropy"]
    centred = center_momentum < 1
    assert (mean_entropy > 0.3) == centred and any("DINO collapses" in line for line in caplog.messages) != centred
    assert F.softmax(method.center, dim=0).isfinite().all()
