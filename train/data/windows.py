"""Windows of stored latent pairs: cut out of latents, decoded, and compared as means over samples.

Only windows of every sample are decoded: decoding whole crops made a step twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.config import Data

FACTOR = 8
Decode = Callable[[Tensor], Tensor]
"""UNet-scaled latents (B, C, h, w) -> pixels (B, 3, 8h, 8w), about [0, 1] and not clamped."""


def cut(latents: Tensor, corner: Tensor, side: int, around: int = 0) -> Tensor:
    """Windows of ``side`` cells at ``corner`` (B, W, 2) out of latents (B, C, h, w): (B*W, C, side, side), samples outermost.

    With ``around`` above ``side``, that many cells with the window in their middle.
    """
    wide = max(side, around)
    first = corner - (wide - side) // 2
    reach = torch.arange(wide, device=latents.device)
    ys, xs = (first[..., axis, None].to(latents.device) + reach for axis in (0, 1))  # (B, W, wide)
    rows = torch.arange(len(latents), device=latents.device)[:, None, None, None]
    found = latents.permute(0, 2, 3, 1)[rows, ys[..., :, None], xs[..., None, :]]  # (B, W, wide, wide, C)
    return found.flatten(0, 1).permute(0, 3, 1, 2)


def inner(latents: Tensor, side: int) -> Tensor:
    """The middle ``side`` cells of latents that were cut with their surroundings."""
    margin = (latents.shape[-1] - side) // 2
    return latents[..., margin : margin + side, margin : margin + side]


class Decoded(NamedTuple):
    """Windows of one kind of latents."""

    restored: Tensor
    """(n, 3, s, s): decoded latents under training."""
    sharp: Tensor
    """(n, 3, s, s): the photo's own pixels."""
    own: Tensor | None
    """(n, 3, s, s): decoded clean latents, where they were asked for."""


def decoded(
    latents: Tensor,
    clean: Tensor,
    batch: Mapping[str, Tensor],
    data: Data,
    decoders: Sequence[Decode | None],
    own: bool = False,
) -> list[Decoded]:
    """The windows of each kind that a decoder can read; ``latents`` and ``clean`` are (B*W, C, window, window)."""
    kinds = batch["kind"].repeat_interleave(data.windows)
    sharp = batch["sharp"].flatten(0, 1)
    found = []
    for kind, decode in enumerate(decoders):
        rows = torch.nonzero(kinds == kind)[:, 0]
        if decode is None or not len(rows):
            continue
        side = (data.second_window or data.window) if kind else data.window
        clean_too = None
        if own:
            with torch.no_grad():
                clean_too = decode(clean[rows, :, :side, :side]).float()
        restored = decode(latents[rows, :, :side, :side]).float()
        found.append(Decoded(restored, sharp[rows, :, : side * FACTOR, : side * FACTOR], clean_too))
    return found


def window_mean(windows: Sequence[Decoded], terms: Sequence[Tensor]) -> Tensor:
    """The mean over samples of a term given for each kind of windows, whatever their sizes."""
    count = sum(len(w.restored) for w in windows)
    return torch.stack([term * (len(w.restored) / count) for w, term in zip(windows, terms, strict=True)]).sum()
