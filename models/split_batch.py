"""A training step whose batch is split over ranks, equal to that of one rank but for rounding.

Each rank computes its rows. BatchNorm takes its statistics, and the loss its mean, over the rows of all ranks; dropout
draws the mask of the whole batch on each rank, from equal generators, and uses its rows of it. So all ranks draw the
same numbers, hold the same weights after each step, and one checkpoint serves any number of them.

On a CPU the masks are those of one rank; on CUDA one rank draws others, as its dropout is one fused kernel.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.collective import share, world_size


class SplitBatch:
    """This rank's part of every batch.

    Args:
        batch_size: rows of a step, over all ranks.
    Raises:
        ValueError: a rank would have no row.
    """

    def __init__(self, batch_size: int) -> None:
        if world_size() > batch_size:
            raise ValueError(
                f"GRAFT_RANKS must be at most the rows of a training step, {batch_size}, got {world_size()}; lower it"
            )
        self.batch_size = batch_size
        self.rows = share(batch_size)
        self.weight = (self.rows.stop - self.rows.start) / batch_size

    def prepare(self, method: nn.Module) -> None:
        """Replace the layers that look across a batch or draw for it; names and values of the state stay.

        Call it when the method is on its device, and before the optimisers take its parameters.
        """
        if world_size() == 1:
            return
        for name, layer in list(method.named_modules()):
            if (other := self._counterpart(layer)) is not None:
                parent, _, own = name.rpartition(".")
                setattr(method.get_submodule(parent), own, other)

    def _counterpart(self, layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.Dropout):
            return SplitDropout(layer.p, split=self)
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            if next(layer.buffers()).device.type == "cuda":
                synced: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
                return synced
            return SplitBatchNorm.of(layer)
        return None

    def weigh(self, loss: Tensor) -> Tensor:
        """This rank's part of the loss, which is a mean over rows."""
        return loss if world_size() == 1 else loss * self.weight

    def mean(self, scalars: Tensor) -> Tensor:
        """The mean over the whole batch of scalars that are means over this rank's rows, (n,) float32."""
        if world_size() > 1:
            scalars = scalars * self.weight
            dist.all_reduce(scalars)
        return scalars

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all ranks, in one message."""
        if world_size() == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        total = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(total)
        for gradient, summed in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))


class SplitDropout(nn.Module):
    """Dropout of this rank's rows by the mask of the whole batch."""

    def __init__(self, probability: float, *, split: SplitBatch) -> None:
        super().__init__()
        self.probability = probability
        self.split = split

    def forward(self, values: Tensor) -> Tensor:
        """Drop and rescale (N, ...), where N is a multiple of this rank's rows: the views of a row lie together."""
        if not self.training or self.probability == 0:
            return values
        rows = self.split.rows
        views, rest = divmod(len(values), rows.stop - rows.start)
        if rest:
            raise ValueError(
                f"dropout on several ranks needs a multiple of the rank's {rows.stop - rows.start} rows, got "
                f"{len(values)}; train this method with GRAFT_RANKS=1"
            )
        noise = values.new_empty(views * self.split.batch_size, *values.shape[1:]).bernoulli_(1 - self.probability)
        return values * noise[views * rows.start : views * rows.stop].div_(1 - self.probability)


class _Sum(torch.autograd.Function):
    """Sum over the ranks; the gradient of each rank's part is the sum of what all ranks ask of the total."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, asked: Tensor) -> Tensor:
        total = asked.contiguous().clone()
        dist.all_reduce(total)
        return total


class SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the rows of all ranks, for the CPU; on CUDA torch's SyncBatchNorm does it."""

    @classmethod
    def of(cls, layer: nn.modules.batchnorm._BatchNorm) -> "SplitBatchNorm":
        """A layer with the parameters and statistics of another, the very same tensors."""
        twin = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        twin._parameters, twin._buffers = layer._parameters, layer._buffers
        return twin.train(layer.training)

    def forward(self, values: Tensor) -> Tensor:
        """Normalise (N, C, ...)."""
        if not self.training:
            return super().forward(values)
        dims = [dim for dim in range(values.dim()) if dim != 1]
        shape = [1, -1] + [1] * (values.dim() - 2)
        x = values.float()
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums: Tensor = _Sum.apply(torch.cat([x.sum(dims), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean.view(shape)
        variance: Tensor = _Sum.apply(centred.square().sum(dims)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale: Tensor = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normalised = centred * scale.view(shape)
        if self.affine:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(values.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics as BatchNorm does."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # Without a momentum it is the mean over all batches so far.
        share_of_new = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share_of_new)
        self.running_var.lerp_(variance, share_of_new)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions from two on."""
