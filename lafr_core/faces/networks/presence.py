"""Is there a face in the crop, where a face should be? A small network on a coarse gray picture of it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 48
"""Side of the gray picture in pixels: a face shrunk seven times still fills it."""
LEFT, TOP, EXTENT = 80 / 512, 112 / 512, 352 / 512
"""The part of the crop that is looked at, brows to chin, as shares of its side: hats, hair and walls say nothing of a face."""
FLAT = 0.02
"""Deviation below which a picture is not stretched further: a wall's noise is no structure."""


class PresenceNet(nn.Module):
    """Luma (B, 1, 48, 48) -> (B,): the log odds that it shows a face at the FFHQ template. ``config`` rebuilds it."""

    def __init__(self, widths: tuple[int, int, int] = (12, 24, 32)) -> None:
        super().__init__()
        self.config = {"widths": list(widths)}
        first, second, third = widths
        self.layers = nn.Sequential(
            nn.Conv2d(1, first, 5, stride=2, padding=2), nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1), nn.SiLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1), nn.SiLU(),
        )  # fmt: skip
        # Faces are aligned: every place has weights of its own.
        self.places = nn.Linear(third * (SIDE // 8) ** 2, 24)
        self.out = nn.Linear(24, 1)

    def forward(self, luma: Tensor) -> Tensor:
        x = self.places(self.layers(normalised(luma)).flatten(1))
        return self.out(F.silu(x))[:, 0]


def normalised(luma: Tensor) -> Tensor:
    """(B, 1, H, W) with mean 0 and deviation 1 each; what is almost flat stays almost flat."""
    level = luma - luma.mean((2, 3), keepdim=True)
    return level / level.square().mean((2, 3), keepdim=True).sqrt().clamp_min(FLAT)


def coarse(luma: Tensor) -> Tensor:
    """Luma (B, 1, S, S) of crops -> (B, 1, 48, 48), the part that is looked at."""
    side = luma.shape[-1]
    left, top, extent = (round(share * side) for share in (LEFT, TOP, EXTENT))
    part = luma[..., top : top + extent, left : left + extent]
    return F.interpolate(part, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
