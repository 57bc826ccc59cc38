import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import pooled
from models.pretext import simsiam
from models.pretext.simsiam import SimSiam
from models.training.optimizers import OptimizerConfig, build_optimizers, set_lr

SMALL = {"crop_size": 32, "output_dim": 16, "predictor_dim": 8}


def test_loss_is_minus_the_mean_cosine_of_both_directions(build, batch_of):
    method = build(SimSiam, **SMALL).eval()
    batch = batch_of(method)
    with torch.no_grad():
        z = [method.head(pooled(method.backbone, method.normalise(view))) for view in batch.views["pair"].unbind(1)]
        p = [method.predictor(side) for side in z]
    cosines = [F.cosine_similarity(p[i].double(), z[1 - i].double()).mean() for i in range(2)]
    expected = -sum(cosines) / 2
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), abs=1e-5)
    method.predictor = nn.Identity()  # predicting a view from itself is perfect
    batch.views["pair"][:, 1] = batch.views["pair"][:, 0]
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(-1)


def test_the_gradient_passes_through_the_predictor_alone(build, batch_of):
    method = build(SimSiam, **SMALL)
    nn.init.zeros_(method.predictor[-1].weight)  # then no gradient passes the predictor
    method.loss(batch_of(method), 0.0).objectives["main"].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in method.backbone.parameters())
    assert method.predictor[-1].weight.grad.abs().max() > 0


def test_norms_are_where_the_paper_has_them(build):
    method = build(SimSiam, **SMALL)
    kinds = [type(module) for module in method.head]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d] and method.head[-1].weight is None
    assert [type(module) for module in method.predictor] == [*block, nn.Linear]


def test_the_predictors_rate_stays(build):
    optimizer = build_optimizers(build(SimSiam, **SMALL), OptimizerConfig(lr=0.1))["main"]
    set_lr(optimizer, factor=0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])


@pytest.mark.parametrize("stopped", [True, False])
def test_collapse_without_the_stopped_gradient_is_noticed(build, batch_of, monkeypatch, caplog, stopped):
    if not stopped:
        monkeypatch.setattr(simsiam, "cosine_to", lambda p, z: F.cosine_similarity(p, z).mean())
    method = build(SimSiam, **SMALL)
    optimizer = build_optimizers(method, OptimizerConfig(lr=1.0, weight_decay=1e-3))["main"]
    set_lr(optimizer, factor=1.0)
    batches = [batch_of(method, tuple(range(8)), epoch=epoch) for epoch in range(4)]
    for step in range(40):
        optimizer.zero_grad()
        method.loss(batches[step % 4], step / 40).objectives["main"].backward()
        optimizer.step()
    with caplog.at_level(logging.WARNING):
        rank = method.health()["rank"]
    assert (rank > 2) == stopped and any("SimSiam collapses" in line for line in caplog.messages) == (not stopped)
