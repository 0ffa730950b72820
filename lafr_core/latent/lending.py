"""What reference photos lend: a face is given what its own restoration loses of the same person's good photos.

A reference photo, made as poor as the input and put through the same adapter and prior, tells what they lose of this
person: ``lost = encode(reference) - restored(poor reference)``. That is true of a face that lies where the input's lies, to a
fraction of a latent cell: what is lost are edges, and edges half a cell off are edges drawn twice. So the reference is first
moved to the input by a smooth field of :func:`offsets`, found where both are equally poor. Then patches of the aligned latents
are matched among neighbours, softly (the attention of reference-based super-resolution: Yang et al., "Learning Texture
Transformer Network for Image Super-Resolution", 2020, with nothing learned), and both eyes are given alike. A sharp input loses
little and is lent little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..filters import displaced, gaussian
from ..geometry import CROP_SIZE, FFHQ_TEMPLATE

CHANNELS = 4
"""Squared differences below are sums over so many channels, SD's; latents of more channels count as much."""
SEARCH = 4
"""Cells (of 8 pixels) to each side by which a reference is moved at most."""
WIDE = 5
"""Cells to each side of a cell that are compared to find where it moved."""
SURE = 0.02
"""Softness of that search, in squared latent difference; the mean place is taken, which lies between cells."""
HOLD = 0.001
"""Its cost of every squared cell of distance: where nothing tells, nothing moves."""
SMOOTH = 2.0
"""Standard deviation in cells of the low-pass of the field, and of what counts as coarse in the eyes."""

REACH = 1
"""Cells to each side within which a match is looked for, after the reference was moved."""
PATCH = 4
"""Cells to each side of a cell that are compared."""
FOCUS = 0.03
"""Softness of the match, in squared latent difference: a cell lends by exp(-cost / FOCUS)."""
STAY = 0.002
"""Cost of every squared cell of distance: of two equal matches the nearer one lends."""
NOTHING = 0.14
"""Cost at which nothing is lent instead: hair over an eye, a turned head, glasses. Looked at: at twice as much a fringe in the
reference became a stain on the eye; what fits costs about 0.05."""

EYE = (5.0, 4.0)
"""Half width and half height of an eye with its lids and brow, in cells."""


def offsets(aligned: Tensor, references: Tensor) -> Tensor:
    """Where in each reference what the face shows is found: (R, 2, h, w), cells to the right and down, between cells too.

    aligned: aligned latents (1, C, h, w) of the face; references: (R, C, h, w) of as poor ones. Smooth, at most SEARCH.
    """
    best = aligned.new_full((len(references), 1, *aligned.shape[-2:]), float("inf"), dtype=torch.float32)
    weights = torch.zeros_like(best)
    moved = torch.cat([weights, weights], dim=1)
    for cost, dy, dx, _ in _candidates(aligned.float(), references.float(), SEARCH, WIDE, HOLD):
        place = torch.tensor([float(dx), float(dy)], device=best.device)[:, None, None]
        weights, moved, best = _joined(best, cost, SURE, (weights, 1.0), (moved, place))
    return gaussian(moved / weights, SMOOTH)


def fetched(pictures: Tensor, offsets: Tensor) -> Tensor:
    """Pictures (R, 3, H, W) in [0, 1] whose every place shows what lies :func:`offsets` (R, 2, h, w) away; bicubic."""
    height, width = pictures.shape[-2:]
    field = F.interpolate(offsets.to(pictures), size=(height, width), mode="bicubic", align_corners=False)
    pixels = field.new_tensor([width / offsets.shape[-1], height / offsets.shape[-2]])  # a cell's
    return displaced(pictures, field * pixels[:, None, None]).clamp(0, 1)


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
    values = _bordered(lost, REACH)
    best = row.new_full((1, 1, *row.shape[-2:]), NOTHING)
    weights, total = torch.ones_like(best), torch.zeros_like(row)
    for costs, _, _, window in _candidates(row, references, REACH, PATCH, STAY):
        for cost, value in zip(costs, values[window], strict=True):
            weights, total, best = _joined(best, cost[None], FOCUS, (weights, 1.0), (total, value[None]))
    return total / weights


def even_eyes(lent: Tensor) -> Tensor:
    """What is lent (B, C, h, w) to FFHQ-template faces with the better eye's detail brought down to the other's.

    Two soft eyes are a soft picture; one sharp eye is a fault. Detail is what :func:`~..filters.gaussian` takes away.
    """
    height, width = lent.shape[-2:]
    y = torch.arange(height, device=lent.device, dtype=lent.dtype)[:, None] + 0.5
    x = torch.arange(width, device=lent.device, dtype=lent.dtype) + 0.5
    places = [(ex * width / CROP_SIZE, ey * height / CROP_SIZE) for ex, ey in FFHQ_TEMPLATE[:2]]
    eyes = [torch.exp(-(((x - ex) / EYE[0]) ** 2) - ((y - ey) / EYE[1]) ** 2) for ex, ey in places]
    detail = lent - gaussian(lent, SMOOTH)
    energy = detail.square().mean(1)
    levels = torch.stack([((energy * eye).sum((1, 2)) / eye.sum()).sqrt() for eye in eyes])
    shares = levels.min(0).values / levels.clamp_min(1e-6)
    excess = torch.stack([(1 - share)[:, None, None] * eye for share, eye in zip(shares, eyes, strict=True)]).sum(0)
    return lent - detail * excess[:, None].clamp(max=1.0)


def _candidates(
    row: Tensor, references: Tensor, reach: int, patch: int, stay: float
) -> Iterator[tuple[Tensor, int, int, tuple[Any, ...]]]:
    """For every shift within ``reach``: the costs (R, 1, h, w), the shift, and its window in bordered references."""
    height, width = row.shape[-2:]
    keys = _bordered(references, reach)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            window = (..., slice(reach + dy, reach + dy + height), slice(reach + dx, reach + dx + width))
            apart = CHANNELS * (row - keys[window]).square().mean(1, keepdim=True)
            yield _patch_mean(apart, patch) + stay * (dy**2 + dx**2), dy, dx, window


def _joined(best: Tensor, cost: Tensor, softness: float, *sums: tuple[Tensor, Tensor | float]) -> tuple[Tensor, ...]:
    """A running softmax over all candidates, so that memory grows with neither window nor references: each (sum, value) with
    the value taken in, then the lowest cost so far.
    """
    lower = torch.minimum(best, cost)
    before, now = torch.exp((lower - best) / softness), torch.exp((lower - cost) / softness)
    return *(total * before + value * now for total, value in sums), lower


def _bordered(latents: Tensor, reach: int) -> Tensor:
    return F.pad(latents, (reach, reach, reach, reach), mode="replicate")


def _patch_mean(costs: Tensor, patch: int) -> Tensor:
    return F.avg_pool2d(_bordered(costs, patch), 2 * patch + 1, 1)
