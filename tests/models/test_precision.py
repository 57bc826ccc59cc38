from __future__ import annotations

import logging

import pytest
import torch

from models import precision

CPU = torch.device("cpu")


def test_bf16_is_computed_in_bf16_and_float32_is_not() -> None:
    rows = torch.randn(4, 4)
    with precision.autocast(CPU, precision="bf16"):
        assert (rows @ rows).dtype == torch.bfloat16
    with precision.autocast(CPU, precision="float32"):
        assert (rows @ rows).dtype == torch.float32


@pytest.mark.parametrize(("native", "warnings"), [(True, 0), (False, 1)])
def test_emulated_bf16_is_said_once(
    native: bool, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "multiplies_bf16", lambda kind: native)
    precision._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            precision.autocast(CPU, precision="bf16")
    assert len(caplog.records) == warnings
