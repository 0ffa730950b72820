"""A codebook of feature vectors: look-up only. How it is learned belongs to ``train``.

Axis letters: B batch, D feature width, h w grid, N entries, K neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ...errors import InputError


class Match(NamedTuple):
    """Result of a look-up for features (B, D, h, w)."""

    quantised: Tensor
    """(B, D, h, w): the nearest entry, or the soft mix of the K nearest. No gradient flows to the features."""
    indices: Tensor
    """(B, h, w) int64: the nearest entry."""
    distance: Tensor
    """(B, 1, h, w): squared distance to the nearest entry."""


class Codebook(nn.Module):
    """N vectors of width D; nearest neighbour by squared distance (van den Oord et al. 2017, arXiv 1711.00937, eq. 1).

    ``top_k`` > 1 mixes the K nearest with weights softmax(-distance / (2 spread)), a soft assignment.
    """

    spread: Tensor

    def __init__(self, entries: int = 1024, width: int = 64, top_k: int = 1) -> None:
        super().__init__()
        if not 1 <= top_k <= entries:
            raise InputError(f"codebook: expected top_k from 1 to {entries} entries, got {top_k}")
        self.top_k = top_k
        # An Embedding, not a bare Parameter: hosts that load models piecewise move leaf modules only.
        self.codes = nn.Embedding(entries, width)
        self.register_buffer("spread", torch.ones(()))
        """Mean squared distance of high-quality features to their entry; set by training, the unit of confidence."""

    def forward(self, features: Tensor) -> Match:
        b, _, h, _ = features.shape
        flat = rearrange(features.float(), "b d h w -> (b h w) d")
        codes = self.codes.weight.float()
        # |f - c|^2 = |f|^2 - 2 f.c + |c|^2, clamped because the difference of near-equal floats may go below 0
        distance = (flat.square().sum(1, keepdim=True) - 2 * flat @ codes.t() + codes.square().sum(1)).clamp_min(0)
        nearest, neighbours = distance.topk(self.top_k, dim=1, largest=False)  # (B*h*w, K)
        if self.top_k == 1:
            mixed = codes[neighbours[:, 0]]
        else:
            weights = torch.softmax(-nearest / (2 * self.spread.clamp_min(1e-8)), dim=1)
            mixed = (weights[..., None] * codes[neighbours]).sum(1)
        return Match(
            rearrange(mixed, "(b h w) d -> b d h w", b=b, h=h).to(features.dtype),
            rearrange(neighbours[:, 0], "(b h w) -> b h w", b=b, h=h),
            rearrange(nearest[:, 0], "(b h w) -> b 1 h w", b=b, h=h),
        )

    def confidence(self, distance: Tensor) -> Tensor:
        """Squared distances -> (0, 1]: 1 on an entry, 1/2 where high-quality features usually lie, towards 0 far away."""
        return 1 / (1 + distance / self.spread.clamp_min(1e-8))
