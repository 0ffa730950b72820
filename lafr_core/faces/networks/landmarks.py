"""The starter detector's last look at a face: where exactly its landmarks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...geometry import FFHQ_TEMPLATE
from ...types import Point
from .closeup import SIDE
from .units import ConvUnit, ResidualUnit, fold_units

EYES = 24.0
"""Distance of the eyes in a close-up, in pixels: brows to chin fill it, the landmarks get all the pixels there are."""

CELL = 4
"""Evidence is given for CELL x CELL pixels at a time."""

REACH = EYES / 2
"""How far from the template's place a landmark is expected: the standard deviation of the evidence's prior, in pixels."""


def template() -> list[Point]:
    """Where the five landmarks of the FFHQ template lie in a close-up: middle of eyes and mouth in its middle."""
    scale = EYES / 126.0  # between the template's eyes, whose face has its middle at (257, 305.5)
    middle = (SIDE - 1) / 2
    return [(middle + (x - 257.0) * scale, middle + (y - 305.5) * scale) for x, y in FFHQ_TEMPLATE]


class Seen(NamedTuple):
    """What a close-up shows."""

    landmarks: Tensor
    """(B, 5, 2): (x, y) in pixels of the close-up."""
    vagueness: Tensor
    """(B,): entropy of the evidence in nats, mean of the five landmarks. 0: each is seen in one cell; log(256) = 5.5: nowhere
    more than anywhere else."""


class LandmarkNet(nn.Module):
    """Close-ups (B, 3, 64, 64) in [0, 1] -> :class:`Seen`. ``config`` rebuilds it.

    Every cell of a 16 x 16 grid says where it sees each landmark, as an offset from its middle, and how sure it is; a landmark
    is the mean of these places, weighted with the softmax of the evidence (soft-argmax, Sun et al. 2018, arXiv 1711.08229, with
    offsets as in Papandreou et al. 2017, arXiv 1701.01779). Few faces teach a small map of local evidence better than one
    regression from the whole close-up.
    """

    def __init__(self, widths: Sequence[int] = (32, 48, 64, 96), neck: int = 64, norm: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "neck": neck, "norm": norm}
        first, *rest = widths
        self.stem = ConvUnit(12, first, norm)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(inputs, width, norm, stride=2), ResidualUnit(width, norm))
            for inputs, width in zip(widths, rest, strict=False)
        )
        self.laterals = nn.ModuleList(ConvUnit(width, neck, norm, kernel=1, active=False) for width in rest)
        self.smooth = nn.Sequential(ConvUnit(neck, neck, norm), ConvUnit(neck, neck, norm))
        self.head = nn.Conv2d(neck, 5 + 10, 1)

    def forward(self, pixels: Tensor) -> Seen:
        x = self.stem(F.pixel_unshuffle(pixels * 2 - 1, 2))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        merged = self.laterals[-1](maps[-1])
        for lateral, finer in zip(self.laterals[-2::-1], maps[-2::-1], strict=True):
            merged = F.interpolate(merged, scale_factor=2.0, mode="nearest") + lateral(finer)
        evidence, offsets = self.head(self.smooth(merged)).float().flatten(2).split((5, 10), dim=1)  # (B, 5 or 10, cells)
        places, expected = cells(pixels.device)
        seen = places + offsets.unflatten(1, (5, 2)).transpose(2, 3) * CELL  # (B, 5, cells, 2)
        shares = (evidence + expected).softmax(-1)
        return Seen((shares[..., None] * seen).sum(2), torch.special.entr(shares).sum(-1).mean(-1))


def cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """Middles (cells, 2) of the cells in pixels, and each landmark's prior (5, cells): the log of a bell at the template's."""
    axis = torch.arange(SIDE // CELL, device=device) * float(CELL) + (CELL - 1) / 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y], dim=-1).reshape(-1, 2)
    away = (places - torch.tensor(template(), device=device)[:, None]).square().sum(-1)
    return places, -away / (2 * REACH**2)


def fold(network: LandmarkNet) -> LandmarkNet:
    """The same network with every batch normalisation folded into its convolution: equal outputs in eval mode."""
    folded = LandmarkNet(**{**network.config, "norm": False}).eval()
    fold_units(network, folded)
    folded.head.load_state_dict(network.head.state_dict())
    return folded
