import pytest
import torch
from torch import nn

from models.heads import pooled
from models.pretext import barlow_twins
from models.pretext.barlow_twins import BarlowTwins
from models.training.optimizers import OptimizerConfig, build_optimizers, set_lr

SMALL = {"crop_size": 32, "output_dim": 8}


def test_loss_is_its_formula_in_float64(build, batch_of):
    method = build(BarlowTwins, **SMALL).eval()
    batch = batch_of(method, tuple(range(8)))
    with torch.no_grad():
        sides = [
            method.head(pooled(method.backbone, method.normalise(view))).double()
            for view in batch.views["pair"].unbind(1)
        ]
    # The published epsilon of BatchNorm counts where an untrained network hardly varies.
    a, b = ((side - side.mean(0)) / (side.var(0, correction=0) + 1e-5).sqrt() for side in sides)
    expected = 0.0
    for i in range(8):
        for j in range(8):
            c = (a[:, i] * b[:, j]).mean()
            expected += (c - 1) ** 2 if i == j else 0.005 * c**2
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(
    ("correlation", "expected"),
    [(torch.eye(16), 0.0), (-torch.eye(16), 64.0), (torch.ones(16, 16), 0.005 * 16 * 15)],
)
def test_loss_in_closed_form(build, batch_of, monkeypatch, correlation, expected):
    """The same whitened views, the second negated, and copies of one feature."""
    monkeypatch.setattr(barlow_twins, "cross_correlation", lambda first, second: correlation)
    method = build(BarlowTwins, **SMALL)
    assert method.loss(batch_of(method), 0.0).objectives["main"].item() == pytest.approx(expected, abs=1e-5)


def test_biases_and_norms_have_a_rate_of_their_own(build):
    method = build(BarlowTwins, **SMALL)
    optimizer = build_optimizers(method, OptimizerConfig(name="lars", lr=0.2, decay_vectors=False))["main"]
    set_lr(optimizer, factor=1.0)
    rates = {parameter.ndim > 1: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert rates == pytest.approx({True: 0.2, False: 0.0048})


def test_the_projector_has_no_norm_at_its_end_and_no_bias(build):
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    head = build(BarlowTwins, **SMALL).head
    assert [type(module) for module in head] == [*block, *block, nn.Linear]
    assert all(module.bias is None for module in head if isinstance(module, nn.Linear))
