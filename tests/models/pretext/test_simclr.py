import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import pooled
from models.pretext.simclr import SimCLR

SMALL = {"crop_size": 32, "hidden_dim": 16, "output_dim": 8}


def test_loss_finds_each_views_partner_among_all_views_of_the_batch(build, batch_of):
    method = build(SimCLR, **SMALL).eval()
    batch = batch_of(method)
    with torch.no_grad():
        views = [
            F.normalize(method.head(pooled(method.backbone, method.normalise(view))).double())
            for view in batch.views["pair"].unbind(1)
        ]
    similarity = torch.cat(views) @ torch.cat(views).T / 0.1
    similarity -= torch.diag(torch.full((8,), torch.inf))
    expected = -similarity.log_softmax(1)[torch.arange(8), (torch.arange(8) + 4) % 8].mean()
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), abs=1e-4)


def test_the_papers_head_has_no_norm_and_the_codes_has_one_at_every_layer(build):
    kinds = [type(module) for module in build(SimCLR, **SMALL).head]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
    kinds = [type(module) for module in build(SimCLR, **SMALL, head_layers=3, head_norm=True).head]
    block = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds == [*block, *block, nn.Linear, nn.BatchNorm1d]


def test_the_projection_is_kept(build):
    method = build(SimCLR, **SMALL)
    assert method.heads() == {"projection": method.head}
