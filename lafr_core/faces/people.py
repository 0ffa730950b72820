"""People known from reference photos: who a face may be, and what their photos would look like as poor as the input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import CROP_SIZE
from ..settings import RestoreSettings
from ..types import Detector, Embedder, Person
from . import trust
from .crop import crop_faces, place
from .detect import detect_faces

LIKELY = 0.6
"""Cosine of the starter embedder from which a poor face is taken for a reference person. Between different people the cosine is
0.37 on average and above 0.6 for one pair in 14 (``faces_london/val``)."""

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 28.0, 34.0, 40.0)
"""By how much a reference photo may be shrunk to look as poor as the input."""


def meet(
    name: str, photos: Sequence[Tensor], detector: Detector, embedder: Embedder, settings: RestoreSettings | None = None
) -> Person:
    """The person of that name, from the largest face of each photo (3, H, W), float in [0, 1] or as stored; photos without a
    face are left out.

    ``settings`` says how faces are found, not which of them: None = the defaults. Raises InputError when no photo has a face.
    """
    look = settings if settings is not None else RestoreSettings()
    largest = RestoreSettings(detector=look.detector, threshold=look.threshold, detect_side=look.detect_side, top_k=1)
    crops = []
    for photo in photos:
        faces = [place(face) for face in detect_faces(photo[None], detector, largest)]
        crops.append(crop_faces(photo[None], faces).float())
    found = torch.cat(crops) if crops else torch.zeros(0, 3, CROP_SIZE, CROP_SIZE)
    if not len(found):
        raise InputError(f"reference: no face found in the photos of {name!r}; use a clear portrait or lower the threshold")
    return known(name, found, embedder)


def known(name: str, crops: Tensor, embedder: Embedder) -> Person:
    """The person seen in R >= 1 FFHQ-template crops (R, 3, 512, 512): several photos count alike."""
    with torch.no_grad():
        mean = torch.cat([embedder(crop[None].float()) for crop in crops]).mean(0)
    return Person(name, crops, F.normalize(mean, dim=0))


def whose(crops: Tensor, people: Sequence[Person], embedder: Embedder | None) -> list[Person | None]:
    """For each crop (B, 3, 512, 512) the reference person most like it, None for a face that is like none of them.

    Raises InputError without an embedder where there is something to ask.
    """
    if not people:
        return [None] * len(crops)
    if embedder is None:
        raise InputError(
            "reference: expected a face embedder to tell whose face is whose, found none; restore faces one by one"
        )
    with torch.no_grad():
        return nearest(embedder(crops.float()), people)


def nearest(vectors: Tensor, people: Sequence[Person]) -> list[Person | None]:
    """For each embedding (B, D) the person most like it, None where none is likely. ``people`` holds at least one."""
    likeness = vectors @ torch.stack([person.embedding for person in people]).T.to(vectors)
    best, index = likeness.max(dim=1)
    return [people[i] if value >= LIKELY else None for value, i in zip(best.tolist(), index.tolist(), strict=True)]


def factor_like(references: Tensor, crop: Tensor) -> float:
    """By how much good crops (R, 3, 512, 512) must be :func:`shrunk` for details as fine as those of ``crop`` (3, 512, 512).

    One factor of :data:`FACTORS` for all: the one whose octaves, as shares of the picture's contrast, are nearest.
    """
    wanted = _profile(crop[None])
    errors = [float((_profile(shrunk(references, factor)).mean(0) - wanted[0]).abs().sum()) for factor in FACTORS]
    return FACTORS[min(range(len(FACTORS)), key=errors.__getitem__)]


def shrunk(crops: Tensor, factor: float) -> Tensor:
    """Crops (B, 3, S, S) seen through ``S / factor`` pixels and enlarged again: what a small face in a photo is cut out as."""
    if factor == 1.0:
        return crops
    side = max(4, round(crops.shape[-1] / factor))
    small = F.interpolate(crops, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return F.interpolate(small, size=crops.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def _profile(crops: Tensor) -> Tensor:
    """(B, OCTAVES): log of each octave's share of the contrast."""
    luma = trust.luma(crops)
    return (trust.bands(luma) / trust.contrast(luma)[:, None]).clamp_min(1e-3).log()
