"""Where a loss that compares the rows of a batch with each other would see the rows of other ranks."""

from torch import Tensor


def all_rows(rows_BD: Tensor) -> Tensor:
    """Give the rows of every rank, this rank's own first and with their gradient, (ranks * B, D).

    Today that is this rank's rows: losses, queues, banks and centres are per rank. Every one of them asks here, so that
    a gather has one place.
    """
    return rows_BD
