"""Signs of collapse: a network that says the same of every image has solved its task and learnt nothing.

Shapes: B rows, D width, K outputs.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

LOW_RANK = 1.5  # directions; 1 is all alike
LOW_ENTROPY = 0.1


class Watch:
    """Keeps what the last batch gave, on its device, and measures it when the log asks.

    Args:
        method: name for the warnings.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._embeddings_BD: Tensor | None = None
        self._probabilities_BK: Tensor | None = None

    def embeddings(self, embeddings_BD: Tensor) -> None:
        """Note the embeddings of a batch."""
        self._embeddings_BD = embeddings_BD.detach()

    def assignments(self, probabilities_BK: Tensor) -> None:
        """Note to which outputs the images of a batch were assigned."""
        self._probabilities_BK = probabilities_BK.detach()

    def figures(self) -> dict[str, float]:
        """Measure the last batch, and warn where it tells of collapse.

        Returns:
            Of embeddings "spread" and "rank", of assignments "entropy" and "mean_entropy"; see the functions below.
        """
        figures: dict[str, float] = {}
        if self._embeddings_BD is not None:
            unit_BD = F.normalize(self._embeddings_BD.float())
            figures |= {"spread": spread(unit_BD), "rank": effective_rank(unit_BD)}
        if self._probabilities_BK is not None:
            figures["entropy"], figures["mean_entropy"] = entropies(self._probabilities_BK.float())
        for name, limit in (("rank", LOW_RANK), ("mean_entropy", LOW_ENTROPY)):
            if figures.get(name, math.inf) < limit:
                log.warning(
                    "%s collapses: its %s is %.3f, and below %.1f all images look alike to it; "
                    "lower the rate, lengthen the warm-up, or check the method's options",
                    self._method,
                    name,
                    figures[name],
                    limit,
                )
        return figures


def spread(unit_BD: Tensor) -> float:
    """Measure the deviation over the batch, mean over D, times sqrt(D): 1 in random directions, 0 where all are one.

    Source: Chen and He 2021 (arXiv 2011.10566), section 4.1.
    """
    return unit_BD.std(0, correction=0).mean().item() * math.sqrt(unit_BD.shape[1])


def effective_rank(unit_BD: Tensor) -> float:
    """Count the directions that are used, from 1 to min(B, D): the exponent of the singular values' entropy.

    BatchNorm keeps the spread of embeddings that are all alike but one; their rank is 1.
    Source: Garrido et al. 2023 (arXiv 2210.02885), equation 1.
    """
    values = torch.linalg.svdvals(unit_BD)
    rank: float = torch.special.entr(values / values.sum()).sum().exp().item()
    return rank


def entropies(probabilities_BK: Tensor) -> tuple[float, float]:
    """Measure the entropy of each row (mean), and of the mean row, as shares of the largest possible.

    The first is 1 where no row chooses an output; the second is 0 where all rows choose the same.
    """
    largest = math.log(probabilities_BK.shape[1])
    entropy = torch.special.entr(probabilities_BK).sum(1).mean() / largest
    mean_entropy = torch.special.entr(probabilities_BK.mean(0)).sum() / largest
    return entropy.item(), mean_entropy.item()
