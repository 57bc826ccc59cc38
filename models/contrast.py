"""Losses that tell an image from others, and what they are compared with: a queue, or a bank of all rows.

Shapes: B rows of a batch, D width of an embedding, N rows of the dataset, K rows compared with. All embeddings have
unit length. Whatever precision the network has, the arithmetic here is float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import full_precision


def nt_xent(first_BD: Tensor, second_BD: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of finding each view's partner among the other 2B - 1 views of the batch; the mean over views.

    Source: Chen et al. 2020 (arXiv 2002.05709), equation 1. Differs from the official code, which adds the means of
        the two directions and so gives twice this value.
    """
    with full_precision(first_BD.device):
        views = torch.cat([first_BD, second_BD]).float()
        similarity = views @ views.T / temperature
        similarity.fill_diagonal_(-math.inf)
        own = torch.arange(len(first_BD), device=views.device)
        return F.cross_entropy(similarity, torch.cat([own + len(first_BD), own]))


def info_nce(queries_BD: Tensor, keys_BD: Tensor, negatives_KD: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of finding a query's key among it and the negatives.

    Returns:
        The mean loss, and the share of queries that are nearest to their key.
    Source: He et al. 2020 (arXiv 1911.05722), equation 1.
    """
    with full_precision(queries_BD.device):
        queries = queries_BD.float()
        positive = (queries * keys_BD.float()).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ negatives_KD.T], dim=1) / temperature
        target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return F.cross_entropy(logits, target), (logits.argmax(1) == 0).float().mean()


class Queue(nn.Module):
    """The last K embeddings, oldest replaced first; starts with random directions.

    Args:
        rows: K, at least the rows of a batch.
        shape: of what is kept of an image, D last.
    """

    rows: Tensor
    next: Tensor

    def __init__(self, rows: int, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(rows, *shape), dim=-1))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def push(self, embeddings: Tensor) -> None:
        """Put embeddings in, (B, ..., D), without gradient.

        Raises:
            ValueError: there are more of them than places.
        """
        count, size = len(embeddings), len(self.rows)
        if count > size:
            raise ValueError(
                f"A queue must hold a whole batch. Got {count} embeddings for {size} places. "
                "Set queue_rows to the batch size or more."
            )
        places = (self.next + torch.arange(count, device=self.rows.device)) % size
        self.rows[places] = embeddings.detach().to(self.rows.dtype)
        self.next.add_(count).remainder_(size)


class MemoryBank(nn.Module):
    """One embedding for each row of the dataset, averaged over the epochs; N x D float32 on the training device.

    Args:
        rows: N.
        dim: D.
        momentum: share of the old embedding in the new one.
    Source: Wu et al. 2018 (arXiv 1805.01978); https://github.com/zhirongw/lemniscate.pytorch lib/NCEAverage.py at
        f7cfe29 for the start, uniform with an expected squared length of 1.
    """

    rows: Tensor

    def __init__(self, rows: int, dim: int, *, momentum: float) -> None:
        super().__init__()
        limit = math.sqrt(3 / dim)
        self.register_buffer("rows", torch.empty(rows, dim).uniform_(-limit, limit))
        self.momentum = momentum

    def update(self, positions_B: Tensor, embeddings_BD: Tensor) -> None:
        """Move the rows of a batch, without gradient, and make them unit length again."""
        old, new = self.rows[positions_B], embeddings_BD.detach().float()
        self.rows[positions_B] = F.normalize(self.momentum * old + (1 - self.momentum) * new)

    def draw(self, count: int) -> Tensor:
        """Draw negatives from all rows alike, those of the batch included, (count, D)."""
        return self.rows[torch.randint(len(self.rows), (count,), device=self.rows.device)]


class NoiseContrast(nn.Module):
    """Binary cross-entropy that tells a row of the bank from noise, which is every row alike.

    The model's probability of a row is exp(similarity / temperature) / Z, and Z is fixed by the first batch.

    Args:
        temperature: of the similarity.
    Source: Wu et al. 2018 (arXiv 1805.01978), equations 5 to 8; https://github.com/zhirongw/lemniscate.pytorch
        lib/NCECriterion.py at f7cfe29. Differs: the rows of a batch share their negatives, so that K x D of the bank
        are read and not B x K x D; what is expected of an image's loss is the same.
    """

    log_constant: Tensor

    def __init__(self, *, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("log_constant", torch.tensor(math.nan))

    def forward(self, embeddings_BD: Tensor, positives_BD: Tensor, negatives_KD: Tensor, *, num_rows: int) -> Tensor:
        """Compare embeddings with their own rows of the bank and with others; the mean over B of a sum over 1 + K."""
        with full_precision(embeddings_BD.device):
            embeddings = embeddings_BD.float()
            positive_B = (embeddings * positives_BD).sum(1) / self.temperature
            negative_BK = embeddings @ negatives_KD.T / self.temperature
            self._fix_constant(torch.cat([positive_B, negative_BK.flatten()]).detach(), num_rows=num_rows)
            # log Z + log(K / N): a score above it speaks for the row, one below for noise.
            even = self.log_constant + math.log(len(negatives_KD) / num_rows)
            return (F.softplus(even - positive_B) + F.softplus(negative_BK - even).sum(1)).mean()

    def _fix_constant(self, scores: Tensor, *, num_rows: int) -> None:
        """Estimate Z as N times the mean of the first batch; a choice on the device, which waits for nothing."""
        estimate = scores.logsumexp(0) + math.log(num_rows / scores.numel())
        self.log_constant.copy_(torch.where(self.log_constant.isnan(), estimate, self.log_constant))
