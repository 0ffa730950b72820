"""The few building blocks that LAFR's own networks share. Tensors are (B, C, H, W)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution that keeps the size (or divides it by ``stride``)."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all weights 0, so that the residual branch it ends starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), optionally normalised over channel groups."""

    def __init__(self, channels: int, groups: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels) if groups else nn.Identity()
        self.norm2 = nn.GroupNorm(groups, channels) if groups else nn.Identity()
        self.conv1 = conv(channels, channels)
        self.conv2 = zeroed(conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Attention(nn.Module):
    """Self-attention over all cells with a learned position table for a ``grid`` x ``grid`` map.

    Faces are aligned, so where a cell lies says what it should show. Other map sizes interpolate the table.
    """

    def __init__(self, channels: int, grid: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.position = nn.Parameter(torch.randn(1, channels, grid, grid) * 0.02)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        position: Tensor = self.position
        if position.shape[-2:] != (h, w):
            position = F.interpolate(position, size=(h, w), mode="bilinear", align_corners=False)
        qkv = self.qkv(self.norm(x) + position)
        q, k, v = rearrange(qkv, "b (three heads d) h w -> three b heads (h w) d", three=3, heads=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(mixed, "b heads (h w) d -> b (heads d) h w", h=h))


class Up(nn.Module):
    """Twice the size: a convolution to four times the channels, then pixel shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = conv(inputs, 4 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)
