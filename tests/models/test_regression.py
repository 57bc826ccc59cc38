import pytest
import torch
import torch.nn.functional as F

from models.regression import cosine_to, cross_correlation


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_cosine_is_its_formula_in_float64_whatever_the_lengths():
    predicted, target = random(4, 6), 3 * random(4, 6, seed=1)
    p, z = predicted.double(), target.double()
    expected = torch.stack([a @ b / (a.norm() * b.norm()) for a, b in zip(p, z, strict=True)]).mean()
    assert cosine_to(predicted, target).item() == pytest.approx(expected.item(), abs=1e-6)
    assert cosine_to(2 * target, target).item() == pytest.approx(1)
    assert cosine_to(-target, target).item() == pytest.approx(-1)


def test_no_gradient_reaches_a_target():
    predicted, target = random(4, 6).requires_grad_(), random(4, 6, seed=1).requires_grad_()
    cosine_to(predicted, target).backward()
    assert predicted.grad.abs().max() > 0 and target.grad is None


def test_the_cross_correlation_is_its_formula_in_float64_even_within_autocast():
    first, second = random(30, 4), random(30, 4, seed=1) + 7
    a, b = ((side - side.mean(0)) / side.std(0, correction=0) for side in (first.double(), second.double()))
    expected = torch.tensor([[(a[:, i] * b[:, j]).mean() for j in range(4)] for i in range(4)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_correlation(first, second)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=0)


def test_whitened_embeddings_correlate_as_the_identity():
    rows = random(200, 6).double()
    white = (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T)).T)
    found = cross_correlation(white.float(), white.float())
    torch.testing.assert_close(found, torch.eye(6), atol=1e-4, rtol=0)
    assert F.mse_loss(cross_correlation(white.float(), -white.float()), -torch.eye(6)) < 1e-8
