"""The starter detector: a small anchor-free face network with five landmarks at strides 8, 16 and 32.

One prediction a cell, as in FCOS (Tian et al. 2019): the cell's score, its distances to the four sides of the box, and the
offsets to the five landmarks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .closeup import CloseUpNet
from .landmarks import LandmarkNet
from .units import ConvUnit, ResidualUnit, fold_units

STRIDES = (8, 16, 32)
UNIT = 2.0
"""Distances are predicted in units of ``UNIT * stride``: a face of its level then has values around 1."""


class Predictions(NamedTuple):
    """What the network says about N cells of all three levels together."""

    logits: Tensor
    """(B, N): sigmoid of it is the score."""
    boxes: Tensor
    """(B, N, 4): x0, y0, x1, y1 in pixels of the network's input."""
    landmarks: Tensor
    """(B, N, 5, 2): (x, y) in pixels of the network's input."""
    centres: Tensor
    """(N, 2): the cells' own (x, y)."""
    strides: Tensor
    """(N,): the cells' strides."""


class StarterDetectorNet(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 32 -> :class:`Predictions`. ``config`` rebuilds it."""

    def __init__(
        self,
        widths: Sequence[int] = (16, 48, 80, 112),
        depths: Sequence[int] = (1, 2, 2, 2),
        neck: int = 48,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "depths": list(depths), "neck": neck, "norm": norm}
        w4, w8, w16, w32 = widths
        # Pairs of pixels go to channels first: the widest map the network computes is a quarter of the photo.
        self.stem = nn.Sequential(ConvUnit(12, w4, norm, stride=2), *(ResidualUnit(w4, norm) for _ in range(depths[0])))
        self.stage8 = nn.Sequential(ConvUnit(w4, w8, norm, stride=2), *(ResidualUnit(w8, norm) for _ in range(depths[1])))
        self.stage16 = nn.Sequential(ConvUnit(w8, w16, norm, stride=2), *(ResidualUnit(w16, norm) for _ in range(depths[2])))
        self.stage32 = nn.Sequential(ConvUnit(w16, w32, norm, stride=2), *(ResidualUnit(w32, norm) for _ in range(depths[3])))
        self.laterals = nn.ModuleList(ConvUnit(w, neck, norm, kernel=1, active=False) for w in (w8, w16, w32))
        self.smooths = nn.ModuleList(ConvUnit(neck, neck, norm) for _ in STRIDES)
        self.tower = nn.Sequential(ConvUnit(neck, neck, norm), ConvUnit(neck, neck, norm))
        self.head = nn.Conv2d(neck, 1 + 4 + 10, 1)
        # Faces are rare: start from a score of 1 % so that the first steps are not spent on unlearning 50 %.
        with torch.no_grad():
            assert self.head.bias is not None
            self.head.bias[0] = math.log(0.01 / 0.99)

    def forward(self, pixels: Tensor) -> Predictions:
        x = self.stem(F.pixel_unshuffle(pixels * 2 - 1, 2))
        c8 = self.stage8(x)
        c16 = self.stage16(c8)
        c32 = self.stage32(c16)
        p32 = self.laterals[2](c32)
        p16 = self.laterals[1](c16) + F.interpolate(p32, scale_factor=2.0, mode="nearest")
        p8 = self.laterals[0](c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        levels = [self.head(self.tower(smooth(p))) for smooth, p in zip(self.smooths, (p8, p16, p32), strict=True)]
        raw = torch.cat([level.float().flatten(2) for level in levels], dim=2).transpose(1, 2)  # (B, N, 15)
        sizes = [(level.shape[-2], level.shape[-1]) for level in levels]
        centres, strides = cells(sizes, pixels.device)
        unit = (UNIT * strides)[:, None]
        sides = F.softplus(raw[..., 1:5]) * unit
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], dim=-1)
        landmarks = centres[:, None] + raw[..., 5:].unflatten(-1, (5, 2)) * unit[:, None]
        return Predictions(raw[..., 0], boxes, landmarks, centres, strides)


def cells(sizes: list[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres (N, 2) and strides (N,) of the cells of the three levels, row by row."""
    centres, strides = [], []
    for stride, (height, width) in zip(STRIDES, sizes, strict=True):
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        # A cell of stride s covers pixels s*i .. s*i + s-1; in pixel-centre coordinates its middle is s*i + (s-1)/2.
        centres.append(torch.stack([x, y], dim=-1).reshape(-1, 2) * float(stride) + (stride - 1) / 2)
        strides.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


def fold(network: StarterDetectorNet) -> StarterDetectorNet:
    """The same network with every batch normalisation folded into its convolution: equal outputs in eval mode, fewer steps."""
    folded = StarterDetectorNet(**{**network.config, "norm": False}).eval()
    fold_units(network, folded)
    folded.head.load_state_dict(network.head.state_dict())
    return folded


class StarterNets(nn.Module):
    """The starter detector's finder, its second look and, unless it is not trained yet, its last. ``config`` rebuilds it."""

    def __init__(
        self, finder: Mapping[str, Any], close_up: Mapping[str, Any], landmarks: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.finder = StarterDetectorNet(**finder)
        self.close_up = CloseUpNet(**close_up)
        self.landmarks = LandmarkNet(**landmarks) if landmarks is not None else None
        self.config = {"finder": self.finder.config, "close_up": self.close_up.config}
        if self.landmarks is not None:
            self.config["landmarks"] = self.landmarks.config
