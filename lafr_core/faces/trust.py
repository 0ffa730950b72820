"""How like the real person is a restored face? An estimate from what the input can support, and its verdict in words.

What is measured (:func:`quality`) needs no original. How it is weighed is a plain polynomial fitted by ``python -m train
trust`` on faces whose original is known, kept as a LAFR file of kind ``trust``. That fit belongs to the starter's embedder,
adapter and prior; what other priors draw is judged by the same rule, and where a result measures like nothing that was fitted
to, it gets no trust. Whether there is a face at all says a small network on the input (``python -m train presence``), which no
prior touches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..store import assets, checkpoint
from ..types import Embedder, Face
from .networks.presence import PresenceNet, coarse

Network = TypeVar("Network", bound=nn.Module)
VERDICTS = ("supported", "partly guessed", "a guess")
SUPPORTED = 0.75
"""Trust from which a face is called supported: on ``faces/val`` dlib takes every such face for the same person."""
GUESSED = 0.5
"""Trust below which a face is called a guess: where two strangers may score as much."""

EVEN, SURE = 0.7, 0.9
"""Chances of a face: up to the first an estimate is 0, from the second nothing is taken off it."""
NEAR, FAR = 5.0, 8.0
"""Deviations of a measurement from the fit's centre: up to the first it counts as seen before, from the second trust is 0. Of
206 degraded and restored faces none came beyond 4.2; what an untrained prior draws lies at 7 to 20.
"""
OCTAVES = 5
"""Bands of the picture that are measured: details of 2, 4, ... pixels of a 512 crop."""
QUALITY = (
    *(f"band {2 * 2**k} px" for k in range(OCTAVES)), *(f"drawn at {2 * 2**k} px" for k in range(OCTAVES)),
    "noise", "contrast", "change", "moved pixels",
)  # fmt: skip
"""What tells how much of the face the input shows and the restoration drew: the columns of :func:`quality`."""
CHANGE = QUALITY.index("change")


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
        contrast(luma_in).log(),
        change,
        (luma_out - luma_in).square().mean((1, 2, 3)).sqrt().clamp_min(1e-4).log(),
    )


def sure(before: Tensor) -> Tensor:
    """(B,) on the CPU: the chance that each input crop (B, 3, 512, 512) in [0, 1] shows a face at the template; 1 without the
    bundled file.
    """
    net = _bundled("presence", PresenceNet)
    if net is None:
        return torch.ones(before.shape[0])
    with torch.no_grad():
        return torch.sigmoid(net(coarse(luma(before)).cpu()))


def combined(quality: Tensor, sure: Tensor) -> Tensor:
    """Estimated cosines (B,) in [-1, 1]: what the quality supports, less where it is doubtful that there is a face."""
    return quality.clamp(-1.0, 1.0) * ((sure - EVEN) / (SURE - EVEN)).clamp(0.0, 1.0)


def supported(fit: Polynomial, measured: Tensor, likeness: Tensor | None = None) -> Tensor:
    """Estimated cosines (B,) of faces that are there, from measurements (B, F).

    No result is more like the person than like what it was made from: the input (``change``, a column of ``measured``), or
    the person's photos where they lent to it (``likeness`` (B,), -1 for none). None is trusted whose bands, noise or contrast
    lie far outside of what was fitted to: there the polynomial says anything.
    """
    bound = measured[:, CHANGE] if likeness is None else torch.maximum(measured[:, CHANGE], likeness)
    return torch.minimum(fit(measured).clamp(-1.0, 1.0), bound) * fit.known(measured)


class Polynomial(nn.Module):
    """Features (B, F) -> (B,): every term up to the second degree of the standardised features, weighed."""

    def __init__(self, features: int = len(QUALITY)) -> None:
        super().__init__()
        self.config = {"features": features}
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("weights", torch.zeros(1 + features + features * (features + 1) // 2))

    centre: Tensor
    spread: Tensor
    weights: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return terms((features - self.centre) / self.spread) @ self.weights

    def known(self, features: Tensor) -> Tensor:
        """(B,): 1 where all features but ``change`` are such as the fit saw, 0 where one lies :data:`FAR` from its centre.

        A photo of the person changes a face more than the fit ever saw, rightly: ``change`` bounds the estimate instead.
        """
        off = ((features - self.centre) / self.spread).abs()
        off[:, CHANGE : CHANGE + 1] = 0
        return ((FAR - off.amax(1)) / (FAR - NEAR)).clamp(0.0, 1.0)


def terms(x: Tensor) -> Tensor:
    """1, the features, and the products of every two: (B, F) -> (B, 1 + F + F (F + 1) / 2). Features beyond 3 are cut there,
    so that what the fit never saw is not extrapolated.
    """
    x = x.clamp(-3, 3)
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([torch.ones_like(x[:, :1]), x, x[:, i] * x[:, j]], dim=1)


def estimate(before: Tensor, after: Tensor, embedder: Embedder, likenesses: Sequence[float | None] = ()) -> list[float] | None:
    """Estimated cosine of each restored face and the real person, in [-1, 1]; None for an embedder that was not fitted with,
    or without the bundled fit. B may be 0. likenesses: of each result to its reference photos, None for no reference.
    """
    fit = _bundled("trust", Polynomial)
    if fit is None or embedder.name != "starter":
        return None
    if before.shape[0] == 0:
        return []
    like = torch.tensor([-1.0 if value is None else value for value in likenesses]) if likenesses else None
    found = supported(fit, quality(before, after, embedder), like)
    return [float(value) for value in combined(found, sure(before))]


@functools.cache
def _bundled(kind: str, build: Callable[..., Network]) -> Network | None:
    path = assets.bundled(kind)
    return checkpoint.open_network(path, kind, build) if path.is_file() else None


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
    """Luma (B, 1, H, W) -> (B, OCTAVES): RMS of each of the :func:`octaves`, finest first."""
    levels = [octave.square().mean((1, 2, 3)).sqrt() for octave in octaves(picture, OCTAVES)]
    return torch.stack(levels, dim=1).clamp_min(1e-5)


def octaves(picture: Tensor, count: int) -> list[Tensor]:
    """The face in luma (B, 1, H, W), taken apart into details of 2, 4, ... pixels, each half as large as the one before (the
    Laplacian pyramid of Burt, 1983)."""
    levels = []
    for _ in range(count):
        half = F.interpolate(picture, scale_factor=0.5, mode="bilinear", antialias=True)
        back = F.interpolate(half, size=picture.shape[-2:], mode="bilinear", align_corners=False)
        levels.append(_face(picture - back))
        picture = half
    return levels


def _noise(picture: Tensor) -> Tensor:
    """(B,): standard deviation of white noise (Immerkaer, "Fast noise variance estimation", 1996), robust by the median."""
    kernel = picture.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6
    return _face(F.conv2d(picture, kernel[None, None])).abs().flatten(1).median(dim=1).values.clamp_min(1e-5) / 0.6745


def contrast(picture: Tensor) -> Tensor:
    """Luma (B, 1, H, W) -> (B,): the standard deviation of the face's coarse shape, 16 x 16 cells."""
    cells = F.interpolate(_face(picture), size=(16, 16), mode="bilinear", antialias=True)
    return cells.std((1, 2, 3)).clamp_min(1e-4)


def _table(*columns: Tensor) -> Tensor:
    return torch.stack([column.float().cpu() for column in columns], dim=1)
