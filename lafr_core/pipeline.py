"""The whole job, in the one place that knows the order of the stages.

image -detect-> faces -crop-> crops -encode-> z_lq -align-> z_al -prior-> z -decode-> crops' -colour, grain, paste-> image
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import color, grain
from .crop import crop_faces, place
from .detect import detect_faces
from .errors import InputError
from .identity import cosine
from .masks import check_parser
from .paste import paste_into
from .settings import RestoreSettings
from .types import Aligner, Box, Detector, Embedder, Face, Parser, Prior, Progress, Sampler, Vae, ignore_progress


@dataclass(frozen=True)
class Parts:
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


@dataclass(frozen=True)
class Restoration:
    """What one restoration gives back."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], same size, dtype and device as the input. Rows without faces are bit-identical to the input."""
    faces: tuple[Face, ...]
    """All faces of all rows, placed, ``identity`` set when an embedder was at hand; by row, then in the chosen order."""
    masks: Tensor
    """(B, 1, H, W) in [0, 1]: where the images were changed."""


def restore_faces(
    images: Tensor,
    parts: Parts,
    settings: RestoreSettings,
    *,
    boxes: Sequence[Sequence[Box]] | None = None,
    progress: Progress = ignore_progress,
) -> Restoration:
    """Detect, restore and paste back every face of a batch of photos of one size.

    images: (B, 3, H, W) float RGB in [0, 1], any device. boxes: per photo, hand-given face boxes instead of
    the detector's search.
    No face is a result, not an error: that photo comes back bit-identical, as does every photo at strength 0.
    """
    check_images(images)
    check_parser(parts.parser, settings)
    faces = [place(face) for face in detect_faces(images, parts.detector, settings, boxes=boxes, progress=progress)]
    pasted, masks = images.clone(), images.new_zeros((images.shape[0], 1, *images.shape[-2:]))
    done: list[Face] = []
    for start in range(0, len(faces), settings.batch_size):  # crops live for one batch: memory does not grow with the faces
        batch = faces[start : start + settings.batch_size]
        restored, scored = restore_crops(crop_faces(images, batch), batch, parts, settings)
        paste_into(pasted, masks, scored, restored, settings, parser=parts.parser)
        done += scored
        progress("restore", len(done), len(faces))
    return Restoration(pasted, tuple(done), masks)


def restore_crops(
    crops: Tensor,
    faces: Sequence[Face],
    parts: Parts,
    settings: RestoreSettings,
    *,
    progress: Progress = ignore_progress,
) -> tuple[Tensor, list[Face]]:
    """Crops (N, 3, 512, 512) and their faces -> restored crops and the faces with ``identity`` set. N may be 0.

    Works ``settings.batch_size`` crops at a time on ``parts.device``; results return to the crops' device and dtype.
    """
    if len(faces) != crops.shape[0]:
        raise InputError(f"restore_crops: expected one face a crop, got {len(faces)} faces and {crops.shape[0]} crops")
    restored: list[Tensor] = []
    scored: list[Face] = []
    with torch.no_grad():
        for start in range(0, len(faces), settings.batch_size):
            batch = crops[start : start + settings.batch_size].to(parts.device, torch.float32)
            out = restore_pixels(batch, parts, settings.fidelity, settings.detail)
            out = color.match_color(out, batch, settings.color)
            out = grain.match_grain(out, batch, settings.grain)
            restored.append(out.to(crops))
            identities = cosine(parts.embedder, batch, out) if parts.embedder is not None else [None] * len(batch)
            scored += [replace(face, identity=value) for face, value in zip(faces[start:], identities, strict=False)]
            progress("restore", len(scored), len(faces))
    return (torch.cat(restored) if restored else crops.clone()), scored


def restore_pixels(crops: Tensor, parts: Parts, fidelity: float, detail: float = 1.0) -> Tensor:
    """Crops (B, 3, 512, 512) in [0, 1] through encode, align, prior and decode; nothing else. Result in [0, 1].

    ``detail`` in [0, 1]: how far the latents go from the aligned to the prior's (or the sampler's); at 0 that stage is skipped.
    """
    latents = parts.vae.encode(crops)
    if parts.aligner is not None:
        latents = parts.aligner(latents, fidelity).latents
    if detail > 0 and (parts.sampler is not None or parts.prior is not None):
        finished = parts.sampler(latents, crops) if parts.sampler is not None else parts.prior(latents)  # type: ignore[misc]
        latents = torch.lerp(latents, finished, detail)
    return parts.vae.decode(latents)


def check_images(images: Tensor) -> None:
    """Raise InputError unless ``images`` is a finite float (B, 3, H, W) batch with B, H and W at least 1."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(f"images: expected (B, 3, H, W) RGB with at least one pixel, got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise InputError(f"images: expected a float tensor in [0, 1], got {images.dtype}; divide 8-bit pixels by 255")
    if not bool(torch.isfinite(images).all()):
        raise InputError("images: contain NaN or infinite values; check the node or decoder that made them")
