import math

import pytest
import torch
import torch.nn.functional as F

from models.heads import pooled
from models.pretext.swav import SwAV, swapped_prediction
from models.sinkhorn import sinkhorn

SMALL = {"large_size": 32, "small_size": 16, "num_small": 2, "hidden_dim": 16, "output_dim": 8, "num_prototypes": 6}


def embed(method, views):
    with torch.no_grad():
        return [
            F.normalize(method.head(pooled(method.backbone, method.normalise(view))).double())
            for view in views.unbind(1)
        ]


def expected_loss(method, batch, *, remembered=None):
    views = embed(method, batch.views["large"]) + embed(method, batch.views["small"])
    prototypes = method.prototypes.detach().double()
    terms = []
    for index in range(2):
        scores = views[index] @ prototypes.T
        if remembered is not None:
            scores = torch.cat([scores, remembered[:, index].double() @ prototypes.T])
        codes = sinkhorn(scores, epsilon=0.05, iterations=3)[:4].double()
        for other in range(4):
            if other != index:
                terms.append(-(codes * (views[other] @ prototypes.T / 0.1).log_softmax(1)).sum(1).mean())
    return sum(terms).item() / 6


def test_loss_predicts_each_large_views_code_from_every_other_view(build, batch_of):
    method = build(SwAV, **SMALL).eval()
    batch = batch_of(method)
    assert method.loss(batch, 0.5).objectives["main"].item() == pytest.approx(expected_loss(method, batch), rel=1e-3)


def test_the_queue_shapes_the_codes_from_its_share_of_the_training_on(build, batch_of):
    method = build(SwAV, **SMALL, queue_rows=5, queue_from=0.5).eval()
    batch = batch_of(method)
    before, after = (method.loss(batch, progress).objectives["main"].item() for progress in (0.4, 0.5))
    assert before == pytest.approx(expected_loss(method, batch), rel=1e-3)
    assert after == pytest.approx(expected_loss(method, batch, remembered=method.queue.rows), rel=1e-3)
    assert before != after
    with torch.no_grad():
        method.after_step(0.5)
    large = torch.stack(embed(method, batch.views["large"]), dim=1)
    torch.testing.assert_close(method.queue.rows[:4].double(), large, atol=1e-5, rtol=0)


def test_prototypes_stand_still_at_first_and_keep_unit_length(build, batch_of):
    method = build(SwAV, **SMALL, prototypes_frozen=0.2)
    batch = batch_of(method)
    method.loss(batch, 0.1).objectives["main"].backward()
    assert method.prototypes.grad is None and method.head[0].weight.grad.abs().max() > 0
    method.loss(batch, 0.2).objectives["main"].backward()
    assert method.prototypes.grad.abs().max() > 0
    with torch.no_grad():
        method.prototypes.mul_(3.0)
        method.after_step(0.2)
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(6))


def test_scores_of_zero_give_the_logarithm_of_the_prototypes():
    codes = F.softmax(torch.randn(2, 4, 300), dim=-1)
    assert swapped_prediction(torch.zeros(5, 4, 300), codes).item() == pytest.approx(math.log(300), abs=1e-4)
