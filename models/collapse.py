"""Signs of collapse: a network that says the same of every image has solved its task and learnt nothing.

Shapes: B rows, D width, K outputs.
"""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor

log = logging.getLogger(__name__)

LOW_SPREAD = 0.1
LOW_ENTROPY = 0.1


class Watch:
    """Keeps the figures of the last batch on their device until the log asks for them.

    Args:
        method: name for the warning.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._figures: dict[str, Tensor] = {}

    def embeddings(self, embeddings_BD: Tensor) -> None:
        """Note the spread: the deviation of unit-length embeddings over the batch, mean over D, times sqrt(D).

        It is about 1 where directions are random, and 0 where all are one.
        Source: Chen and He 2021 (arXiv 2011.10566), section 4.1.
        """
        unit = F.normalize(embeddings_BD.detach().float(), dim=-1)
        self._figures["spread"] = unit.std(0, correction=0).mean() * math.sqrt(unit.shape[-1])

    def assignments(self, probabilities_BK: Tensor) -> None:
        """Note two entropies, as shares of the largest possible: of each row (mean), and of the mean row.

        The second is 0 where all rows choose one output, the first is 1 where no row chooses any.
        """
        probabilities = probabilities_BK.detach().float()
        largest = math.log(probabilities.shape[1])
        self._figures["entropy"] = torch.special.entr(probabilities).sum(1).mean() / largest
        largest_of_mean = math.log(min(probabilities.shape))
        self._figures["mean_entropy"] = torch.special.entr(probabilities.mean(0)).sum() / largest_of_mean

    def figures(self) -> dict[str, float]:
        """Give what was noted, and warn where it tells of collapse."""
        figures = {name: figure.item() for name, figure in self._figures.items()}
        for name, limit in (("spread", LOW_SPREAD), ("mean_entropy", LOW_ENTROPY)):
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
