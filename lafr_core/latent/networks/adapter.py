"""The LAFR alignment adapter (arXiv 2505.23462, section 3): extractor F, codebook C, mapping M.

z_al = (1 - fidelity) * M(C[k], 0) + fidelity * (z_lq + R(C[k], fidelity * features)), k the nearest entry to each of F's
features; M and R share all layers but the last. At fidelity 0 only codebook entries reach the result; above it, features
of the input pass the codebook as in CodeFormer's controllable feature transformation (Zhou et al. 2022, arXiv 2206.11253,
section 3.4). At fidelity 1 the result is the input plus a correction, which untrained is 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Attention, Residual, Up, conv, zeroed
from .codebook import Codebook, Match


class Features(NamedTuple):
    """What the extractor finds in latents (B, C, H, W)."""

    code: Tensor
    """(B, D, H/2, W/2): compared with the codebook."""
    fine: Tensor
    """(B, width, H, W): for the fine skip."""
    coarse: Tensor
    """(B, coarse, H/2, W/2): for the coarse skip."""


class Extractor(nn.Module):
    """F: latents -> features. One detour through a quarter of the grid lets it see the whole face."""

    def __init__(
        self, channels: int, width: int, coarse: int, deep: int, code_width: int, grid: int, depth: int, deep_depth: int
    ) -> None:
        super().__init__()
        self.stem = conv(channels, width)
        self.fine = nn.Sequential(*(Residual(width, 8) for _ in range(depth)))
        self.down = conv(width, coarse, stride=2)
        self.coarse = nn.Sequential(*(Residual(coarse, 8) for _ in range(depth)))
        self.down_deep = conv(coarse, deep, stride=2)
        more = [layer for _ in range(deep_depth) for layer in (Attention(deep, grid // 4), Residual(deep, 8))]
        self.deep = nn.Sequential(Residual(deep, 8), *more)
        self.up = Up(deep, coarse)
        self.join = Residual(coarse, 8)
        self.norm = nn.GroupNorm(8, coarse)
        self.code = nn.Conv2d(coarse, code_width, 1)

    def forward(self, latents: Tensor) -> Features:
        fine = self.fine(self.stem(latents))
        coarse = self.coarse(self.down(fine))
        deep = self.up(self.deep(self.down_deep(coarse)))
        coarse = self.join(coarse + deep)
        return Features(self.code(F.silu(self.norm(coarse))), fine, coarse)


class Mapping(nn.Module):
    """M and R: codebook entries (and, by fidelity, features) -> latents, and the correction of the input latents."""

    def __init__(self, channels: int, width: int, coarse: int, code_width: int, depth: int) -> None:
        super().__init__()
        self.stem = conv(code_width, coarse)
        self.coarse_gate = zeroed(nn.Conv2d(coarse, coarse, 1))
        self.coarse = nn.Sequential(*(Residual(coarse, 8) for _ in range(depth)))
        self.up = Up(coarse, width)
        self.fine_gate = zeroed(nn.Conv2d(width, width, 1))
        self.fine = nn.Sequential(*(Residual(width, 8) for _ in range(depth)))
        self.norm = nn.GroupNorm(8, width)
        self.out = conv(width, channels)
        self.correction = zeroed(conv(width, channels))

    def forward(self, entries: Tensor, features: Features, fidelity: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(entries) + fidelity * self.coarse_gate(features.coarse)
        x = self.up(self.coarse(x)) + fidelity * self.fine_gate(features.fine)
        x = F.silu(self.norm(self.fine(x)))
        return self.out(x), self.correction(x)


class AdapterOutput(NamedTuple):
    """Everything one pass yields; inference uses the first and ``match.distance``, training uses all."""

    latents: Tensor
    features: Features
    match: Match


class AdapterNet(nn.Module):
    """F, C and M. Latents (B, channels, H, W) UNet-scaled, H and W multiples of 4; ``config`` rebuilds it."""

    def __init__(
        self,
        family: str = "sd",
        channels: int = 4,
        width: int = 64,
        coarse: int = 128,
        deep: int = 160,
        code_width: int = 64,
        entries: int = 1024,
        top_k: int = 1,
        depth: int = 2,
        grid: int = 64,
        deep_depth: int = 1,
    ) -> None:
        super().__init__()
        self.config = {
            "family": family, "channels": channels, "width": width, "coarse": coarse, "deep": deep, "code_width": code_width,
            "entries": entries, "top_k": top_k, "depth": depth, "grid": grid, "deep_depth": deep_depth,
        }  # fmt: skip
        self.extractor = Extractor(channels, width, coarse, deep, code_width, grid, depth, deep_depth)
        self.codebook = Codebook(entries, code_width, top_k)
        self.mapping = Mapping(channels, width, coarse, code_width, depth)

    def forward(self, latents: Tensor, fidelity: Tensor) -> AdapterOutput:
        """fidelity: (B, 1, 1, 1) in [0, 1]. The codebook's straight-through gradient reaches the extractor."""
        features = self.extractor(latents)
        match = self.codebook(features.code)
        entries = features.code + (match.quantised - features.code).detach() if torch.is_grad_enabled() else match.quantised
        mapped, correction = self.mapping(entries, features, fidelity)
        aligned = (1 - fidelity) * mapped + fidelity * (latents + correction)
        return AdapterOutput(aligned, features, match)
