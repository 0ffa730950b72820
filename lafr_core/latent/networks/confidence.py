"""How far aligned latents are from those of the sharp face, expected from what the adapter was given and what it made of it.

It knows nothing of the adapter's inside: the same file serves any adapter of its latent family, and no prior matters to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Residual, conv


class ConfidenceNet(nn.Module):
    """Input and aligned latents (B, channels, H, W) -> expected error (B, 1, H, W) above 0; H and W multiples of 4."""

    spread: Tensor

    def __init__(self, family: str = "sd", channels: int = 4, width: int = 16, deep: int = 24, grid: int = 64) -> None:
        super().__init__()
        self.config = {"family": family, "channels": channels, "width": width, "deep": deep, "grid": grid}
        self.register_buffer("spread", torch.ones(()))
        """Mean absolute distance of sharp faces' latents from the mean sharp face: what knowing nothing but "a face" costs."""
        self.stem = conv(8 * channels, width)
        self.near = Residual(width)
        self.down = conv(width, deep, stride=2)
        self.place = nn.Parameter(torch.zeros(1, deep, grid // 4, grid // 4))
        self.far = nn.Sequential(Residual(deep), nn.SiLU(), conv(deep, deep, stride=2), Residual(deep))
        self.up, self.join = nn.Conv2d(deep, width, 1), Residual(width)
        self.out = conv(width, 1)

    def forward(self, latents: Tensor, aligned: Tensor) -> Tensor:
        """The mean absolute error over the channels that ``aligned`` is expected to have in each cell."""
        near = self.near(self.stem(F.pixel_unshuffle(torch.cat([latents, aligned], dim=1), 2)))
        far = self.down(F.silu(near))
        place: Tensor = self.place
        if place.shape[-2:] != far.shape[-2:]:
            place = F.interpolate(place, size=far.shape[-2:], mode="bilinear", align_corners=False)
        far = self.up(self.far(far + place))
        far = F.interpolate(far, size=near.shape[-2:], mode="bilinear", align_corners=False)
        level = F.interpolate(self.out(F.silu(self.join(near + far))), scale_factor=2, mode="bilinear", align_corners=False)
        return level.clamp(-8.0, 4.0).exp()

    def confidence(self, latents: Tensor, aligned: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1]: 1 where no error is expected, 0 where the mean face would be as good a guess."""
        return (1 - self(latents, aligned) / self.spread).clamp(0.0, 1.0)
