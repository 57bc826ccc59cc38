import torch
import torch.nn.functional as F

from models.sinkhorn import sinkhorn


def scores(rows, clusters, dim=128):
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(rows, dim, generator=generator))
    return embeddings @ F.normalize(torch.randn(clusters, dim, generator=generator)).T


def test_rows_sum_to_one_and_columns_come_near_to_even():
    codes = sinkhorn(scores(512, 300), epsilon=0.05, iterations=3)
    torch.testing.assert_close(codes.sum(1), torch.ones(512), atol=1e-5, rtol=0)
    even = codes.sum(0) / (512 / 300)
    plain = F.softmax(scores(512, 300) / 0.05, dim=1).sum(0) / (512 / 300)
    assert (even - 1).abs().max() < 0.01 < (plain - 1).abs().max()
    exact = sinkhorn(scores(64, 20), epsilon=0.05, iterations=100).sum(0) / (64 / 20)
    torch.testing.assert_close(exact, torch.ones(20), atol=1e-4, rtol=0)


def test_is_the_published_scaling_in_float64():
    given = scores(7, 4)
    codes = torch.exp(given.double() / 0.05)
    codes /= codes.sum()
    for _ in range(3):
        codes /= codes.sum(0, keepdim=True) * 4
        codes /= codes.sum(1, keepdim=True) * 7
    torch.testing.assert_close(sinkhorn(given, epsilon=0.05, iterations=3).double(), codes * 7, atol=1e-5, rtol=1e-4)


def test_large_scores_overflow_nothing_and_no_gradient_passes():
    given = (1e4 * scores(5, 3)).requires_grad_()
    codes = sinkhorn(given, epsilon=0.01, iterations=3)
    assert codes.isfinite().all() and not codes.requires_grad
