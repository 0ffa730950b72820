"""How like the real person is a restored face? An estimate from what the input can support, and its verdict in words.

What is measured (:func:`quality`, :func:`presence`) needs no original. How it is weighed are two plain polynomials fitted by
``python -m train trust`` on faces whose original is known, kept as a LAFR file of kind ``trust``. The fit belongs to the
starter's embedder, adapter and prior; what other priors draw is judged by the same rule.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..store import assets, checkpoint
from ..types import Embedder, Face

VERDICTS = ("supported", "partly guessed", "a guess")
SUPPORTED = 0.75
"""Trust from which a face is called supported: on ``faces/val`` dlib takes every such face for the same person."""
GUESSED = 0.5
"""Trust below which a face is called a guess: where two strangers may score as much."""

SURE = 0.8
"""Chance of a face from which nothing is taken off the estimate: faces are rarely sure to the last tenth."""
OCTAVES = 5
"""Bands of the picture that are measured: details of 2, 4, ... pixels of a 512 crop."""
TEMPLATE = 16
"""Side of the mean face in cells."""
QUALITY = (
    *(f"band {2 * 2**k} px" for k in range(OCTAVES)), *(f"drawn at {2 * 2**k} px" for k in range(OCTAVES)),
    "noise", "contrast", "change", "moved pixels",
)  # fmt: skip
"""What tells how much of the face the input shows and the restoration drew: the columns of :func:`quality`."""
PRESENCE = (
    "face-like", "steady", "mirrored", "contrast", *(f"band {2 * 2**k} px" for k in range(2, OCTAVES)),
)  # fmt: skip
"""What tells a face from a hand, a wall or mush: the columns of :func:`presence`."""


def verdict(trust: float) -> str:
    """One of :data:`VERDICTS` for an estimated cosine: what the photo supports, what is partly or wholly a guess."""
    if math.isnan(trust):
        raise InputError("verdict: expected a number, got NaN")
    return VERDICTS[0] if trust >= SUPPORTED else VERDICTS[1] if trust >= GUESSED else VERDICTS[2]


def advice(face: Face, limit: float) -> str:
    """What to do about a face that deserves less trust than ``limit``, in one sentence; '' where it deserves that much.

    Without an estimate, ``change`` stands in for it.
    """
    value = face.trust if face.trust is not None else face.change
    if value is None or value >= limit:
        return ""
    said = f"trust {value:.2f}, {verdict(value)}" if face.trust is not None else f"likeness to the input {value:.2f}"
    helped = "compare it with the reference photo" if face.person is not None else "give a reference photo of the person"
    return f"{said}; {helped}, raise fidelity, or leave this face out"


def said(face: Face) -> str:
    """The read-outs of a face, as far as it has some: 'change 0.93, likeness 0.81 (anna), trust 0.74: partly guessed'."""
    parts = []
    if face.change is not None:
        parts.append(f"change {face.change:.2f}")
    if face.likeness is not None:
        parts.append(f"likeness {face.likeness:.2f}" + (f" ({face.person})" if face.person else ""))
    if face.trust is not None:
        parts.append(f"trust {face.trust:.2f}: {verdict(face.trust)}")
    return ", ".join(parts)


def quality(before: Tensor, after: Tensor, embedder: Embedder) -> Tensor:
    """(B, len(QUALITY)) float32 on the CPU for input and restored crops (B, 3, 512, 512) in [0, 1]."""
    luma_in, luma_out = luma(before), luma(after)
    bands_in, bands_out = bands(luma_in), bands(luma_out)
    with torch.no_grad():
        change = (embedder(before) * embedder(after)).sum(1)
    return _table(
        *bands_in.log().unbind(1),
        *(bands_out / bands_in).log().unbind(1),
        _noise(luma_in).log(),
        _contrast(luma_in),
        change,
        (luma_out - luma_in).square().mean((1, 2, 3)).sqrt().clamp_min(1e-4).log(),
    )


def presence(before: Tensor, embedder: Embedder, template: Tensor) -> Tensor:
    """(B, len(PRESENCE)) float32 on the CPU for input crops (B, 3, 512, 512) in [0, 1].

    template: the mean face (TEMPLATE, TEMPLATE). A face changes under the embedder's eyes when it is moved or mirrored; a wall
    does not.
    """
    picture = luma(before)
    with torch.no_grad():
        seen = embedder(before)
        steady = (seen * embedder(_moved(before))).sum(1)
        mirrored = (seen * embedder(before.flip(-1))).sum(1)
    return _table(
        _correlation(cells(picture), template.to(picture)),
        steady,
        mirrored,
        _contrast(picture),
        *bands(picture).log().unbind(1)[2:],
    )


class TrustNet(nn.Module):
    """The cosine that a face of this quality has, less where it is doubtful that there is a face."""

    def __init__(self, cells: int = TEMPLATE, quality: int = len(QUALITY), presence: int = len(PRESENCE)) -> None:
        super().__init__()
        self.config = {"cells": cells, "quality": quality, "presence": presence}
        self.register_buffer("template", torch.zeros(cells, cells))
        self.quality, self.presence = Polynomial(quality), Polynomial(presence)

    template: Tensor

    def forward(self, quality: Tensor, presence: Tensor) -> Tensor:
        """(B, Q) and (B, P) -> (B,) in [-1, 1]."""
        sure = (torch.sigmoid(self.presence(presence)) / SURE).clamp(max=1.0)
        return sure * self.quality(quality).clamp(-1, 1)


class Polynomial(nn.Module):
    """Features (B, F) -> (B,): every term up to the second degree of the standardised features, weighed."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("weights", torch.zeros(1 + features + features * (features + 1) // 2))

    centre: Tensor
    spread: Tensor
    weights: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return terms((features - self.centre) / self.spread) @ self.weights


def terms(x: Tensor) -> Tensor:
    """1, the features, and the products of every two: (B, F) -> (B, 1 + F + F (F + 1) / 2). Features beyond 3 are cut there,
    so that what the fit never saw is not extrapolated.
    """
    x = x.clamp(-3, 3)
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([torch.ones_like(x[:, :1]), x, x[:, i] * x[:, j]], dim=1)


def estimate(before: Tensor, after: Tensor, embedder: Embedder) -> list[float] | None:
    """Estimated cosine of each restored face and the real person, in [-1, 1]; None for an embedder that was not fitted with,
    or without the bundled fit. B may be 0.
    """
    fit = _bundled()
    if fit is None or embedder.name != "starter":
        return None
    if before.shape[0] == 0:
        return []
    values = fit(quality(before, after, embedder), presence(before, embedder, fit.template))
    return [float(value) for value in values]


@functools.cache
def _bundled() -> TrustNet | None:
    path = assets.bundled("trust")
    return checkpoint.open_network(path, "trust", TrustNet) if path.is_file() else None


# --- what is measured ------------------------------------------------------------------------------------------------


def luma(crops: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=crops.device)
    return (crops.float() * weights[:, None, None]).sum(1, keepdim=True)


def _face(picture: Tensor) -> Tensor:
    """The middle of the crop, where the face is: five eighths of each side."""
    side = picture.shape[-1]
    edge = side * 3 // 16
    return picture[..., edge : side - edge, edge : side - edge]


def bands(picture: Tensor) -> Tensor:
    """Luma (B, 1, H, W) -> (B, OCTAVES): RMS of each octave of the face, finest first (the Laplacian pyramid of Burt, 1983)."""
    levels = []
    for _ in range(OCTAVES):
        coarse = F.interpolate(picture, scale_factor=0.5, mode="bilinear", antialias=True)
        back = F.interpolate(coarse, size=picture.shape[-2:], mode="bilinear", align_corners=False)
        levels.append(_face(picture - back).square().mean((1, 2, 3)).sqrt())
        picture = coarse
    return torch.stack(levels, dim=1).clamp_min(1e-5)


def _noise(picture: Tensor) -> Tensor:
    """(B,): standard deviation of white noise (Immerkaer, "Fast noise variance estimation", 1996), robust by the median."""
    kernel = picture.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6
    return _face(F.conv2d(picture, kernel[None, None])).abs().flatten(1).median(dim=1).values.clamp_min(1e-5) / 0.6745


def cells(picture: Tensor) -> Tensor:
    """(B, TEMPLATE, TEMPLATE): the face's coarse shape."""
    return F.interpolate(_face(picture), size=(TEMPLATE, TEMPLATE), mode="bilinear", antialias=True)[:, 0]


def _contrast(picture: Tensor) -> Tensor:
    """(B,): log of the coarse shape's standard deviation."""
    return cells(picture).std((1, 2)).clamp_min(1e-4).log()


def _table(*columns: Tensor) -> Tensor:
    return torch.stack([column.float().cpu() for column in columns], dim=1)


def _correlation(shapes: Tensor, mean: Tensor) -> Tensor:
    a, b = shapes.flatten(1), mean.flatten()[None]
    a, b = a - a.mean(1, keepdim=True), b - b.mean()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm()).clamp_min(1e-6)


def _moved(crops: Tensor) -> Tensor:
    """The crops a little larger and off the middle, as another landmark guess would cut them."""
    side = crops.shape[-1]
    near, far = side // 64, side // 28
    return F.interpolate(crops[..., near : side - far, far : side - near], size=(side, side), mode="bilinear", antialias=True)
