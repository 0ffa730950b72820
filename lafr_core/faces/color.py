"""Colour of restored crops: the photo's own light and tint come back, its blur does not; black-and-white stays so."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

GRID = 64
"""Colours are compared on a grid of this many cells a side: cheap, and 8 crop pixels a cell keep JPEG and sensor noise out."""
SPREAD = 4.5
"""Standard deviation of "low frequency", in cells: 36 pixels of a 512 crop, wider than the blur of a blurred photo."""
EDGE = 0.04
"""Luma step between cells at which a cell's colour difference counts half: there it is blur or moved features, not light."""
CENTRE = slice(GRID // 5, GRID - GRID // 5)
"""Cells that show the face: whether a crop is black-and-white is judged here, not by what else hangs in the picture."""

# Chroma is channel minus luma; its strength the root of the sum of squares over R, G, B, averaged over cells. Measured:
# 10 real gray scans and 96 gray faces under coloured noise stay below a mean of 0.02, 105 colour faces (severely degraded
# ones too) above 0.07.
GRAY_MEAN = 0.021
GRAY_PEAK = 0.06
# What is left after a single-tint fit: below 0.011 for toned prints as JPEG, above 0.02 for colour faces; as a share of
# the chroma itself below 0.12 and above 0.15. Either share or amount tells them apart where the other cannot.
TONED_TRACE = 0.008
TONED_RESIDUE = 0.025
TONED_SHARE = 0.13
FOREIGN = (0.08, 0.16)
"""Chroma strength beside the single tint from which a cell's colour is kept: half a colour picture beside an old one."""


@dataclass(frozen=True)
class Tint:
    """The one tint of a gray or toned print: chroma as a cubic in luma, held constant beyond the lumas it was fitted on."""

    coefficients: Tensor
    """(4, 3): powers 0 to 3 of the centred luma -> R, G, B minus luma. All 0 for exact gray."""
    middle: float
    reach: float

    def __call__(self, luma: Tensor) -> Tensor:
        """Luma (1, H, W) -> chroma (3, H, W)."""
        t = ((luma - self.middle) / self.reach).clamp(-1, 1)
        a, b, c, d = self.coefficients.to(luma)[:, :, None, None]
        chroma: Tensor = a + t * (b + t * (c + t * d))
        return chroma


def match_color(restored: Tensor, reference: Tensor, amount: float) -> Tensor:
    """Restored crops with the low-frequency colour of the crops they were made from.

    restored, reference: (B, 3, H, W) in [0, 1] of one shape; returns that shape, dtype and device, in [0, 1].
    ``amount`` 0 returns ``restored`` itself, 1 takes the whole difference over. Only differences wider than the usual blur
    are taken, and hardly any at strong edges, so that a blurred reference does not put halos around sharp edges.

    Where the face in the reference is gray or toned in one tint (sepia), the result has the restored luma (low frequencies
    matched by ``amount``) in the reference's tint, at any amount above 0: an exactly gray reference gives an exactly gray
    result.
    """
    if restored.shape != reference.shape or restored.ndim != 4 or restored.shape[1] != 3:
        raise InputError(
            f"match_color: expected restored and reference (B, 3, H, W) of one shape, got {tuple(restored.shape)} and "
            f"{tuple(reference.shape)}"
        )
    if amount == 0 or restored.shape[0] == 0:
        return restored
    matched = [_match(new, old, amount) for new, old in zip(restored.float(), reference.float(), strict=True)]
    return torch.stack(matched).clamp(0, 1).to(restored.dtype)


def is_gray(images: Tensor) -> Tensor:
    """Which images (B, 3, H, W) in [0, 1] are black-and-white: bool (B,). JPEG's and noise's traces of colour pass."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"is_gray: expected images (B, 3, H, W), got {tuple(images.shape)}")
    return _colourless(_strength(_chroma(_grid(images.float()))))


def luma(image: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W), ITU-R BT.601 as in JPEG; exactly the channels' value where all three are equal."""
    red, green, blue = (image.narrow(-3, channel, 1) for channel in range(3))
    return green + 0.299 * (red - green) + 0.114 * (blue - green)


def single_tint(image: Tensor) -> Tint | None:
    """The tint of a crop (3, H, W) whose face is gray or toned in one colour; None for a colour photo."""
    cells = _grid(image[None])[0, :, CENTRE, CENTRE].double().cpu()
    light, chroma = luma(cells).flatten(), _chroma(cells).flatten(1)
    low, high = (float(light.quantile(q)) for q in (0.01, 0.99))
    middle, reach = (low + high) / 2, max((high - low) / 2, 1e-3)
    t = ((light - middle) / reach).clamp(-1, 1)
    powers = torch.stack([torch.ones_like(t), t, t**2, t**3], dim=1)
    # The small ridge keeps the fit defined when the face has one luma only.
    normal = powers.T @ powers + 1e-3 * torch.eye(4, dtype=t.dtype)
    coefficients = torch.linalg.solve(normal, powers.T @ chroma.T)
    residue = (chroma - (powers @ coefficients).T).square().sum(0).mean().sqrt()
    strength = _strength(chroma[None])[0]
    toned = residue < TONED_TRACE or residue < min(TONED_RESIDUE, TONED_SHARE * float(strength.mean()))
    if not (toned or bool(_colourless(strength[None]))):
        return None
    return Tint(coefficients.float(), middle, reach)


def _match(new: Tensor, old: Tensor, amount: float) -> Tensor:
    """One crop (3, H, W) to its reference."""
    tint = single_tint(old)
    if tint is None:
        return new + amount * _low_difference(new, old)
    light, old_light = luma(new), luma(old)
    light = light + amount * _low_difference(light, old_light)
    foreign = _chroma(old) - tint(old_light)
    low, high = FOREIGN
    keep = ((_strength(_grid(foreign[None])) - low) / (high - low)).clamp(0, 1)
    keep = F.interpolate(keep[:, None], size=new.shape[-2:], mode="bilinear", align_corners=False)[0]
    return light + tint(light) + keep * foreign


def _low_difference(new: Tensor, old: Tensor) -> Tensor:
    """Low frequencies of ``old - new``, both (C, H, W); cells on edges of either weigh little (normalised convolution)."""
    new_cells, old_cells = _grid(new[None]), _grid(old[None])
    step = torch.maximum(_steps(new_cells), _steps(old_cells))
    weight = 1 / (1 + (step / EDGE) ** 2)
    difference = _smooth((old_cells - new_cells) * weight) / _smooth(weight)
    return F.interpolate(difference, size=new.shape[-2:], mode="bicubic", align_corners=False)[0]


def _grid(images: Tensor) -> Tensor:
    """(B, C, H, W) -> cell means (B, C, GRID, GRID)."""
    return F.interpolate(images, size=(GRID, GRID), mode="area")


def _steps(cells: Tensor) -> Tensor:
    """(1, C, h, w) -> largest luma change to a neighbour (1, 1, h, w)."""
    light = F.pad(cells.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    centre = light[..., 1:-1, 1:-1]
    sides = (light[..., :-2, 1:-1], light[..., 2:, 1:-1], light[..., 1:-1, :-2], light[..., 1:-1, 2:])
    return torch.stack([(side - centre).abs() for side in sides]).amax(0)


def _smooth(cells: Tensor) -> Tensor:
    """Gaussian of SPREAD cells, zeros outside: numerator and denominator of a normalised convolution."""
    radius = int(3 * SPREAD)
    offset = torch.arange(-radius, radius + 1, dtype=cells.dtype, device=cells.device)
    kernel = torch.exp(-0.5 * (offset / SPREAD) ** 2)
    kernel = kernel / kernel.sum()
    channels = cells.shape[1]
    rows = kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    cells = F.conv2d(cells, rows, padding=(radius, 0), groups=channels)
    return F.conv2d(cells, rows.transpose(-1, -2), padding=(0, radius), groups=channels)


def _chroma(image: Tensor) -> Tensor:
    return image - luma(image)


def _strength(chroma: Tensor) -> Tensor:
    """(B, 3, ...) -> (B, ...)."""
    return chroma.square().sum(1).sqrt()


def _colourless(strength: Tensor) -> Tensor:
    """Chroma strength per cell (B, ...) -> bool (B,)."""
    cells = strength.flatten(1)
    return (cells.mean(1) < GRAY_MEAN) & (cells.quantile(0.95, dim=1) < GRAY_PEAK)
