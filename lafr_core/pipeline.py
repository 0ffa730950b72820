"""The whole job, in the one place that knows the order of the stages.

image -detect-> faces -crop-> crops -encode-> z_lq -align-> z_al -prior-> z -decode-> crops' -colour, grain, paste-> image
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .errors import InputError
from .faces import color, grain
from .faces.crop import crop_faces, place
from .faces.detect import find_faces, left_out
from .faces.identity import cosine
from .faces.masks import check_parser
from .faces.paste import check_keep, paste_into
from .settings import RestoreSettings
from .types import Box, Face, Models, Progress, ignore_progress

OVERSHOOT = 0.05
"""How far values may lie outside [0, 1]: what bicubic and Lanczos resampling leave at hard edges."""


@dataclass(frozen=True)
class RestoredBatch:
    """What one restoration gives back."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], same size, dtype and device as the input. Rows without faces are bit-identical to the input."""
    faces: tuple[Face, ...]
    """All faces of all rows, placed, ``change`` set when an embedder was at hand; by row, then in the chosen order."""
    masks: Tensor
    """(B, 1, H, W) in [0, 1]: where the images were changed."""
    found: tuple[int, ...] = ()
    """How many faces each row has, before the settings chose among them."""
    faceless: tuple[tuple[int, Box], ...] = ()
    """Hand-given boxes that cover no face, (row, box): left alone."""

    def left_out(self, row: int, settings: RestoreSettings) -> tuple[str, ...]:
        """What of a row was left as it was, in words: faces that the settings left out, boxes without a face. () = nothing."""
        return left_out(self.faces, self.found, self.faceless, row, settings)


def restore_faces(
    images: Tensor,
    models: Models,
    settings: RestoreSettings,
    *,
    boxes: Sequence[Sequence[Box]] | None = None,
    keep: Tensor | None = None,
    progress: Progress = ignore_progress,
) -> RestoredBatch:
    """Detect, restore and paste back every face of a batch of photos of one size.

    images: (B, 3, H, W) float RGB in [0, 1], any device. boxes: per photo, hand-given face boxes instead of
    the detector's search. keep: (B or 1, 1, H, W) in [0, 1], 1 where the photo stays as it is.
    No face is a result, not an error: that photo comes back bit-identical, as does every photo at strength 0.
    """
    check_images(images)
    check_parser(models.parser, settings)
    check_keep(keep, images)
    found = find_faces(images, models.detector, settings, boxes=boxes, progress=progress)
    faces = [place(face) for face in found.faces]
    pasted, masks = images.clone(), images.new_zeros((images.shape[0], 1, *images.shape[-2:]))
    done: list[Face] = []
    for start in range(0, len(faces), settings.batch_size):  # crops live for one batch: memory does not grow with the faces
        batch = faces[start : start + settings.batch_size]
        restored, scored = restore_crops(crop_faces(images, batch), batch, models, settings)
        paste_into(pasted, masks, scored, restored, settings, parser=models.parser, keep=keep)
        done += scored
        progress("restore", len(done), len(faces))
    return RestoredBatch(pasted, tuple(done), masks, found.counts, found.faceless)


def restore_crops(
    crops: Tensor,
    faces: Sequence[Face],
    models: Models,
    settings: RestoreSettings,
    *,
    progress: Progress = ignore_progress,
) -> tuple[Tensor, list[Face]]:
    """Crops (N, 3, 512, 512) and their faces -> restored crops and the faces with ``change`` set. N may be 0.

    Works ``settings.batch_size`` crops at a time on ``models.device``; results return to the crops' device and dtype.
    """
    if len(faces) != crops.shape[0]:
        raise InputError(f"restore_crops: expected one face a crop, got {len(faces)} faces and {crops.shape[0]} crops")
    restored: list[Tensor] = []
    scored: list[Face] = []
    with torch.no_grad():
        for start in range(0, len(faces), settings.batch_size):
            batch = crops[start : start + settings.batch_size].to(models.device, torch.float32)
            out = restore_pixels(batch, models, settings.fidelity, settings.detail)
            out = color.match_color(out, batch, settings.color)
            out = grain.match_grain(out, batch, settings.grain)
            restored.append(out.to(crops))
            identities = cosine(models.embedder, batch, out) if models.embedder is not None else [None] * len(batch)
            scored += [replace(face, change=value) for face, value in zip(faces[start:], identities, strict=False)]
            progress("restore", len(scored), len(faces))
    return (torch.cat(restored) if restored else crops.clone()), scored


def restore_pixels(crops: Tensor, models: Models, fidelity: float, detail: float = 1.0) -> Tensor:
    """Crops (B, 3, 512, 512) in [0, 1] through encode, align, prior and decode; nothing else. Result in [0, 1].

    ``detail`` in [0, 1]: how far the latents go from the aligned to the prior's (or the sampler's); at 0 that stage is skipped.
    """
    latents = models.vae.encode(crops)
    if models.aligner is not None:
        latents = models.aligner(latents, fidelity).latents
    if detail > 0 and (models.sampler is not None or models.prior is not None):
        finished = models.sampler(latents, crops) if models.sampler is not None else models.prior(latents)  # type: ignore[misc]
        latents = torch.lerp(latents, finished, detail)
    return models.vae.decode(latents)


def check_images(images: Tensor) -> None:
    """Raise InputError unless ``images`` is a finite float (B, 3, H, W) batch in [0, 1] with B, H and W at least 1.

    Resampling filters overshoot: values up to :data:`OVERSHOOT` outside [0, 1] pass.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        hint = "; move the channels to the front with .permute(0, 3, 1, 2)" if images.shape[-1:] == (3,) else ""
        raise InputError(f"images: expected (B, 3, H, W) RGB with at least one pixel, got {tuple(images.shape)}{hint}")
    if not images.is_floating_point():
        raise InputError(f"images: expected a float tensor in [0, 1], got {images.dtype}; divide 8-bit pixels by 255")
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("images: contain NaN or infinite values; check the node or decoder that made them")
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        signed = low < -OVERSHOOT and high <= 1 + OVERSHOOT
        hint = "map -1..1 with x * 0.5 + 0.5" if signed else "divide 0..255 by 255, or clamp"
        raise InputError(f"images: expected values in [0, 1], got {low:g} to {high:g}; {hint}")
