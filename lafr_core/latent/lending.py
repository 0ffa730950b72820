"""What reference photos lend: a face is given what its own restoration loses of the same person's good photos.

A reference photo, made as poor as the input and put through the same adapter and prior, tells what they lose of this
person: ``lost = encode(reference) - restored(poor reference)``. That loss is moved to where the input shows the same and added:
patches of the aligned latents are matched within a small window, softly (the attention of reference-based super-resolution:
Yang et al., "Learning Texture Transformer Network for Image Super-Resolution", 2020, with nothing learned). A sharp input loses
little and is lent little.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

REACH = 3
"""Cells (of 8 pixels) to each side within which a match is looked for."""
PATCH = 4
"""Cells to each side of a cell that are compared."""
FOCUS = 0.03
"""Softness of the match, in squared latent difference: a cell lends by exp(-cost / FOCUS)."""
STAY = 0.002
"""Cost of every squared cell of distance: of two equal matches the nearer one lends."""


def borrowed(aligned: Tensor, references: Tensor, lost: Tensor) -> Tensor:
    """What is lent to each row of ``aligned``: (B, C, h, w) to be added to its restored latents.

    aligned: aligned latents (B, C, h, w) of the faces. references: aligned latents (R, C, h, w) of R >= 1 poor reference photos
    of one person. lost: (R, C, h, w), what restoration lost of each. Raises InputError for shapes that do not fit.
    """
    if references.shape != lost.shape or references.shape[1:] != aligned.shape[1:] or references.shape[0] == 0:
        raise InputError(
            f"references: expected latents of the faces' shape {tuple(aligned.shape[1:])} and as many losses, got "
            f"{tuple(references.shape)} and {tuple(lost.shape)}"
        )
    rows = [_borrowed(row[None].float(), references.float(), lost.float()) for row in aligned]
    return torch.cat(rows).to(aligned.dtype) if rows else torch.zeros_like(aligned)


def _borrowed(row: Tensor, references: Tensor, lost: Tensor) -> Tensor:
    height, width = row.shape[-2:]
    keys, values = _bordered(references, REACH), _bordered(lost, REACH)
    # A running softmax over all candidates: memory does not grow with the window or the number of references.
    best = row.new_full((1, 1, height, width), float("inf"))
    weights, total = torch.zeros_like(best), torch.zeros_like(row)
    for dy in range(2 * REACH + 1):
        for dx in range(2 * REACH + 1):
            away = STAY * ((dy - REACH) ** 2 + (dx - REACH) ** 2)
            window = (..., slice(dy, dy + height), slice(dx, dx + width))
            costs = _patch_mean((row - keys[window]).square().sum(1, keepdim=True)) + away
            for cost, value in zip(costs, values[window], strict=True):
                lower = torch.minimum(best, cost[None])
                before, now = torch.exp((lower - best) / FOCUS), torch.exp((lower - cost[None]) / FOCUS)
                weights, total, best = weights * before + now, total * before + value[None] * now, lower
    return total / weights


def _bordered(latents: Tensor, reach: int) -> Tensor:
    return F.pad(latents, (reach, reach, reach, reach), mode="replicate")


def _patch_mean(costs: Tensor) -> Tensor:
    return F.avg_pool2d(_bordered(costs, PATCH), 2 * PATCH + 1, 1)
