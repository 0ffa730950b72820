"""Faces drawn anew for every sample: moved, mirrored, bent, tinted and degraded, with what a stage draws for itself.

Stored pairs (train.data.pairs) save the encoder's time and show every picture in a few states; here no two samples are alike,
which lets large nets learn from a few hundred photos. Bending gives a face other proportions: another face's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from lafr_core.geometry import CROP_SIZE
from lafr_core.images.degrade import Array
from lafr_core.images.photos import from_pil, to_pil
from train.config import Config, Data
from train.data.degradation import spoil
from train.data.drawn import draw_face
from train.data.faces import Picture, draw_fidelity, locate, parameters, to_tensor
from train.data.photos import SCALE, SHIFT, TURN

Draw = Callable[[np.random.Generator], dict[str, Tensor]]
"""What a stage draws for a sample of its own: views, shares."""
BENT, TINTED = 0.7, 0.6
"""Shares of the samples that are bent and tinted."""
KNOTS = 5
"""Displacements along each side, smooth between them."""
SHRUNK = 1.25
"""From so many photo pixels a crop pixel on, the photo is averaged to the crop's scale first, so that it does not alias."""


class Fresh(Dataset[dict[str, Any]]):
    """Stream position -> ``hq`` and ``lq`` (3, S, S) in [0, 1], ``fidelity``, ``index``, ``drawn``, and what ``own`` draws."""

    def __init__(self, pictures: Sequence[Picture], config: Config, own: Draw) -> None:
        self.pictures, self.data, self.seed, self.own = list(pictures), config.data, config.seed, own
        self.photos = [pixels_of(picture, self.data.size) for picture in self.pictures] if self.data.decoded else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = locate(position, len(self.pictures), self.seed)
        generator = np.random.default_rng([self.seed, 13, epoch, index])
        picture = self.pictures[index]
        photo = pixels_of(picture, self.data.size) if self.photos is None else self.photos[index]
        sharp = tinted(crop(photo, placed(picture, photo, self.data.size), generator, self.data), generator)
        spoilt, drawn = spoil(sharp, generator, self.data.severity)
        return {
            "hq": to_tensor(sharp),
            "lq": to_tensor(spoilt),
            "fidelity": torch.tensor(draw_fidelity(generator, self.data), dtype=torch.float32),
            "index": torch.tensor(index),
            "drawn": parameters(drawn),
            **self.own(generator),
        }


def pixels_of(picture: Picture, size: int) -> NDArray[np.uint8]:
    """The whole photo (H, W, 3); a drawn face at the crop's size."""
    if picture.path is None:
        return (draw_face(picture.number, size) * 255 + 0.5).astype(np.uint8)
    with picture.open() as opened:
        return np.asarray(to_pil(from_pil(opened)).convert("RGB"))


def placed(picture: Picture, photo: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """(3, 3): photo pixels -> pixels of its crop of ``size``, by landmarks or the middle square; (x, y) at pixel centres."""
    height, width = photo.shape[:2]
    if picture.matrix is not None:
        return scaling(size / CROP_SIZE) @ np.vstack([np.asarray(picture.matrix, np.float64), [0, 0, 1]])
    side = min(width, height)
    middle = np.eye(3)
    middle[:2, 2] = -((width - side) // 2), -((height - side) // 2)
    return scaling(size / side) @ middle


def scaling(k: float) -> NDArray[np.float64]:
    """(3, 3): a picture's pixels -> those of the same picture ``k`` times as large."""
    return np.asarray([[k, 0, (k - 1) / 2], [0, k, (k - 1) / 2], [0, 0, 1]])


def moved(generator: np.random.Generator, data: Data) -> NDArray[np.float64]:
    """(3, 3): crop -> crop pixels: shifted, turned, scaled unequally and sheared about its middle, mirrored by data.flip."""
    angle, scale = math.radians(generator.uniform(-TURN, TURN)), math.exp(generator.uniform(-SCALE, SCALE))
    across, down = np.exp(generator.uniform(-data.stretch, data.stretch, 2))
    shear = generator.uniform(-0.6, 0.6) * data.stretch
    shift = generator.uniform(-SHIFT, SHIFT, 2) * data.size / CROP_SIZE
    turn = np.asarray([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turn @ np.asarray([[across, shear], [0, down]])
    if generator.random() < data.flip:
        linear = np.diag([-1.0, 1.0]) @ linear
    middle = np.full(2, (data.size - 1) / 2)
    out = np.eye(3)
    out[:2, :2], out[:2, 2] = linear, middle - linear @ middle + shift
    return out


def displaced(generator: np.random.Generator, data: Data) -> Array:
    """(2, S, S): how far each crop pixel looks to the right and down of itself, smooth, in crop pixels; often 0 all over."""
    knots = generator.normal(0.0, 1.0, (1, 2, KNOTS, KNOTS)).astype(np.float32)
    if generator.random() >= BENT:
        knots *= 0
    strength = data.bend * data.size / CROP_SIZE
    wide = F.interpolate(torch.from_numpy(knots * strength), size=(data.size, data.size), mode="bicubic", align_corners=False)
    return wide[0].numpy()


def crop(photo: NDArray[np.uint8], place: NDArray[np.float64], generator: np.random.Generator, data: Data) -> Array:
    """The face (S, S, 3) in [0, 1], moved and bent: one interpolation from the photo (H, W, 3), its border repeated."""
    back = np.linalg.inv(moved(generator, data) @ place)
    right, down = displaced(generator, data)
    ys, xs = np.mgrid[0 : data.size, 0 : data.size].astype(np.float32)
    xs, ys = xs + right, ys + down
    at_x, at_y = (row[0] * xs + row[1] * ys + row[2] for row in back[:2])
    return sampled(photo, at_x, at_y, math.sqrt(abs(float(np.linalg.det(back[:2, :2])))))


def sampled(photo: NDArray[np.uint8], xs: Array, ys: Array, shrink: float) -> Array:
    """The photo at points (xs, ys), bicubic; ``shrink`` photo pixels lie between neighbouring points."""
    height, width = photo.shape[:2]
    margin = 4 + math.ceil(2 * shrink)
    left, top = (int(np.clip(v.min() - margin, 0, n - 1)) for v, n in ((xs, width), (ys, height)))
    right, bottom = (int(np.clip(v.max() + margin, 1, n)) for v, n in ((xs, width), (ys, height)))
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    part = Image.fromarray(np.ascontiguousarray(photo[top:bottom, left:right]))
    if shrink > SHRUNK:
        small = [max(1, round(n / shrink)) for n in part.size]
        part = part.resize((small[0], small[1]), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(part)).permute(2, 0, 1)[None].float() / 255
    # Edges stay edges under the shrinking, so the coordinates are those of the part before it.
    u, v = ((p - start + 0.5) * 2 / (end - start) - 1 for p, start, end in ((xs, left, right), (ys, top, bottom)))
    grid = torch.from_numpy(np.stack([u, v], -1).astype(np.float32))[None]
    seen = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return np.ascontiguousarray(seen[0].clamp(0, 1).permute(1, 2, 0).numpy())


def tinted(image: Array, generator: np.random.Generator) -> Array:
    """Most of the time another exposure, white balance and strength of colour, now and then none: (S, S, 3) in [0, 1]."""
    if generator.random() >= TINTED:
        return image
    gains = generator.uniform(0.92, 1.08, 3).astype(np.float32)
    out = image ** np.float32(math.exp(generator.uniform(-0.35, 0.35))) * gains
    if generator.random() < 0.5:
        gray = out.mean(2, keepdims=True)
        out = gray + (out - gray) * np.float32(generator.uniform(0.6, 1.25))
    if generator.random() < 0.03:
        out = np.repeat(out.mean(2, keepdims=True), 3, 2)
    return np.clip(out, 0, 1).astype(np.float32)
