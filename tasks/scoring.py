"""Scores with their intervals, as every evaluation keeps them."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.probes import accuracy_interval


def accuracy_score(correct_N: np.ndarray) -> dict[str, Any]:
    """Accuracy and its 95 % interval (Wilson), of (N,) bool outcomes."""
    low, high = accuracy_interval(correct_N)
    return {"value": float(correct_N.mean()), "low": low, "high": high, "num_images": len(correct_N)}
