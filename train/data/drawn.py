"""Schematic faces drawn from a number: pictures for smoke runs and tests on a machine that has none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lafr_core.geometry import CROP_SIZE, FFHQ_TEMPLATE


def draw_face(number: int, size: int) -> NDArray[np.float32]:
    """Face ``number``, (size, size, 3) float32 RGB in [0, 1], features at the FFHQ template; the same number, the same face."""
    generator = np.random.default_rng([7, number])
    k = 2 * size / CROP_SIZE  # drawn at twice the size, then averaged: smooth edges
    side = 2 * size

    def colour(low: int, high: int) -> tuple[int, int, int]:
        r, g, b = (int(v) for v in generator.integers(low, high, 3))
        return r, g, b

    image = Image.new("RGB", (side, side), colour(20, 235))
    pen = ImageDraw.Draw(image)
    skin = int(generator.integers(110, 235))
    tone = (skin, int(skin * generator.uniform(0.7, 0.85)), int(skin * generator.uniform(0.5, 0.75)))
    width, height = generator.uniform(140, 175), generator.uniform(185, 220)
    hair = colour(10, 120)

    def oval(x: float, y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        pen.ellipse([(x - rx) * k, (y - ry) * k, (x + rx) * k, (y + ry) * k], fill=fill)

    oval(256, 250, width + generator.uniform(15, 45), height + 35, hair)
    oval(256, 290, width, height, tone)
    iris = colour(20, 140)
    for x, y in FFHQ_TEMPLATE[:2]:
        oval(x, y, 30, 15, (245, 245, 245))
        oval(x, y, 13, 13, iris)
        oval(x, y, 5, 5, (5, 5, 5))
        brow = y - generator.uniform(26, 40)
        pen.line([(x - 34) * k, brow * k, (x + 34) * k, (brow + generator.uniform(-6, 6)) * k], fill=hair, width=round(9 * k))
    nose = tuple(int(v * 0.82) for v in tone)
    x, y = FFHQ_TEMPLATE[2]
    pen.polygon([(x * k, (y - 60) * k), ((x - 26) * k, (y + 12) * k), ((x + 26) * k, (y + 12) * k)], fill=nose)
    (left, top), (right, bottom) = FFHQ_TEMPLATE[3:]
    oval((left + right) / 2, (top + bottom) / 2, (right - left) / 2, generator.uniform(10, 26), (170, 60, 70))
    small = image.resize((size, size), Image.Resampling.BOX)
    grain = generator.normal(0.0, 4.0, (size, size, 1))
    return np.clip((np.asarray(small, dtype=np.float32) + grain.astype(np.float32)) / 255, 0.0, 1.0).astype(np.float32)
