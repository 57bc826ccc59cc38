"""The losses equal those of another library, which computes them in other ways."""

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, DINOLoss, NTXentLoss, SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn

from models.contrast import info_nce, nt_xent
from models.pretext.swav import swapped_prediction
from models.regression import cross_correlation
from models.sinkhorn import sinkhorn


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(random(*shape, seed=seed), dim=-1)


def test_simclr():
    first, second = unit(8, 16), unit(8, 16, seed=1)
    expected = NTXentLoss(temperature=0.1)(first, second)
    torch.testing.assert_close(nt_xent(first, second, temperature=0.1), expected)


def test_moco():
    queries, keys = unit(4, 16), unit(4, 16, seed=1)
    reference = NTXentLoss(temperature=0.2, memory_bank_size=(32, 16))
    reference(unit(4, 16, seed=2).requires_grad_(), unit(4, 16, seed=3))  # makes its queue
    queue = reference.memory_bank.bank.clone()
    expected = reference(queries.requires_grad_(), keys)
    torch.testing.assert_close(info_nce(queries, keys, queue, temperature=0.2)[0], expected)


def test_barlow_twins():
    first, second = random(20, 12), random(20, 12, seed=1)
    correlation = cross_correlation(first, second)
    diagonal = correlation.diagonal()
    off = correlation.square().sum() - diagonal.square().sum()
    found = (diagonal - 1).square().sum() + 0.005 * off
    torch.testing.assert_close(found, BarlowTwinsLoss(lambda_param=0.005)(first, second), rtol=1e-4, atol=1e-4)


def test_sinkhorn():
    scores = unit(16, 32) @ unit(10, 32, seed=1).T
    torch.testing.assert_close(
        sinkhorn(scores, epsilon=0.05, iterations=3),
        lightly_sinkhorn(scores, iterations=3, epsilon=0.05),
        rtol=1e-4,
        atol=1e-5,
    )


def test_swav():
    scores = [unit(16, 32, seed=view) @ unit(10, 32, seed=9).T for view in range(5)]
    expected = SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)(scores[:2], scores[2:])
    codes = torch.stack([sinkhorn(score, epsilon=0.05, iterations=3) for score in scores[:2]])
    torch.testing.assert_close(
        swapped_prediction(torch.stack(scores) / 0.1, codes), expected.squeeze(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_dino(temperature):
    slow, fast = random(2, 6, 12), random(5, 6, 12, seed=1)
    reference = DINOLoss(output_dim=12, warmup_teacher_temp=temperature, teacher_temp=temperature)
    expected = reference(list(slow), list(fast), epoch=0)
    targets = (slow / temperature).softmax(-1)
    torch.testing.assert_close(swapped_prediction(fast / 0.1, targets), expected, rtol=1e-4, atol=1e-5)
