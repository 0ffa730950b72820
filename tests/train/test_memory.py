"""The memory table counts what autograd keeps, each storage once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")

from benchmarks import memory


def test_saved_bytes_by_hand() -> None:
    layer = nn.Linear(4, 5, device="meta")
    x = torch.zeros(3, 4, device="meta")
    # ReLU keeps its result (3 x 5), the linear layer its input (3 x 4); the weight is a parameter and not counted.
    assert memory.saved_bytes(lambda: torch.relu(layer(x)).sum(), layer) == 4 * (3 * 5 + 3 * 4)
    twice = memory.saved_bytes(lambda: layer(x).sum() + layer(x).sum(), layer)
    assert twice == 4 * 3 * 4  # the same input, kept once
    layer16, x16 = layer.bfloat16(), x.bfloat16()
    half = memory.saved_bytes(lambda: torch.relu(layer16(x16)).sum(), layer16)
    assert half == 2 * (3 * 5 + 3 * 4)


def test_what_learns_has_gradients_and_two_moments() -> None:
    row = memory.codebook_or_adapter(1, "no", False)
    parameters = sum(p.numel() for p in memory.AdapterNet().parameters())
    assert row.weights == 4 * parameters and row.learned == 3 * row.weights and row.saved > 10 * 64 * 64 * 64 * 4
