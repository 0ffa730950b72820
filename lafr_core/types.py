"""The records and one-method protocols that travel between the stages.

Conventions (CONVENTIONS.md): images (B, 3, H, W) float32 RGB in [0, 1]; masks (B, 1, H, W) in [0, 1];
points (x, y) at pixel centres, origin at the centre of the top left pixel; sizes (h, w); ``matrix`` is the
2x3 similarity image -> crop in pixels; latents are UNet-scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from .latents import LatentSpec

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Face:
    """One face of one image. Immutable: sorting or filtering faces cannot unpair what belongs together."""

    box: Box
    """(x0, y0, x1, y1) in pixels of the source image."""
    landmarks: tuple[Point, Point, Point, Point, Point]
    """Left eye, right eye, nose, left and right mouth corner; left and right as seen in the image."""
    score: float
    """Detector confidence in [0, 1]; 1.0 for boxes given by hand."""
    matrix: Matrix | None = None
    """Similarity source image -> 512 crop in pixels; None until :func:`lafr_core.crop.place` has set it."""
    image_index: int = 0
    """Row of the source image in its batch."""
    identity: float | None = None
    """Cosine between the input face and the restored face in [-1, 1]; None when no embedder was at hand."""

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def size(self) -> float:
        """Longer side of the box in pixels: what the minimum and maximum face size settings compare."""
        return max(self.width, self.height)


class Alignment(NamedTuple):
    """What the adapter returns for latents (B, C, h, w)."""

    latents: Tensor
    """Aligned latents (B, C, h, w), UNet-scaled."""
    confidence: Tensor
    """(B, 1, h, w) in [0, 1]: 1 where the features sit on a codebook entry, towards 0 far from all of them."""


class Detector(Protocol):
    """Finds faces in one upright image; knows nothing of settings, scales or rotations (:mod:`lafr_core.detect` does)."""

    name: str

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        """(3, H, W) float32 RGB in [0, 1] -> faces with score >= threshold, best first, ``matrix`` None."""
        ...


class Vae(Protocol):
    """An autoencoder seen from the latent side: both ends are already in our conventions."""

    spec: LatentSpec

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], H and W multiples of ``spec.factor`` -> (B, C, H/f, W/f), UNet-scaled, the posterior mode."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) UNet-scaled -> (B, 3, h*f, w*f) in [0, 1]."""
        ...


class Aligner(Protocol):
    """Moves low-quality latents into the high-quality distribution (the LAFR adapter)."""

    spec: LatentSpec

    def __call__(self, latents: Tensor, fidelity: float) -> Alignment: ...


class Prior(Protocol):
    """Finishes aligned latents in one step."""

    spec: LatentSpec

    def __call__(self, latents: Tensor) -> Tensor: ...


class Sampler(Protocol):
    """Finishes aligned latents while it can see the faces they came from: several steps, identity guidance."""

    def __call__(self, latents: Tensor, crops: Tensor) -> Tensor:
        """Latents (B, C, h, w) and their input crops (B, 3, 512, 512) in [0, 1] -> latents of the same shape."""
        ...


class Embedder(Protocol):
    """Face identity. Differentiable with respect to the crops."""

    name: str

    def __call__(self, crops: Tensor) -> Tensor:
        """FFHQ-template crops (B, 3, 512, 512) in [0, 1] -> unit vectors (B, D)."""
        ...


class Parser(Protocol):
    """Face parsing: which crop pixels belong to the face."""

    name: str

    def __call__(self, crops: Tensor) -> Tensor:
        """FFHQ-template crops (B, 3, 512, 512) in [0, 1] -> masks (B, 1, 512, 512) in [0, 1], 1 on the face."""
        ...


Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: the only way out of a running stage. Raise :class:`Cancelled` in it to stop."""


def ignore_progress(stage: str, done: int, total: int) -> None:
    """The default progress callback: does nothing."""
