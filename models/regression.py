"""Losses that pull one embedding towards another that stands still.

Shapes: B rows, D width.
"""

import torch.nn.functional as F
from torch import Tensor

from models.precision import full_precision


def cosine_to(predicted_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Give the mean cosine of predictions and targets; no gradient reaches a target."""
    return F.cosine_similarity(predicted_BD.float(), target_BD.detach().float()).mean()


def cross_correlation(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Correlate each dimension of one with each of the other over the batch, (D, D).

    Source: Zbontar et al. 2021 (arXiv 2103.03230), equation 2, with the batch's own deviations and BatchNorm's epsilon.
    """
    with full_precision(first_BD.device):
        first, second = (
            F.batch_norm(side.float(), running_mean=None, running_var=None, training=True)
            for side in (first_BD, second_BD)
        )
        return first.T @ second / len(first)
