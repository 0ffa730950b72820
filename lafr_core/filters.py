"""Low-pass filters and displacements of pictures, latents and fields: what rooms and clips share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Gaussian low-pass of float (B, C, H, W) with that standard deviation in cells, above 0; the border is repeated."""
    radius = min(int(3 * sigma + 0.5), min(images.shape[-2:]) - 1)
    offset = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def displaced(images: Tensor, field: Tensor) -> Tensor:
    """Float images (B, C, H, W) whose every place shows what lies ``field`` (B, 2, H, W) away: (x, y) in pixels; bicubic, the
    border repeated.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, dtype=images.dtype, device=images.device)[:, None]
    x = torch.arange(width, dtype=images.dtype, device=images.device)
    grid = torch.stack([(field[:, 0] + x + 0.5) * (2 / width) - 1, (field[:, 1] + y + 0.5) * (2 / height) - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
