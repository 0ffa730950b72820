"""The starter autoencoder: a small network in Stable Diffusion's latent space.

Works at a quarter of the image's resolution and below, which is what makes it several times faster than TAESD
(madebyollin/taesd), whose latents it is trained to share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Residual, Up, conv


class LatentEncoder(nn.Module):
    """(B, 3, H, W) in [0, 1] -> UNet-scaled latents (B, channels, H/8, W/8)."""

    def __init__(
        self, channels: int = 4, fine: int = 64, coarse: int = 128, fine_blocks: int = 3, coarse_blocks: int = 4
    ) -> None:
        super().__init__()
        self.stem = conv(48, fine)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(fine_blocks)))
        self.down = conv(fine, coarse, stride=2)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(coarse_blocks)))
        self.out = conv(coarse, channels)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.pixel_unshuffle(pixels * 2 - 1, 4)  # (B, 48, H/4, W/4)
        x = self.down(self.fine(self.stem(x)))
        return self.out(F.silu(self.coarse(x)))


class LatentDecoder(nn.Module):
    """UNet-scaled latents (B, channels, h, w) -> (B, 3, 8h, 8w), about [0, 1] and not clamped."""

    def __init__(
        self, channels: int = 4, fine: int = 64, coarse: int = 128, fine_blocks: int = 4, coarse_blocks: int = 4
    ) -> None:
        super().__init__()
        self.stem = conv(channels, coarse)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(coarse_blocks)))
        self.up = Up(coarse, fine)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(fine_blocks)))
        self.out = conv(fine, 48)

    def forward(self, latents: Tensor) -> Tensor:
        # TAESD's soft clamp: latents beyond +-3 carry no image information, only the risk of saturating outliers.
        x = self.stem(torch.tanh(latents / 3) * 3)
        x = self.fine(self.up(self.coarse(x)))
        return F.pixel_shuffle(self.out(F.silu(x)), 4) * 0.5 + 0.5


class StarterVaeNet(nn.Module):
    """Encoder and decoder; ``config`` rebuilds it."""

    def __init__(self, family: str = "sd", channels: int = 4, **widths: Any) -> None:
        super().__init__()
        self.config = {"family": family, "channels": channels, **widths}
        self.encoder = LatentEncoder(channels, **widths.get("encoder", {}))
        self.decoder = LatentDecoder(channels, **widths.get("decoder", {}))
