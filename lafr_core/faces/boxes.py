"""Face boxes: how they follow from landmarks, how much they overlap, and the one non-maximum suppression."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..geometry import FFHQ_TEMPLATE, invert, similarity
from ..types import Box, Face, Point

Landmarks = tuple[Point, Point, Point, Point, Point]

TEMPLATE_BOX: Box = (125.0, 92.0, 392.0, 477.0)
"""The face box of the FFHQ-512 template: what RetinaFace-mobile0.25 draws around upright faces (median over 154 portraits)."""

SAME_FACE = 0.4
"""Boxes with a larger intersection over union than this show the same face."""

NESTED = 0.75
"""So do boxes of which one holds more than this share of the other: an eye or a mouth taken for a small face."""


def face_box(landmarks: Sequence[Point]) -> Box:
    """The face box that belongs to five landmarks: the bounds of the ellipse inside TEMPLATE_BOX, mapped from the template.

    For an upright face this is TEMPLATE_BOX moved and scaled; a turned face gets the bounds of the turned ellipse.
    Raises InputError when the landmarks coincide or are not finite.
    """
    back = np.asarray(invert(similarity(landmarks, FFHQ_TEMPLATE)))
    x0, y0, x1, y1 = TEMPLATE_BOX
    cx, cy = back @ np.asarray([(x0 + x1) / 2, (y0 + y1) / 2, 1.0])
    half = np.sqrt((back[:, :2] ** 2) @ np.asarray([(x1 - x0) / 2, (y1 - y0) / 2]) ** 2)
    return float(cx - half[0]), float(cy - half[1]), float(cx + half[0]), float(cy + half[1])


def landmarks_in(box: Box) -> Landmarks:
    """Where the five landmarks of an upright, frontal face with this box would be: the template's, scaled into the box."""
    x0, y0, x1, y1 = TEMPLATE_BOX
    kx, ky = (box[2] - box[0]) / (x1 - x0), (box[3] - box[1]) / (y1 - y0)
    return five((box[0] + (x - x0) * kx, box[1] + (y - y0) * ky) for x, y in FFHQ_TEMPLATE)


def five(points: Iterable[Sequence[float]]) -> Landmarks:
    """Five points as the tuple that a Face carries."""
    a, b, c, d, e = ((float(x), float(y)) for x, y in points)
    return a, b, c, d, e


MIRRORED = [1, 0, 2, 4, 3]
"""Which landmark of a mirrored face is which of the face."""


def mirror(points: Tensor, width: int) -> Tensor:
    """Landmarks (..., 5, 2) in the mirrored picture of ``width`` pixels; left and right change places. Its own inverse."""
    return torch.stack([width - 1 - points[..., 0], points[..., 1]], dim=-1)[..., MIRRORED, :]


def intersections(boxes: Tensor, other: Tensor) -> Tensor:
    """Areas (N, M) common to boxes (N, 4) and boxes (M, 4)."""
    low = torch.maximum(boxes[:, None, :2], other[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], other[None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def areas(boxes: Tensor) -> Tensor:
    """Areas (N,) of boxes (N, 4); 0 for boxes that are inside out."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)


def overlap(box: Box, other: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]."""
    a, b = torch.tensor([box], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)
    common = float(intersections(a, b))
    return common / max(1e-12, float(areas(a)) + float(areas(b)) - common)


def suppress(boxes: Tensor, scores: Tensor, same: float = SAME_FACE, nested: float = NESTED, most: int = 1000) -> Tensor:
    """Greedy non-maximum suppression: indices of the kept boxes (N, 4), best score first.

    A box goes when a better one overlaps it by more than ``same`` (intersection over union), or when more than ``nested`` of
    the smaller of the two lies in the other. Only the best ``most`` boxes are looked at.
    """
    order = scores.argsort(descending=True, stable=True)[:most]
    boxes = boxes[order].double()
    common, area = intersections(boxes, boxes), areas(boxes)
    union = area[:, None] + area[None] - common
    smaller = torch.minimum(area[:, None], area[None])
    duplicate = (common > same * union) | (common > nested * smaller)
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~duplicate[i, i + 1 :]
    return order[alive]


def merge(faces: Sequence[Face]) -> list[Face]:
    """The faces without duplicates, best first: :func:`suppress` on the union of what several passes found."""
    if not faces:
        return []
    keep = suppress(torch.tensor([f.box for f in faces]), torch.tensor([f.score for f in faces]))
    return [faces[i] for i in keep.tolist()]


def distinct(faces: Sequence[Face]) -> list[Face]:
    """The faces without those whose landmarks an earlier one has within a quarter of its eyes' distance, on average: several
    boxes may hold one face, and boxes tell nothing of that when one is much the larger.
    """
    kept: list[Face] = []
    for face in faces:
        if not any(_apart(face, other) < 0.25 * math.dist(*other.landmarks[:2]) for other in kept):
            kept.append(face)
    return kept


def _apart(face: Face, other: Face) -> float:
    """Mean distance of two faces' landmarks in pixels."""
    return sum(map(math.dist, face.landmarks, other.landmarks)) / len(face.landmarks)


def usable(face: Face) -> bool:
    """Whether a similarity can be fitted to the landmarks: finite, and not all in one place."""
    values = [v for point in face.landmarks for v in point] + list(face.box)
    if not all(math.isfinite(v) for v in values):
        return False
    xs, ys = [p[0] for p in face.landmarks], [p[1] for p in face.landmarks]
    return max(max(xs) - min(xs), max(ys) - min(ys)) > 0.5
