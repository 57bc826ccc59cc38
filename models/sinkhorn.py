"""Assign rows to clusters of equal size, softly."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Give codes, (B, K) float32: every row sums to 1, and every column nearly to B / K.

    Args:
        scores_BK: similarities of rows and clusters.
        epsilon: temperature; a smaller one gives harder codes.
        iterations: of scaling columns, then rows.
    Source: Cuturi 2013 (arXiv 1306.0895); Caron et al. 2020 (arXiv 2006.09882), section 3.1. Differs: in logarithms,
        so that no score overflows.
    """
    log_codes = scores_BK.float() / epsilon
    for _ in range(iterations):
        log_codes = log_codes - log_codes.logsumexp(0, keepdim=True)
        log_codes = log_codes - log_codes.logsumexp(1, keepdim=True)
    return log_codes.exp()
