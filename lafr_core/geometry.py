"""Similarity transforms between photo and crop, in pixels.

Convention: points are (x, y) with integer coordinates at pixel centres; a matrix is 2x3 and maps source points to
destination points, ``dst = A @ src + t``. Shifting an image by one pixel to the right is t = (1, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .types import Box, Matrix, Point

CROP_SIZE = 512

FFHQ_TEMPLATE: tuple[Point, ...] = (
    (192.98, 239.95),
    (318.90, 240.19),
    (256.63, 314.02),
    (201.26, 371.41),
    (313.09, 371.15),
)
"""Left eye, right eye, nose, left and right mouth corner in a 512 crop (facexlib's FFHQ alignment)."""

ARCFACE_TEMPLATE: tuple[Point, ...] = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""The same five points in the 112 crop that face embedders expect (insightface, ``arcface_dst``)."""


def similarity(source: Sequence[Point], target: Sequence[Point]) -> Matrix:
    """Least-squares similarity (rotation, uniform scale, shift; no mirroring) source -> target.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991, eq. 40-43.
    Raises InputError when the points are fewer than two, not finite or all in one place.
    """
    p = np.asarray(source, dtype=np.float64)
    q = np.asarray(target, dtype=np.float64)
    if p.shape != q.shape or p.ndim != 2 or p.shape[0] < 2 or p.shape[1] != 2:
        raise InputError(f"similarity: expected two equal lists of at least two (x, y) points, got {p.shape} and {q.shape}")
    if not (np.isfinite(p).all() and np.isfinite(q).all()):
        raise InputError("similarity: points contain NaN or infinite values; drop this face")
    p_mean, q_mean = p.mean(0), q.mean(0)
    p0, q0 = p - p_mean, q - q_mean
    variance = float((p0**2).sum() / len(p))
    if variance < 1e-12:
        raise InputError("similarity: all source points coincide; drop this face")
    u, d, vt = np.linalg.svd(q0.T @ p0 / len(p))
    sign = np.ones(2)
    if np.linalg.det(u) * np.linalg.det(vt) < 0:
        sign[1] = -1
    rotation = u @ np.diag(sign) @ vt
    a = rotation * (float((d * sign).sum()) / variance)
    t = q_mean - a @ p_mean
    return as_matrix(np.concatenate([a, t[:, None]], axis=1))


def as_matrix(array: NDArray[np.float64]) -> Matrix:
    """A 2x3 array as the plain tuples a :class:`~lafr_core.types.Face` carries."""
    if array.shape != (2, 3):
        raise InputError(f"matrix: expected shape (2, 3), got {array.shape}")
    row0, row1 = ((float(r[0]), float(r[1]), float(r[2])) for r in array)
    return (row0, row1)


def invert(matrix: Matrix) -> Matrix:
    """The inverse affine map. Raises InputError when the matrix is singular."""
    m = np.asarray(matrix, dtype=np.float64)
    if abs(np.linalg.det(m[:, :2])) < 1e-12:
        raise InputError(f"invert: expected an invertible 2x3 matrix, got {matrix}")
    a = np.linalg.inv(m[:, :2])
    return as_matrix(np.concatenate([a, -(a @ m[:, 2:])], axis=1))


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The map that applies ``inner`` first, then ``outer``."""
    o, i = np.asarray(outer), np.asarray(inner)
    return as_matrix(np.concatenate([o[:, :2] @ i[:, :2], o[:, :2] @ i[:, 2:] + o[:, 2:]], axis=1))


def transform(matrix: Matrix, points: Sequence[Point]) -> tuple[Point, ...]:
    """The points mapped through ``matrix``."""
    m = np.asarray(matrix)
    mapped = np.asarray(points, dtype=np.float64).reshape(-1, 2) @ m[:, :2].T + m[:, 2]
    return tuple((float(x), float(y)) for x, y in mapped)


def scale_of(matrix: Matrix) -> float:
    """Destination pixels per source pixel of a similarity."""
    m = np.asarray(matrix)
    return math.sqrt(abs(float(np.linalg.det(m[:, :2]))))


def enlarging(factor: float) -> Matrix:
    """The map from a picture to the same picture ``factor`` times as large: edges stay edges, so centres move by a half."""
    shift = (factor - 1) / 2
    return ((float(factor), 0.0, shift), (0.0, float(factor), shift))


def crop_bounds(matrix: Matrix, size: tuple[int, int], crop: int = CROP_SIZE, margin: int = 2) -> tuple[int, int, int, int]:
    """Integer region (x0, y0, x1, y1) of an image of ``size`` (h, w) that holds everything the crop sees; may be empty.

    x1 and y1 are exclusive. All work on a face happens inside this region, so its cost does not depend on the photo.
    """
    edge = crop - 0.5
    corners = np.asarray(transform(invert(matrix), [(-0.5, -0.5), (edge, -0.5), (edge, edge), (-0.5, edge)]))
    x0, y0 = np.floor(corners.min(0)).astype(int) - margin
    x1, y1 = np.ceil(corners.max(0)).astype(int) + margin + 1
    height, width = size
    x0, x1 = (int(min(max(v, 0), width)) for v in (x0, x1))
    y0, y1 = (int(min(max(v, 0), height)) for v in (y0, y1))
    return x0, y0, x1, y1


def box_of(points: Sequence[Point]) -> Box:
    """The smallest box around the points."""
    array = np.asarray(points, dtype=np.float64)
    (x0, y0), (x1, y1) = array.min(0), array.max(0)
    return float(x0), float(y0), float(x1), float(y1)
