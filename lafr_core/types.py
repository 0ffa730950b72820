"""The records and one-method protocols that travel between the stages.

Conventions (CONVENTIONS.md): images (B, 3, H, W) float32 RGB in [0, 1]; masks (B, 1, H, W) in [0, 1];
points (x, y) at pixel centres, origin at the centre of the top left pixel; sizes (h, w); ``matrix`` is the
2x3 similarity image -> crop in pixels; latents are UNet-scaled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .errors import InputError

Point = tuple[float, float]
Box = tuple[float, float, float, float]
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


def to_unit(pixels: Tensor) -> Tensor:
    """Pixels as files store them (uint8, uint16) or float ones in [0, 1] -> float32 in [0, 1], of the same shape.

    Photos keep their 8 or 16 bits until a region of them is needed: this is the step that makes the region float.
    """
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    return pixels.float() / 65535 if pixels.dtype == torch.uint16 else pixels.float()


def from_unit(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Float pixels in [0, 1] -> ``dtype``. Inverse of :func:`to_unit`: float32 holds n / 65535 so closely that n comes back."""
    if dtype == torch.uint8:
        return (pixels.clamp(0, 1) * 255).round().to(dtype)
    return (pixels.clamp(0, 1) * 65535).round().to(torch.int32).to(dtype) if dtype == torch.uint16 else pixels.to(dtype)


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
    """Similarity source image -> 512 crop in pixels; None until :func:`lafr_core.faces.crop.place` has set it."""
    image_index: int = 0
    """Row of the source image in its batch."""
    change: float | None = None
    """Cosine between the input face and the restored face in [-1, 1]; None when no embedder was at hand."""
    likeness: float | None = None
    """Cosine between the reference person and the restored face in [-1, 1]; None without a reference."""
    trust: float | None = None
    """Estimated cosine between the restored face and the real person in [-1, 1]; None when it was not estimated."""
    person: str | None = None
    """Name of the reference person whose photos helped; None when none did."""

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


@dataclass(frozen=True)
class LatentSpec:
    """A VAE's latent space. ``scaled = (raw - shift) * scale`` is what the UNet sees; std about 1."""

    name: str
    channels: int
    factor: int
    """Pixels per latent cell along each side."""
    scale: float
    shift: float = 0.0
    tiny: str = ""
    """What the files of its TAESD sibling begin with ("" = it has none)."""
    gray: tuple[float, ...] = ()
    """The scaled latents of a flat middle gray, by which the family of an encoder is told; () = not known."""

    def to_scaled(self, raw: Tensor) -> Tensor:
        """Raw VAE latents (ComfyUI LATENT, diffusers AutoencoderKL) -> UNet-scaled."""
        return (raw - self.shift) * self.scale

    def to_raw(self, scaled: Tensor) -> Tensor:
        """UNet-scaled latents -> raw VAE latents. Inverse of :meth:`to_scaled`."""
        return scaled / self.scale + self.shift

    def check(self, latents: Tensor, what: str = "latents") -> Tensor:
        """Return ``latents`` unchanged, or raise InputError unless they are (B, channels, h, w), floating and finite."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise InputError(
                f"{what}: expected (B, {self.channels}, h, w) for the {self.name} latent space, got "
                f"{tuple(latents.shape)}; use a VAE of the same family as the adapter"
            )
        if not latents.is_floating_point():
            raise InputError(f"{what}: expected a floating tensor, got {latents.dtype}; convert with .float()")
        if not bool(latents.isfinite().all()):
            raise InputError(f"{what}: contain NaN or infinite values; check the VAE's dtype (fp16 VAEs overflow: use fp32)")
        return latents


class Alignment(NamedTuple):
    """What the adapter returns for latents (B, C, h, w)."""

    latents: Tensor
    """Aligned latents (B, C, h, w), UNet-scaled."""
    confidence: Tensor
    """(B, 1, h, w) in [0, 1], how far each cell may be believed: 1 = no error expected, 0 = no better than the mean face."""


class Detector(Protocol):
    """Finds faces in one upright image; knows nothing of settings, scales or rotations (:mod:`lafr_core.faces.detect` does)."""

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


@dataclass(frozen=True, eq=False)
class Person:
    """Somebody known from reference photos."""

    name: str
    crops: Tensor
    """(R, 3, 512, 512) in [0, 1], R >= 1: their face in each photo, at the FFHQ template."""
    embedding: Tensor
    """Unit vector (D,): the mean direction of the crops' embeddings."""


@dataclass(frozen=True)
class Models:
    """The models one restoration uses. They live on one device; ``aligner`` and ``prior`` None skip that stage.

    ``sampler``, where given, finishes the latents instead of ``prior``.
    """

    detector: Detector
    vae: Vae
    aligner: Aligner | None = None
    prior: Prior | None = None
    embedder: Embedder | None = None
    parser: Parser | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sampler: Sampler | None = None


Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: the only way out of a running stage. Raise :class:`Cancelled` in it to stop."""


def ignore_progress(stage: str, done: int, total: int) -> None:
    """The default progress callback: does nothing."""
