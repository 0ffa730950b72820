"""Stand-ins for the networks: tiny, exact and without weights, so that tests of everything around them are fast and sharp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.latent.spec import FAMILIES
from lafr_core.types import Alignment, Face, Models

TEMPLATE_IN_UNIT_BOX = ((0.31, 0.42), (0.69, 0.42), (0.5, 0.62), (0.34, 0.78), (0.66, 0.78))


def face_at(x0: float, y0: float, side: float, score: float = 0.9) -> Face:
    """An upright face whose box is the square at (x0, y0)."""
    a, b, c, d, e = ((x0 + u * side, y0 + v * side) for u, v in TEMPLATE_IN_UNIT_BOX)
    return Face(box=(x0, y0, x0 + side, y0 + side), landmarks=(a, b, c, d, e), score=score)


class FixedDetector:
    """Finds the same faces in every photo large enough to hold them."""

    name = "fixed"

    def __init__(self, faces: Sequence[Face]) -> None:
        self.faces = list(faces)

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        height, width = image.shape[-2:]
        inside = [face for face in self.faces if face.box[2] <= width and face.box[3] <= height]
        return sorted((face for face in inside if face.score >= threshold), key=lambda face: -face.score)


class BlockVae:
    """Mean colour and luma of each 8x8 block: decoding gives blocks, so a restored face is visibly another."""

    spec = FAMILIES["sd"]

    def encode(self, pixels: Tensor) -> Tensor:
        means = F.avg_pool2d(pixels, 8) * 2 - 1
        return torch.cat([means, means.mean(1, keepdim=True)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return F.interpolate((latents[:, :3] + 1) / 2, scale_factor=8, mode="nearest").clamp(0, 1)


class Brighter:
    """An adapter that does less the higher the fidelity."""

    spec = FAMILIES["sd"]

    def __call__(self, latents: Tensor, fidelity: float) -> Alignment:
        return Alignment(latents + 0.2 * (1 - fidelity), torch.ones_like(latents[:, :1]))


class MeanColour:
    """An embedder: the mean colour of each quarter of the crop, as a unit vector."""

    name = "mean colour"

    def __call__(self, crops: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(crops, 2).flatten(1), dim=1)


def parts(faces: Sequence[Face] = (), embedder: bool = True) -> Models:
    """A whole set of stand-ins that finds ``faces``."""
    return Models(FixedDetector(faces), BlockVae(), Brighter(), None, MeanColour() if embedder else None)
