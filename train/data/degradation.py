"""How training spoils a clean face: our own ranges (lafr_core.images.degrade), mixtures of them, and the papers' own recipes.

The papers' recipe is BasicSR's (xinntao/BasicSR, ``ffhq_degradation_dataset.py``, as GFPGAN and CodeFormer train with it): a
41-tap Gaussian kernel, half of them anisotropic, shrinking and enlarging without anti-aliasing (OpenCV's INTER_LINEAR),
Gaussian noise, JPEG, then colour shift and gray with small probability.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from lafr_core.images.degrade import SEVERITIES, Array, Drawn, degrade

MIX = (("full", 2), ("mild", 2), ("medium", 5), ("severe", 3))
"""Severities of ``mix`` and their shares in twelfths. Most of the full range is hopeless, so it gets little."""
TAPS = 41


@dataclass(frozen=True)
class Recipe:
    """One paper's ranges, lengths in pixels of a 512 face; all drawn uniformly."""

    sigma: tuple[float, float]
    ratio: tuple[float, float]
    quality: tuple[int, int]
    noise: tuple[float, float] = (0.0, 20.0)
    shift: float = 20 / 255
    """Largest colour shift of a channel, drawn for 30 % of the samples."""
    gray: float = 0.01


RECIPES = {
    # GFPGAN, arXiv 2101.04061, section 4.1, and options/train_gfpgan_v1.yml
    "gfpgan": Recipe(sigma=(0.1, 10.0), ratio=(0.8, 8.0), quality=(60, 100)),
    # CodeFormer, arXiv 2206.11253, section 4.1, and options/CodeFormer_stage2.yml
    "codeformer": Recipe(sigma=(1.0, 15.0), ratio=(4.0, 30.0), quality=(30, 80)),
    # the face training of OSEDiff (arXiv 2406.08177)
    "osediff": Recipe(sigma=(1.0, 15.0), ratio=(1.0, 30.0), quality=(30, 100)),
}
KNOWN = (*SEVERITIES, "mix", *RECIPES)
"""Every word that ``data.severity`` may be."""


def pick(generator: np.random.Generator) -> str:
    """The severity of one degradation of ``mix``."""
    names = [name for name, share in MIX for _ in range(share)]
    return names[int(generator.integers(len(names)))]


def spoil(image: Array, generator: np.random.Generator, severity: str) -> tuple[Array, Drawn]:
    """(H, W, 3) float32 in [0, 1] -> its degraded form and what was drawn; everything comes from ``generator``."""
    if severity in RECIPES:
        return by_recipe(image, generator, RECIPES[severity])
    return degrade(image, generator, pick(generator) if severity == "mix" else severity)


def by_recipe(image: Array, generator: np.random.Generator, recipe: Recipe) -> tuple[Array, Drawn]:
    """One degradation as the paper draws and applies it."""
    height, width = image.shape[:2]
    unit = min(height, width) / 512
    sigma_x = float(generator.uniform(*recipe.sigma))
    turned = generator.random() < 0.5
    sigma_y = float(generator.uniform(*recipe.sigma)) if turned else sigma_x
    angle = float(generator.uniform(-math.pi, math.pi)) if turned else 0.0
    ratio, noise = float(generator.uniform(*recipe.ratio)), float(generator.uniform(*recipe.noise))
    quality = int(generator.integers(recipe.quality[0], recipe.quality[1] + 1))
    low = filtered(image, kernel(sigma_x * unit, sigma_y * unit, angle))
    low = linear(low, (max(4, int(height // ratio)), max(4, int(width // ratio))))
    low = np.clip(low + generator.standard_normal(low.shape, dtype=np.float32) * np.float32(noise / 255), 0, 1)
    buffer = io.BytesIO()
    Image.fromarray((low * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    low = linear(np.asarray(Image.open(buffer).convert("RGB"), dtype=np.float32) / np.float32(255), (height, width))
    shift = generator.uniform(-recipe.shift, recipe.shift, 3) if generator.random() < 0.3 else np.zeros(3)
    gray = bool(generator.random() < recipe.gray)
    if gray:
        low = np.repeat(low @ np.asarray([[0.299], [0.587], [0.114]], dtype=np.float32), 3, axis=2)
    low = np.clip(low + shift.astype(np.float32), 0, 1).astype(np.float32)
    r, g, b = (1.0 + float(v) for v in shift)
    return low, Drawn(sigma_x, sigma_y, angle, ratio, noise, quality, (r, g, b), gray)


def kernel(sigma_x: float, sigma_y: float, angle: float) -> NDArray[np.float32]:
    """The 41-tap Gaussian, standard deviations in pixels along axes turned by ``angle``, summing to 1."""
    c, s = math.cos(angle), math.sin(angle)
    ys, xs = np.mgrid[-(TAPS // 2) : TAPS // 2 + 1, -(TAPS // 2) : TAPS // 2 + 1]
    u, v = (xs * c + ys * s) / max(sigma_x, 1e-3), (-xs * s + ys * c) / max(sigma_y, 1e-3)
    weights = np.exp(-0.5 * (u**2 + v**2))
    return (weights / weights.sum()).astype(np.float32)


def filtered(image: Array, weights: NDArray[np.float32]) -> Array:
    """(H, W, 3) correlated with the kernel, borders mirrored."""
    pad = min(TAPS // 2, image.shape[0] - 1, image.shape[1] - 1)
    inner = weights[TAPS // 2 - pad : TAPS // 2 + pad + 1, TAPS // 2 - pad : TAPS // 2 + pad + 1]
    planes = F.pad(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None], (pad,) * 4, mode="reflect")
    taps = torch.from_numpy(inner / inner.sum())[None, None]
    return F.conv2d(planes[0][:, None], taps)[:, 0].permute(1, 2, 0).numpy()


def linear(image: Array, size: tuple[int, int]) -> Array:
    """(H, W, 3) -> ``size`` (h, w) by bilinear interpolation without anti-aliasing, as OpenCV's INTER_LINEAR does it."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
