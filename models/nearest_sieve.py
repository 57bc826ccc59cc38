"""The reduced-precision product that tells which centroids can be nearest, and its proven error bound.

Shapes: B rows of one block, D width, K centroids, W = D + 5 with the columns added here, P pairs.

The bound. With m the mean centroid, Y = x - m, Z_k = c_k - m and h_k = |Z_k|^2, the nearest centroid has the
largest score t_k = Y.Z_k - h_k / 2. Subtracting m first keeps a large common offset out of the error: a
float32 subtraction is off by at most u = 2^-24 of its own result. With y, z the shifted vectors rounded to
the operands' format, r what rounding took away, and W terms accumulated, in any order, with unit roundoff v,

    |computed t_k - t_k| <= |r_y||Z_k| + |y||r_z| + (1.2 gamma + 4u)(|Y||Z_k| + h_k / 2) + tiny = E_k,
    gamma = W v / (1 - W v),

by Cauchy-Schwarz and Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1. v is 2^-24
for IEEE float32, and 2^-22 on matrix units, which may truncate (Fasi et al., Numerical behavior of NVIDIA
tensor cores, PeerJ Computer Science 7:e330, 2021). 1.2 covers second-order terms and the added columns.
|r_y| and |r_z| are measured, not assumed. E_k is itself an inner product of a row's terms and a centroid's:
appended to both operands as columns it costs no pass of its own, and the product is an upper bound at once,
t_k <= product_k <= t_k + 2 E_k. A CPU then rounds a bf16 product's result to bf16, by at most 2^-8 of itself.
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

TINY = 2.0**-120  # over 2^6 times what a flushed subnormal can hide
ROUND_UP = 1 + 2.0**-6  # a computed norm times this, rounded to bf16, is no less than the exact norm


class Candidates(NamedTuple):
    """Pairs that hold the true nearest, ordered by row, then centroid; the rows left open have none.

    Attributes:
        row_P: row in the block, (P,) int64.
        cluster_P: centroid, (P,) int64.
        open_B: which rows the next, sharper sieve must look at, (B,) bool.
    """

    row_P: np.ndarray
    cluster_P: np.ndarray
    open_B: np.ndarray


class Sieve(Protocol):
    """What an engine is: from shifted rows to the centroids that can be among the `wanted` nearest."""

    def candidates(self, shifted_BD: Tensor, *, wanted: int) -> Candidates: ...


def _bf16_above(norms: Tensor) -> Tensor:
    """Round norms up to numbers that bf16, and so every format a product may use, represents exactly."""
    return (norms.double() * ROUND_UP + TINY).bfloat16()


def _bf16_pieces(values_K: Tensor) -> Tensor:
    """Split float64 values into three bf16 numbers whose sum is off by at most 2^-24 of the value, (K, 3)."""
    pieces = []
    for _ in range(3):
        pieces.append(values_K.bfloat16())
        values_K = values_K - pieces[-1].double()
    return torch.stack(pieces, dim=1)


def _operand_rounding(device: torch.device) -> float:
    """Relative rounding that process-wide settings allow a float32 product to apply to its operands.

    `torch.set_float32_matmul_precision` and its kin belong to the user's process. They are read, never set.
    """
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    # Twice the unit roundoff: hardware may truncate.
    return {"tf32": 2.0**-10, "bf16": 2.0**-7}.get(backend.matmul.fp32_precision, 0.0)


class TorchSieve:
    """Candidates by one torch product.

    Args:
        shifted_KD: centroids less the offset, (K, D) float32.
        half_norm_K: half their squared norms before they were rounded to float32, (K,) float64.
        dtype: of the operands, float32 or bfloat16.
        limit: the most candidates a row may have; rows with more are left open, because a sharper sieve is
            cheaper for them than float64 on every candidate.
    """

    def __init__(self, shifted_KD: Tensor, half_norm_K: Tensor, *, dtype: torch.dtype, limit: int) -> None:
        self.dtype, self.limit = dtype, limit
        self.device = shifted_KD.device
        is_bf16 = dtype == torch.bfloat16
        self.operand_rounding = 0.0 if is_bf16 else _operand_rounding(self.device)
        # On a CPU torch rounds the result to bf16 too; 1.01, as the bound is relative to the rounded result.
        self.result_rounding = 1.01 * 2.0**-8 if is_bf16 and self.device.type == "cpu" else 0.0
        unit = 2.0**-22 if is_bf16 or self.operand_rounding else 2.0**-24
        accumulated = (shifted_KD.shape[1] + 5) * unit
        self.rounding = 1.2 * accumulated / (1 - accumulated) + 2.0**-22
        self.operand_KW, norm_K, residual_K = self._rounded(shifted_KD)
        self.constant_K = self.rounding * half_norm_K + TINY
        self.norm_K, self.residual_K = _bf16_above(norm_K), _bf16_above(residual_K)
        self.operand_KW[:, -5:-2] = _bf16_pieces(self.constant_K - half_norm_K)
        self.operand_KW[:, -2] = self.norm_K
        self.operand_KW[:, -1] = self.residual_K

    def _rounded(self, shifted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The operand with room for 5 columns, its norm before rounding, and the norm of what that loses."""
        rows, width = shifted.shape
        operand = torch.empty(rows, width + 5, dtype=self.dtype, device=self.device)
        operand[:, :width] = shifted
        norm = torch.linalg.vector_norm(shifted, dim=1)
        if self.dtype == torch.bfloat16:
            lost = operand[:, :width].float().sub_(shifted)
            return operand, norm, torch.linalg.vector_norm(lost, dim=1)
        return operand, norm, norm * self.operand_rounding

    def upper(self, shifted_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Upper bounds on the scores, (B, K) float32; each row's factors of |Z_k| and |r_z|, (B,) bf16."""
        operand_BW, norm_B, residual_B = self._rounded(shifted_BD)
        by_norm_B = _bf16_above(residual_B + self.rounding * norm_B)
        by_residual_B = _bf16_above(norm_B)
        operand_BW[:, -5:-2] = 1
        operand_BW[:, -2] = by_norm_B
        operand_BW[:, -1] = by_residual_B
        if self.dtype == torch.bfloat16 and self.device.type == "cuda":
            # The default, a bf16 result, may also be summed in bf16 when the product is split.
            product_BK = torch.mm(operand_BW, self.operand_KW.T, out_dtype=torch.float32)
        else:
            product_BK = torch.mm(operand_BW, self.operand_KW.T).float()
        return product_BK, by_norm_B, by_residual_B

    def candidates(self, shifted_BD: Tensor, *, wanted: int) -> Candidates:
        """Every centroid that can be among the `wanted` nearest of its row, where at most `limit` can."""
        product_BK, by_norm_B, by_residual_B = self.upper(shifted_BD)
        floor_B = torch.full((len(product_BK),), torch.inf, dtype=torch.float64, device=self.device)
        best = []
        for _ in range(wanted):
            top_B1 = _argmax(product_BK)[:, None]
            value_B1 = product_BK.gather(1, top_B1)
            best.append((top_B1, value_B1))
            product_BK.scatter_(1, top_B1, -torch.inf)
            top_B, value_B = top_B1[:, 0], value_B1[:, 0].double()
            error_B = self.constant_K[top_B] + by_norm_B.double() * self.norm_K[top_B]
            error_B += by_residual_B.double() * self.residual_K[top_B]
            # No centroid whose score is below this can be among the nearest: `wanted` others are above it.
            floor_B = torch.minimum(floor_B, value_B - self.result_rounding * value_B.abs() - 2 * error_B)
        for top_B1, value_B1 in best:
            product_BK.scatter_(1, top_B1, value_B1)
        # A result rounded from a true product at the floor may lie this much below it.
        floor_B = floor_B - self.result_rounding * floor_B.abs()
        floor_B = (floor_B - 2.0**-22 * floor_B.abs()).float()
        flat_P = _true_positions(product_BK >= floor_B[:, None])
        row_P, cluster_P = np.divmod(flat_P, product_BK.shape[1])
        open_B = np.bincount(row_P, minlength=len(product_BK)) > self.limit
        kept_P = ~open_B[row_P]
        return Candidates(row_P[kept_P], cluster_P[kept_P], open_B)


def _argmax(values_BK: Tensor) -> Tensor:
    """Column of each row's maximum, (B,) int64. NumPy's is about ten times as fast as torch's on a CPU."""
    if values_BK.device.type == "cpu":
        return torch.from_numpy(values_BK.numpy().argmax(axis=1))
    return values_BK.argmax(dim=1)


def _true_positions(mask_BK: Tensor) -> np.ndarray:
    """Flat positions of the true entries, ascending, (P,) int64."""
    if mask_BK.device.type == "cpu":
        return np.flatnonzero(mask_BK.numpy())
    return mask_BK.flatten().nonzero()[:, 0].cpu().numpy()
