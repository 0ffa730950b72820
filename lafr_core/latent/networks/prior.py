"""The starter prior: a one-step restorer in latent space, for machines without a Stable Diffusion checkpoint.

A U-Net over three scales, predicting a residual: untrained, it is the identity. Without attention and normalisation it is local
and can be trained on windows: what a face needs to be known as a whole for, the adapter has done.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Attention, Residual, Up, conv, zeroed


class PriorNet(nn.Module):
    """Aligned latents (B, channels, H, W) -> restored latents, same shape; H and W multiples of 4. ``config`` rebuilds it."""

    def __init__(
        self,
        family: str = "sd",
        channels: int = 4,
        widths: tuple[int, int, int] = (64, 160, 320),
        depth: int = 3,
        grid: int = 64,
        groups: int = 8,
        attention: bool = True,
        sharpen: float = 0.0,
    ) -> None:
        """groups: of the normalisation, 0 = none. attention: two layers on the coarsest grid, tables for ``grid`` cells.

        sharpen: above 0, instead of adding values, the network says by how much, at most ``sharpen``, each value's difference
        from its surroundings is raised or lowered: it cannot draw what is not there.
        """
        super().__init__()
        fine, middle, deep = widths
        self.config = {
            "family": family, "channels": channels, "widths": list(widths), "depth": depth, "grid": grid, "groups": groups,
            "attention": attention, "sharpen": sharpen,
        }  # fmt: skip
        stack = lambda width, count: nn.Sequential(*(Residual(width, groups) for _ in range(count)))
        deepest: list[nn.Module] = [Residual(deep, groups)]
        for _ in range(2):
            deepest += ([Attention(deep, grid // 4)] if attention else []) + [Residual(deep, groups)]
        self.stem = conv(channels, fine)
        self.fine_in = stack(fine, depth - 1)
        self.down_middle = conv(fine, middle, stride=2)
        self.middle_in = stack(middle, depth)
        self.down_deep = conv(middle, deep, stride=2)
        self.deep = nn.Sequential(*deepest)
        self.up_middle = Up(deep, middle)
        self.join_middle = nn.Conv2d(2 * middle, middle, 1)
        self.middle_out = stack(middle, depth)
        self.up_fine = Up(middle, fine)
        self.join_fine = nn.Conv2d(2 * fine, fine, 1)
        self.fine_out = stack(fine, depth)
        self.norm = nn.GroupNorm(groups, fine) if groups else nn.Identity()
        self.sharpen = sharpen
        self.out = zeroed(conv(fine, channels))

    def forward(self, latents: Tensor) -> Tensor:
        fine = self.fine_in(self.stem(latents))
        middle = self.middle_in(self.down_middle(fine))
        x = self.up_middle(self.deep(self.down_deep(middle)))
        x = self.middle_out(self.join_middle(torch.cat([x, middle], dim=1)))
        x = self.fine_out(self.join_fine(torch.cat([self.up_fine(x), fine], dim=1)))
        out = self.out(F.silu(self.norm(x)))
        if not self.sharpen:
            return latents + out
        return latents + self.sharpen * torch.tanh(out) * (latents - blurred(latents))


def blurred(latents: Tensor) -> Tensor:
    """The mean of every value's surroundings with weights 1 2 1 either way; the border is repeated."""
    rows = F.pad(latents, (1, 1, 1, 1), mode="replicate")
    rows = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return (rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]) / 4
