"""The starter detector's second look at a candidate: better landmarks, and whether it is a face at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...geometry import FFHQ_TEMPLATE
from ...types import Point
from .units import ConvUnit, ResidualUnit, fold_units

SIDE = 64
"""Close-ups are SIDE x SIDE pixels."""

FACE = 0.72
"""Height of the face box in a close-up, as a share of SIDE."""


def template() -> list[Point]:
    """Where the five landmarks of the FFHQ template lie in a close-up: the face box in the middle."""
    scale = SIDE * FACE / 385.0  # the template's face box is 385 pixels high, its middle at (258.5, 284.5)
    middle = (SIDE - 1) / 2
    return [(middle + (x - 258.5) * scale, middle + (y - 284.5) * scale) for x, y in FFHQ_TEMPLATE]


class Closer(NamedTuple):
    """What a close-up shows."""

    logits: Tensor
    """(B,): sigmoid of it is how sure it is that this is an upright face of about this size."""
    landmarks: Tensor
    """(B, 5, 2): (x, y) in pixels of the close-up."""


class CloseUpNet(nn.Module):
    """Close-ups (B, 3, 64, 64) in [0, 1] -> :class:`Closer`. ``config`` rebuilds it."""

    def __init__(self, widths: Sequence[int] = (32, 48, 64, 96), norm: bool = False) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"widths": list(widths), "norm": norm}
        first, *rest = widths
        layers: list[nn.Module] = [ConvUnit(12, first, norm)]
        inputs = first
        for width in rest:
            layers += [ConvUnit(inputs, width, norm, stride=2), ResidualUnit(width, norm)]
            inputs = width
        self.features = nn.Sequential(*layers)  # (B, widths[-1], 4, 4)
        self.places = nn.Conv2d(inputs, 2 * inputs, SIDE // 16, groups=inputs)
        self.out = nn.Linear(2 * inputs, 1 + 10)

    def forward(self, pixels: Tensor) -> Closer:
        x = self.features(F.pixel_unshuffle(pixels * 2 - 1, 2))
        out = self.out(F.relu(self.places(x).flatten(1))).float()
        # Offsets from the template in units of a quarter of the close-up: about the size of a candidate's error.
        offsets = out[:, 1:].unflatten(1, (5, 2)) * (SIDE / 4)
        return Closer(out[:, 0], torch.tensor(template(), device=pixels.device) + offsets)


def fold(network: CloseUpNet) -> CloseUpNet:
    """The same network with every batch normalisation folded into its convolution: equal outputs in eval mode."""
    folded = CloseUpNet(**{**network.config, "norm": False}).eval()
    fold_units(network, folded)
    folded.places.load_state_dict(network.places.state_dict())
    folded.out.load_state_dict(network.out.state_dict())
    return folded
