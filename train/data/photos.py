"""Face photos with landmarks in a CSV -> aligned training crops, from explicit generators."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lafr_core.errors import InputError
from lafr_core.faces.crop import warp
from lafr_core.geometry import CROP_SIZE, FFHQ_TEMPLATE, as_matrix, compose, similarity
from lafr_core.images.photos import read_rgb
from lafr_core.types import Matrix, Point

SHIFT, SCALE, TURN = 12.0, 0.06, 4.0
"""Pixels of a 512 crop, share and degrees: about what a detector's landmark error does to a crop."""
_POINTS = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


@dataclass(frozen=True)
class Portrait:
    """One photo on disk with its five landmarks in pixels."""

    path: Path
    landmarks: tuple[Point, ...]
    source: str
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Its row of faces.csv."""

    @property
    def matrix(self) -> Matrix:
        return similarity(self.landmarks, FFHQ_TEMPLATE)


def read_split(root: Path, split: str) -> list[Portrait]:
    """The photos of ``split`` ("train" or "val") listed in ``root/faces.csv``, in file order. Raises InputError when empty."""
    table = Path(root) / "faces.csv"
    if not table.is_file():
        raise InputError(f"{table}: expected the face list there; point the data option at a folder with faces.csv")
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    if not rows:
        raise InputError(f"{table}: no rows with split {split!r}; expected 'train' or 'val'")
    return [
        Portrait(
            Path(root) / row["file"],
            tuple((float(row[f"{p}_x"]), float(row[f"{p}_y"])) for p in _POINTS),
            row["source"],
            row,
        )
        for row in rows
    ]


def load_pixels(photo: Portrait) -> NDArray[np.uint8]:
    """The photo's pixels (H, W, 3) uint8 RGB."""
    return np.asarray(read_rgb(photo.path))


def jitter(generator: np.random.Generator, shift: float = SHIFT, scale: float = SCALE, turn: float = TURN) -> Matrix:
    """A small random similarity about the crop's centre, flipped half of the time: crop pixels -> crop pixels.

    ``shift`` in pixels, ``scale`` as a share, ``turn`` in degrees: about what a detector's landmark error does to a crop.
    """
    angle = math.radians(float(generator.uniform(-turn, turn)))
    k = math.exp(float(generator.uniform(-scale, scale)))
    dx, dy = (float(v) for v in generator.uniform(-shift, shift, 2))
    c = (CROP_SIZE - 1) / 2
    a, b = k * math.cos(angle), k * math.sin(angle)
    move = as_matrix(np.asarray([[a, -b, c - a * c + b * c + dx], [b, a, c - b * c - a * c + dy]]))
    if generator.random() < 0.5:
        move = compose(((-1.0, 0.0, CROP_SIZE - 1.0), (0.0, 1.0, 0.0)), move)
    return move


def aligned_crop(pixels: NDArray[np.uint8], matrix: Matrix) -> Tensor:
    """Photo (H, W, 3) uint8 -> crop (3, 512, 512) float in [0, 1]."""
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    return warp(image, matrix, CROP_SIZE)
