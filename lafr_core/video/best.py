"""How much of a face each frame of a track shows, which frames show it best, and which of the others they help.

A face that comes nearer, into the light or to rest is seen better there than before and after. Those frames are reference
photos of the same person for which nobody had to look.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..faces.crop import warp
from ..faces.trust import contrast, luma, octaves
from ..types import Matrix
from .motion import Motion

SIDE = 256
"""Side of the crops whose detail is measured. Eyes are 63 pixels apart in them; a face gains little by more."""
OCTAVES = 3
"""Details of 2, 4 and 8 of their pixels count."""
LEAST = 0.01
"""Detail below this share of the face's contrast is none."""
CALM = 2, 4
"""Frames to each side of which the median, then the mean is taken: what one frame shows alone is a flash, not a face."""

MOST = 3
"""Frames that help at most: what one of them has of a blink or a shadow, the others have not."""
APART = 8
"""Frames between two of them at least."""
AS_GOOD = 0.15
"""How much less fine than the finest they may be."""
WORSE, MUCH_WORSE = 0.35, 0.7
"""How much less fine a frame is that is helped a little, and from where on it is helped with all there is. A face half as large
is worse by 0.3 (clean) to 0.7 (grainy); frames of a face that keeps its distance differ by 0.1 (measured)."""

Array = NDArray[np.float32]


def fineness(before: Tensor, pixels: Tensor, to_crop: Motion, step: Motion) -> float:
    """How fine the detail is that a frame (3, H, W) shows of a face: the mean log of its octaves' shares of the contrast.

    Grain is no detail: only what the frame ``before`` shows as well counts, in the place from which the face came by ``step``.
    to_crop: from the frame's pixels to those of a crop of SIDE.
    """
    ways = (pixels, to_crop), (before, step.then(to_crop))
    now, then = (luma(warp(frame, _matrix(way), SIDE)[None]) for frame, way in ways)
    pairs = zip(octaves(now, OCTAVES), octaves(then, OCTAVES), strict=True)
    shared = [float((a * b).mean().clamp_min(0.0).sqrt()) for a, b in pairs]
    return float(np.log(np.maximum(np.asarray(shared) / float(contrast(now)), LEAST)).mean())


def _matrix(way: Motion) -> Matrix:
    turn, shift = way.turn, way.shift
    return (turn.real, -turn.imag, shift.real), (turn.imag, turn.real, shift.imag)


def helpers(fineness: Array) -> tuple[tuple[int, ...], Array]:
    """Which frames of a track help, finest first, and how much each frame is to be helped, (n,) from 0 to 1.

    fineness: (n,), NaN where it is not known. Where no frame is clearly worse than the best, none helps and none is helped.
    """
    known = np.flatnonzero(~np.isnan(fineness))
    nobody: tuple[tuple[int, ...], Array] = (), np.zeros(len(fineness), dtype=np.float32)
    if not len(known):
        return nobody
    calm = _calm(np.interp(np.arange(len(fineness)), known, fineness[known]))
    best: list[int] = []
    for frame in known[np.argsort(-calm[known], kind="stable")].tolist():
        good = calm[frame] >= calm[known].max() - AS_GOOD
        if good and len(best) < MOST and all(abs(frame - other) >= APART for other in best):
            best.append(frame)
    worse = calm[best].mean() - calm
    helped = np.clip((worse - WORSE) / (MUCH_WORSE - WORSE), 0.0, 1.0).astype(np.float32)
    return (tuple(best), helped) if helped.any() else nobody


def _calm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    flashes, tremble = CALM
    settled: NDArray[np.float64] = np.median(_around(values, flashes), axis=-1)
    calm: NDArray[np.float64] = np.mean(_around(settled, tremble), axis=-1)
    return calm


def _around(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Each value (n,) with its neighbours: (n, 2 reach + 1)."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, mode="edge"), 2 * reach + 1)
