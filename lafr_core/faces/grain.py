"""The photo's own grain on restored faces, so that a clean face does not sit in a grainy photo."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

OCTAVES = 4
"""Grain is measured and made in octaves of about 2 to 16 crop pixels: a small face enlarged to the crop has coarse grain."""
SPILL = (
    (0.909, 0.229, 0.032, 0.003),
    (0.013, 0.112, 0.131, 0.027),
    (0.000, 0.008, 0.081, 0.115),
    (0.000, 0.000, 0.007, 0.074),
)
"""Variance measured in octave (row) when the unit grain of octave (column) is added alone: fixed by the two filters; tested."""
SEED = 0x1AF2
"""The grain field is the same for every crop: no flicker between frames, no dependence on the batch."""
STRIDES = (3, 2, 1, 1)
"""Every n-th coefficient of an octave is measured: enough to rank, and in the finest out of step with JPEG's blocks."""
FLAT_SHARE = 0.3
"""Share of the crop, the part with the weakest edges, in which grain is measured."""
QUARTILE_TO_SIGMA = 3.138
"""Standard deviation of normal noise over the lower quartile of its absolute values, which texture and block borders, being
sparse, move less than the usual median."""


def match_grain(restored: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Restored crops with the grain of the crops they were made from, as far as they lack it.

    restored, reference: (B, 3, H, W) in [0, 1] of one shape; returns that shape, dtype and device, in [0, 1].
    ``amount`` 0 returns ``restored`` itself, 1 makes it as grainy as the reference, in each octave and in luma and
    chroma apart: coarse grain stays coarse, gray grain gray. Deterministic: the field comes from a fixed seed and
    does not depend on the batch.
    """
    if restored.shape != reference.shape or restored.ndim != 4 or restored.shape[1] != 3:
        raise InputError(
            f"match_grain: expected restored and reference (B, 3, H, W) of one shape, got {tuple(restored.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if amount == 0 or restored.shape[0] == 0:
        return restored
    new, old = _to_opponent(restored.float()), _to_opponent(reference.float())
    change = _change(old[:, :1])
    missing = (_levels(old, change).square() - _levels(new, change).square()).clamp_min(0)
    strength = _spread_over_octaves(missing).sqrt()  # (OCTAVES, B, 3)
    field = torch.zeros_like(new)
    for unit, level in zip(_unit_grain(new.shape[-2], new.shape[-1]), strength, strict=True):
        field += unit.to(field) * level[:, :, None, None]
    return (restored.float() + amount * _from_opponent(field)).clamp(0, 1).to(restored.dtype)


def noise_level(images: Tensor) -> Tensor:
    """Standard deviation of the grain per octave, finest first, in luma and two chroma axes: (B, 3, H, W) -> (OCTAVES, B, 3).

    From the small wavelet coefficients in the flattest part of each image, after Donoho and Johnstone 1994, so that edges,
    JPEG's block borders and its ringing hardly count.
    """
    opponent = _to_opponent(images.float())
    return _levels(opponent, _change(opponent[:, :1]))


def _levels(opponent: Tensor, change: Tensor) -> Tensor:
    """(B, 3, H, W), measured where ``change`` (B, 1, h, w) is smallest -> (OCTAVES, B, 3)."""
    levels = []
    for octave, band in enumerate(_bands(opponent)):
        stride = STRIDES[octave]
        sampled = band[..., ::stride, ::stride]
        flat = F.interpolate(change, size=sampled.shape[-2:], mode="bilinear", align_corners=False).flatten(1)
        flat = flat.topk(max(1, int(FLAT_SHARE * flat.shape[1])), dim=1, largest=False).indices
        chosen = sampled.flatten(2).abs().gather(2, flat[:, None].expand(-1, 3, -1))
        levels.append(chosen.quantile(0.25, dim=2) * QUARTILE_TO_SIGMA)
    return torch.stack(levels)


def _change(light: Tensor) -> Tensor:
    """Luma (B, 1, H, W) -> how steeply it changes on the scale of features, one value per 8 pixels each way."""
    cells = F.avg_pool2d(light, 8, stride=8, ceil_mode=True, count_include_pad=False)
    padded = F.pad(cells, (1, 1, 1, 1), mode="replicate")
    dx = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    dy = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    # Clipped blacks and whites have lost their grain: measured there, a grainy photo would look clean.
    clipped = (cells < 0.02) | (cells > 0.98)
    return dx.square() + dy.square() + clipped.to(cells)


def _spread_over_octaves(variance: Tensor) -> Tensor:
    """Wanted variance per measured octave (OCTAVES, ...) -> variance of each unit grain, so that their sum measures so.

    Least squares with values >= 0 by multiplicative updates (Lee and Seung 2001): what is made in one octave is partly
    measured in its neighbours (SPILL).
    """
    spill = torch.tensor(SPILL, dtype=variance.dtype, device=variance.device)
    target = (spill.T @ variance.flatten(1)).clamp_min(0)
    made = variance.flatten(1).clone()
    for _ in range(60):
        made = made * target / (spill.T @ (spill @ made)).clamp_min(1e-20)
    return made.reshape(variance.shape)


def _unit_grain(height: int, width: int) -> list[Tensor]:
    """One (1, 3, H, W) noise field of standard deviation 1 per octave, finest first; always the same."""
    generator = torch.Generator().manual_seed(SEED)
    fields = []
    for octave in range(OCTAVES):
        noise = torch.randn((1, 3, -(-height >> octave), -(-width >> octave)), generator=generator)
        noise = noise - _smooth(noise)
        noise = noise / noise.std(dim=(-2, -1), keepdim=True, correction=0).clamp_min(1e-6)
        fields.append(F.interpolate(noise, size=(height, width), mode="bicubic", align_corners=False) if octave else noise)
    return fields


def _bands(images: Tensor) -> list[Tensor]:
    """B3-spline wavelet ("a trous", Starck and Murtagh 1994) of (B, C, H, W): OCTAVES bands, each half the finer one's size."""
    bands = []
    for _ in range(OCTAVES):
        smooth = _smooth(images)
        bands.append(images - smooth)
        images = smooth[..., ::2, ::2]
    return bands


def _smooth(images: Tensor) -> Tensor:
    """(1, 4, 6, 4, 1) / 16 along rows and columns, border repeated. Sums of slices: faster than one-channel convolutions."""
    for dim, padding in ((-1, (2, 2, 0, 0)), (-2, (0, 0, 2, 2))):
        length = images.shape[dim]
        padded = F.pad(images, padding, mode="replicate")
        a, b, c, d, e = (padded.narrow(dim, k, length) for k in range(5))
        images = (a + e).add_(b, alpha=4).add_(d, alpha=4).add_(c, alpha=6).mul_(1 / 16)
    return images


def _to_opponent(images: Tensor) -> Tensor:
    """RGB -> mean, red against blue, green against both; exactly 0 in the latter two where R = G = B."""
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    off_green = ((red - green) + (blue - green)) / 3
    return torch.cat([green + off_green, (red - blue) / 2, off_green], dim=1)


def _from_opponent(opponent: Tensor) -> Tensor:
    """Inverse of :func:`_to_opponent`; R, G and B are exactly equal where the last two channels are 0."""
    light, red_blue, off_green = opponent[:, :1], opponent[:, 1:2], opponent[:, 2:]
    return torch.cat([light + off_green / 2 + red_blue, light - off_green, light + off_green / 2 - red_blue], dim=1)
