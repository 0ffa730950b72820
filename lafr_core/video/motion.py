"""How a face moves from one frame to the next, measured on its pixels: far finer than a detector's landmarks tremble.

A motion is a similarity of the picture, kept as two complex numbers: the point x + iy goes to ``turn * (x + iy) + shift``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..faces.crop import place, warp
from ..filters import gaussian
from ..geometry import CROP_SIZE
from ..types import Face, Matrix

SIDE = 96
"""Side of the crops that are compared."""
BROAD = 5.0
"""Differences broader than this many of their pixels are light, not motion."""
LEVELS = ((24, 6), (48, 4), (96, 4))
"""(side, steps) from coarse to fine."""
ALIKE = 0.5
"""Correlation of two crops, laid over each other, below which they show no common face: a hand, a turn, a flash."""


@dataclass(frozen=True)
class Motion:
    """A similarity of points x + iy."""

    turn: complex = 1.0 + 0.0j
    shift: complex = 0.0j

    def __call__(self, point: complex) -> complex:
        return self.turn * point + self.shift

    def then(self, later: Motion) -> Motion:
        return Motion(later.turn * self.turn, later.turn * self.shift + later.shift)

    def inverse(self) -> Motion:
        return Motion(1 / self.turn, -self.shift / self.turn)


@dataclass(frozen=True, eq=False)
class Glimpse:
    """What one frame shows of a face, small."""

    gray: Tensor
    """(1, 1, SIDE, SIDE)."""
    to_crop: Motion
    """From the frame's pixels to the crop's."""

    def at(self, side: int) -> Motion:
        """From the frame's pixels to those of the same crop with another side."""
        k = side / SIDE
        return self.to_crop.then(Motion(complex(k), complex(k - 1, k - 1) / 2))


def glimpse(pixels: Tensor, face: Face) -> Glimpse:
    """The face of a frame (3, H, W), cut out at its landmarks."""
    matrix = place(face).matrix
    assert matrix is not None  # place() has set it
    k = SIDE / CROP_SIZE
    (a, b, c), (d, e, f) = matrix
    small: Matrix = ((k * a, k * b, k * (c + 0.5) - 0.5), (k * d, k * e, k * (f + 0.5) - 0.5))
    gray = warp(pixels, small, SIDE).mean(0)[None, None]
    return Glimpse(gray, Motion(complex(small[0][0], small[1][0]), complex(small[0][2], small[1][2])))


def between(before: Glimpse, after: Glimpse) -> Motion | None:
    """Where points of the face in the one frame are in the other, in the frames' pixels; None where it cannot be told.

    Both are seen at their own landmarks, so what is sought is small: Lucas and Kanade 1981 for a similarity, coarse to fine,
    with weights that spare what does not move along (lips, lids, hands).
    """
    found = _registered(before.gray, after.gray)
    return None if found is None else before.to_crop.then(found).then(after.to_crop.inverse())


def _registered(a: Tensor, b: Tensor) -> Motion | None:
    """The motion that takes points of crop ``a`` (1, 1, s, s) to where ``b`` shows the same, in crop pixels."""
    side = a.shape[-1]
    guess = torch.zeros(4)  # log-free small similarity: scale - 1, rotation, shift in sides of the crop
    alike = 0.0
    for level, steps in LEVELS:
        goal, seen = (_even(F.interpolate(x, size=(level, level), mode="area"), level / side) for x in (a, b))
        axis = (torch.arange(level, dtype=torch.float32) + 0.5) / level - 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        face = torch.exp(-(((x / 0.3) ** 2 + ((y - 0.02) / 0.34) ** 2) ** 2))
        for step in range(steps + 1):
            grid = torch.stack([x + guess[0] * x - guess[1] * y + guess[2], y + guess[1] * x + guess[0] * y + guess[3]], -1)
            moved = F.grid_sample(seen, 2 * grid[None], mode="bicubic", padding_mode="border", align_corners=False)
            rest = (goal - moved)[0, 0]
            if step == steps:
                break
            middle = F.pad((goal + moved) / 2, (1, 1, 1, 1), mode="replicate")[0, 0] * (level / 2)
            gx, gy = middle[1:-1, 2:] - middle[1:-1, :-2], middle[2:, 1:-1] - middle[:-2, 1:-1]
            usual = rest[face > 0.5].abs().median() * 2.0 + 1e-4
            weight = face / (1 + (rest / usual) ** 2)
            columns = torch.stack([gx * x + gy * y, gy * x - gx * y, gx, gy])
            system = torch.einsum("ahw,bhw,hw->ab", columns, columns, weight)
            right = torch.einsum("ahw,hw,hw->a", columns, rest, weight)
            ridge = 1e-3 * system.diagonal().mean() + 1e-9
            guess = guess + torch.linalg.solve(system + ridge * torch.eye(4), right)
        moved = moved[0, 0]
        norms = (face * moved.square()).sum() * (face * goal[0, 0].square()).sum()
        alike = float((face * moved * goal[0, 0]).sum() / norms.sqrt().clamp_min(1e-9))
    scale, rotation, dx, dy = guess.tolist()
    if alike < ALIKE or not all(abs(value) < 0.3 for value in (scale, rotation, dx, dy)):
        return None
    turn, centre = complex(1 + scale, rotation), complex(side - 1, side - 1) / 2
    return Motion(turn, centre + side * complex(dx, dy) - turn * centre)


def _even(crop: Tensor, zoom: float) -> Tensor:
    """Light taken out."""
    return crop - gaussian(crop, max(1.0, BROAD * zoom))
