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


def draw_hand(number: int, size: int) -> NDArray[np.float32]:
    """Hand ``number``, (size, size, 3) float32 RGB in [0, 1]: palm, fingers and wrist in skin tones, turned at random."""
    generator = np.random.default_rng([8, number])
    k = 2 * size
    back = tuple(int(v) for v in generator.integers(10, 240, 3))
    image = Image.new("RGB", (k, k), back)
    pen = ImageDraw.Draw(image)
    skin = int(generator.integers(90, 240))
    tone = (skin, int(skin * generator.uniform(0.68, 0.85)), int(skin * generator.uniform(0.5, 0.75)))
    shade = tuple(int(v * generator.uniform(0.6, 0.9)) for v in tone)
    middle = np.asarray([0.5, 0.62]) * k
    palm = generator.uniform(0.13, 0.2) * k
    pen.line([tuple(middle), (middle[0], 1.2 * k)], fill=tone, width=round(1.4 * palm))
    pen.ellipse([*(middle - palm), *(middle + palm * 1.1)], fill=tone, outline=shade)
    spread = generator.uniform(8, 22)
    bent = generator.random(5) < generator.choice([0.0, 0.3, 1.0])  # open, partly closed, a fist
    for finger in range(5):
        angle = np.radians((finger - 2) * spread + (40 if finger == 4 else 0) + generator.uniform(-4, 4))
        way = np.asarray([np.sin(angle), -np.cos(angle)])
        root = middle + way * palm * 0.8
        length = palm * (0.5 if bent[finger] else generator.uniform(1.3, 2.1)) * (0.7 if finger in (0, 4) else 1.0)
        width = palm * generator.uniform(0.32, 0.44)
        tip = root + way * length
        pen.line([tuple(root), tuple(tip)], fill=shade, width=round(width * 1.12))
        pen.line([tuple(root), tuple(tip)], fill=tone, width=round(width))
        pen.ellipse([*(tip - width / 2), *(tip + width / 2)], fill=tone, outline=shade)
        for joint in (0.4, 0.75):
            at = root + way * length * joint
            pen.ellipse([*(at - width * 0.2), *(at + width * 0.2)], fill=shade)
    turned = image.rotate(float(generator.uniform(-180, 180)), Image.Resampling.BILINEAR, fillcolor=back)
    small = np.asarray(turned.resize((size, size), Image.Resampling.BOX), dtype=np.float32)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + generator.uniform(-0.35, 0.35) * axis[:, None] + generator.uniform(-0.35, 0.35) * axis[None, :]
    grain = generator.normal(0.0, 4.0, (size, size, 1)).astype(np.float32)
    return np.clip((small * light[..., None] + grain) / 255, 0.0, 1.0).astype(np.float32)
