"""Low-pass and displacement, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lafr_core.filters import displaced, gaussian


def test_gaussian_by_hand_along_each_side() -> None:
    x = torch.zeros(1, 1, 9, 11)
    x[0, 0, 4, 5] = 1.0
    taps = [math.exp(-(k**2) / 2) for k in (0, 1, 2, 3)]
    total = taps[0] + 2 * sum(taps[1:])
    got = gaussian(x, 1.0)
    assert float(got[0, 0, 4, 7]) == pytest.approx(taps[0] * taps[2] / total**2, rel=1e-5)
    assert float(got[0, 0, 2, 6]) == pytest.approx(taps[2] * taps[1] / total**2, rel=1e-5)
    assert torch.allclose(gaussian(torch.full((2, 3, 5, 4), 0.3), 2.0), torch.tensor(0.3))  # the border is repeated


def test_displaced_fetches_from_where_the_field_points() -> None:
    x = torch.rand(1, 2, 6, 8)
    field = torch.zeros(1, 2, 6, 8)
    assert torch.allclose(displaced(x, field), x, atol=1e-5)
    field[:, 0], field[:, 1] = 2.0, -1.0
    got = displaced(x, field)
    assert torch.allclose(got[..., 1:, :6], x[..., :5, 2:], atol=1e-5)
