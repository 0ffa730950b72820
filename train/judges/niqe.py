"""NIQE: how far a picture's local statistics are from those of pristine photographs; lower is better, no reference needed.

Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE SPL 2013, with the published
pristine model (``niqe_pris_params.npz``: mean, covariance and Gaussian window).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lafr_core.errors import CheckpointError, InputError

BLOCK = 96
"""Side of the blocks the statistics are taken over, pixels; 48 at the half size."""
Array = NDArray[np.float64]
_GRID = np.arange(0.2, 10.001, 0.001)
_RATIO = np.asarray([math.gamma(2 / g) ** 2 / (math.gamma(1 / g) * math.gamma(3 / g)) for g in _GRID])


class Niqe:
    """Callable: picture (3, H, W) in [0, 1], at least 96x96 -> NIQE.

    Raises CheckpointError for a file without the three arrays.
    """

    def __init__(self, path: Path) -> None:
        names = ("mu_pris_param", "cov_pris_param", "gaussian_window")
        try:
            with np.load(path, allow_pickle=False) as data:
                self.mean, self.covariance, self.window = (np.asarray(data[name]) for name in names)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: expected NIQE's {', '.join(names)} ({error})") from error

    def __call__(self, picture: Tensor) -> float:
        if picture.ndim != 3 or min(picture.shape[-2:]) < BLOCK:
            raise InputError(f"niqe: expected a picture (3, H, W) of at least {BLOCK}x{BLOCK}, got {tuple(picture.shape)}")
        luma = self._luma(picture)
        height, width = (side // BLOCK * BLOCK for side in luma.shape)
        luma = luma[:height, :width]
        whole = self._features(luma, BLOCK)
        half = self._features(_halve(luma), BLOCK // 2)
        found = np.concatenate([whole, half], axis=1)  # (blocks, 36)
        found = found[np.isfinite(found).all(1)]
        if len(found) == 0:  # a picture of one colour has no local statistics
            return math.nan
        mean = found.mean(0)
        covariance = np.cov(found, rowvar=False) if len(found) > 1 else np.zeros_like(self.covariance)
        gap = self.mean.reshape(-1) - mean
        return float(np.sqrt(gap @ np.linalg.pinv((self.covariance + covariance) / 2) @ gap))

    @staticmethod
    def _luma(picture: Tensor) -> Array:
        """BT.601 luma in [16, 235], rounded, as MATLAB's rgb2ycbcr gives it."""
        r, g, b = picture.double().cpu().numpy()
        return np.round(16 + 65.481 * r + 128.553 * g + 24.966 * b)

    def _features(self, luma: Array, block: int) -> Array:
        """(blocks, 18): shape and width of the normalised luma and of the products of neighbours, block by block."""
        mean = _filter(luma, self.window)
        deviation = np.sqrt(np.abs(_filter(luma**2, self.window) - mean**2))
        normal = (luma - mean) / (deviation + 1)
        rows = []
        for y in range(0, normal.shape[0], block):
            for x in range(0, normal.shape[1], block):
                rows.append(_block_features(normal[y : y + block, x : x + block]))
        return np.asarray(rows)


def _block_features(block: Array) -> list[float]:
    shape, left, right = aggd(block)
    features = [shape, (left + right) / 2]
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        shape, left, right = aggd(block * np.roll(block, (dy, dx), axis=(0, 1)))
        # Mean of the asymmetric generalised Gaussian, eq. 6 of the paper
        mean = (right - left) * math.gamma(2 / shape) / math.gamma(1 / shape) if math.isfinite(shape) else math.nan
        features += [shape, mean, left, right]
    return features


def aggd(values: Array) -> tuple[float, float, float]:
    """Moment-matched asymmetric generalised Gaussian (Lasmar et al. 2009): shape, left and right scale beta."""
    flat = values.ravel()
    below, above = flat[flat < 0], flat[flat > 0]
    if len(below) == 0 or len(above) == 0:
        return math.nan, math.nan, math.nan
    left, right = math.sqrt((below**2).mean()), math.sqrt((above**2).mean())
    skew = left / right
    ratio = np.abs(flat).mean() ** 2 / (flat**2).mean()
    wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    shape = float(_GRID[np.argmin((_RATIO - wanted) ** 2)])
    scale = math.sqrt(math.gamma(1 / shape) / math.gamma(3 / shape))
    return shape, left * scale, right * scale


def _filter(image: Array, window: Array) -> Array:
    """Correlation with a small window, borders replicated."""
    k = window.shape[0] // 2
    padded = np.pad(image, k, mode="edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, window.shape)
    return np.einsum("yxij,ij->yx", views, window)


def _halve(image: Array) -> Array:
    """Half the size by an antialiased cubic, as MATLAB's imresize."""
    size = (image.shape[1] // 2, image.shape[0] // 2)
    half = Image.fromarray((image / 255).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(half, dtype=np.float64) * 255
