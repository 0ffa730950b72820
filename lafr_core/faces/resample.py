"""Sampling an image through a similarity: the one place where pixels are interpolated between photo and crop."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..geometry import scale_of
from ..types import Matrix


def resample(
    source: Tensor,
    matrix: Matrix,
    size: tuple[int, int],
    *,
    mode: str = "bicubic",
    padding: str = "border",
) -> Tensor:
    """``source`` (C, h, w) float32 seen on a new pixel grid of ``size`` (h, w).

    Convention: ``matrix`` maps *destination* pixels to *source* pixels, points (x, y) at pixel centres. ``mode`` and
    ``padding`` as in ``torch.nn.functional.grid_sample``. Where one destination pixel covers several source pixels, the
    source is low-pass filtered first, because grid_sample reads the nearest 2x2 or 4x4 pixels only and would alias.
    Bicubic results may leave the source's range by a little; callers clamp.
    """
    rows, columns = source.shape[-2:]
    shrink = scale_of(matrix)
    if shrink > 1.0:
        small = (max(1, math.ceil(rows / shrink)), max(1, math.ceil(columns / shrink)))
        source = F.interpolate(source[None], size=small, mode=mode, antialias=True, align_corners=False)[0]
    # Pixel centres -> grid_sample's [-1, 1] with align_corners=False, where -1 is the left edge of the first pixel; edges stay
    # edges under the shrinking above, so the coordinates are those of the unshrunk source.
    (a, b, c), (d, e, f) = matrix
    x = torch.arange(size[1], dtype=torch.float32, device=source.device)
    y = torch.arange(size[0], dtype=torch.float32, device=source.device)[:, None]
    u = (x * (a * 2 / columns)) + (y * (b * 2 / columns) + ((c + 0.5) * 2 / columns - 1))
    v = (x * (d * 2 / rows)) + (y * (e * 2 / rows) + ((f + 0.5) * 2 / rows - 1))
    grid = torch.stack([u, v], dim=-1)
    return F.grid_sample(source[None], grid[None], mode=mode, padding_mode=padding, align_corners=False)[0]
