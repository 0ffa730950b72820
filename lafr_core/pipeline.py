"""The whole job, in the one place that knows the order of the stages.

image -detect-> faces -crop-> crops -encode-> z_lq -align-> z_al -prior-> z -decode-> crops' -colour, grain, paste-> image
                                                      reference photos lend -^
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .faces import color, grain, people, trust
from .faces.crop import crop_faces, enlarge, place
from .faces.detect import find_faces, left_out
from .faces.identity import cosine, likeness
from .faces.masks import check_parser
from .faces.paste import check_keep, paste_into
from .latent import guidance, lending
from .settings import RestoreSettings
from .types import Box, Face, Models, Person, Progress, ignore_progress

REFERENCE_WEIGHT = 0.75
"""How much references lend unless told otherwise. Measured (docs/identity.md): all of it likens a face most, three quarters
keep five sixths of that and about the best PSNR, and forgive more where the reference does not fit."""

OVERSHOOT = 0.05
"""How far values may lie outside [0, 1]: what bicubic and Lanczos resampling leave at hard edges."""


@dataclass(frozen=True)
class References:
    """People whose good photos help to restore their faces."""

    people: tuple[Person, ...] = ()
    weight: float = REFERENCE_WEIGHT
    """How much the photos lend, 0 (nothing: bit-identical to no references) to 1."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight <= 1.0:
            raise InputError(f"reference weight: expected 0 to 1, got {self.weight}")


NO_REFERENCES = References()


@dataclass(frozen=True)
class RestoredBatch:
    """What one restoration gives back."""

    images: Tensor
    """(B, 3, H, W) in [0, 1], same size, dtype and device as what was pasted into: the input, or its enlargement. Rows without
    faces are bit-identical to that."""
    faces: tuple[Face, ...]
    """All faces of all rows, placed, in pixels of the input, by row, then in the chosen order; ``change`` and ``trust`` are set
    when an embedder was at hand, ``person`` and ``likeness`` where a reference person was."""
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
    enlarged: Tensor | None = None,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> RestoredBatch:
    """Detect, restore and paste back every face of a batch of photos of one size.

    images: (B, 3, H, W) float RGB in [0, 1], any device. boxes: per photo, hand-given face boxes instead of
    the detector's search. keep: (B or 1, 1, H, W) in [0, 1], 1 where the photo stays as it is. references: people whose good
    photos help; each face takes the one it is most like, if likely. enlarged: the same photos a whole number of times as large,
    (B, 3, k*H, k*W): faces are found and cut out in ``images`` and pasted there, with all that was restored; ``images`` and
    ``masks`` of the result, and ``keep``, then have that size.
    No face is a result, not an error: that photo comes back bit-identical, as does every photo at strength 0.
    """
    check_images(images)
    canvas = images if enlarged is None else enlarged
    masks = images.new_zeros((images.shape[0], 1, *canvas.shape[-2:]))
    return _restore(images, canvas, masks, models, settings, boxes, keep, references, progress)


def restore_stored(
    image: Tensor,
    models: Models,
    settings: RestoreSettings,
    *,
    boxes: Sequence[Box] | None = None,
    keep: Tensor | None = None,
    enlarged: Tensor | None = None,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> RestoredBatch:
    """:func:`restore_faces` on one photo as a file stores it, in little memory: only the regions of faces become float.

    image: (1 or 3, H, W) uint8 or uint16, 1 = gray, or float in [0, 1]; enlarged: (1 or 3, k*H, k*W), same dtype. ``images``
    of the result is (1, 3, H, W) of that dtype, or as large as ``enlarged``; it is the image itself, not a copy, where nothing
    was changed. ``masks`` is float32.
    """
    if image.is_floating_point():
        check_images(image[None].expand(-1, 3, -1, -1))
    images = image.expand(3, -1, -1)[None]
    canvas = images if enlarged is None else enlarged.expand(3, -1, -1)[None]
    # NumPy's zeros take no memory where nobody writes: outside the faces.
    masks = torch.from_numpy(np.zeros((1, 1, *canvas.shape[-2:]), np.float32)).to(canvas.device)
    given = None if boxes is None else [boxes]
    return _restore(images, canvas, masks, models, settings, given, keep, references, progress, share=True)


def _restore(
    images: Tensor,
    canvas: Tensor,
    masks: Tensor,
    models: Models,
    settings: RestoreSettings,
    boxes: Sequence[Sequence[Box]] | None,
    keep: Tensor | None,
    references: References,
    progress: Progress,
    share: bool = False,
) -> RestoredBatch:
    """The stages, in their order. ``canvas``: a copy of it is pasted into. ``masks``, zeros, are filled. share: where there is
    no face, the result is ``canvas`` itself.
    """
    check_parser(models.parser, settings)
    factor = _factor(images, canvas)
    check_keep(keep, canvas)
    found = find_faces(images, models.detector, settings, boxes=boxes, progress=progress)
    faces = [place(face) for face in found.faces]
    known = _whose_faces(images, faces, models, references)
    pasted = canvas if share and not faces else canvas.clone()
    done: list[Face] = []
    for start in range(0, len(faces), settings.batch_size):  # crops live for one batch: memory does not grow with the faces
        batch = faces[start : start + settings.batch_size]
        lenders, weight = known[start : start + settings.batch_size], references.weight
        restored, scored = restore_crops(crop_faces(images, batch), batch, models, settings, lenders=lenders, weight=weight)
        placed = [enlarge(face, factor) for face in scored]
        paste_into(pasted, masks, placed, restored, settings, parser=models.parser, keep=keep)
        done += scored
        progress("restore", len(done), len(faces))
    return RestoredBatch(pasted, tuple(done), masks, found.counts, found.faceless)


def restore_crops(
    crops: Tensor,
    faces: Sequence[Face],
    models: Models,
    settings: RestoreSettings,
    *,
    lenders: Sequence[Person | None] = (),
    weight: float = 1.0,
    progress: Progress = ignore_progress,
) -> tuple[Tensor, list[Face]]:
    """Crops (N, 3, 512, 512) and their faces -> restored crops, and the faces with what is known of them. N may be 0.

    lenders: for each face the person whose photos help it, or None; () = nobody. weight: how much they lend, 0 to 1.
    Works ``settings.batch_size`` crops at a time on ``models.device``; results return to the crops' device and dtype.
    """
    if len(faces) != crops.shape[0]:
        raise InputError(f"restore_crops: expected one face a crop, got {len(faces)} faces and {crops.shape[0]} crops")
    lenders = lenders or [None] * len(faces)
    restored: list[Tensor] = []
    scored: list[Face] = []
    with torch.no_grad():
        for start in range(0, len(faces), settings.batch_size):
            batch = crops[start : start + settings.batch_size].to(models.device, torch.float32)
            known = lenders[start : start + settings.batch_size]
            out = restore_pixels(batch, models, settings.fidelity, settings.detail, lenders=known, weight=weight)
            out = color.match_color(out, batch, settings.color)
            out = grain.match_grain(out, batch, settings.grain)
            restored.append(out.to(crops))
            scored += judged(faces[start : start + settings.batch_size], batch, out, models, known)
            progress("restore", len(scored), len(faces))
    return (torch.cat(restored) if restored else crops.clone()), scored


def restore_pixels(
    crops: Tensor,
    models: Models,
    fidelity: float,
    detail: float = 1.0,
    *,
    lenders: Sequence[Person | None] = (),
    weight: float = 1.0,
) -> Tensor:
    """Crops (B, 3, 512, 512) in [0, 1] through encode, align, prior and decode; nothing else. Result in [0, 1].

    ``detail`` in [0, 1]: how far the latents go from the aligned to the prior's (or the sampler's); at 0 that stage is skipped.
    lenders: for each crop the person whose photos help, or None. What they lend comes after a prior and before a sampler.
    """
    return models.vae.decode(restore_latents(crops, models, fidelity, detail, lenders=lenders, weight=weight))


def restore_latents(
    crops: Tensor,
    models: Models,
    fidelity: float,
    detail: float = 1.0,
    *,
    lenders: Sequence[Person | None] = (),
    weight: float = 1.0,
) -> Tensor:
    """:func:`restore_pixels` without its last step: the finished latents (B, C, h, w) that the VAE decodes."""
    chain = Chain(models, fidelity, detail)
    aligned = chain.align(crops)
    latents = chain.finish(aligned)
    if weight > 0 and any(person is not None for person in lenders):
        rows = zip(crops.split(1), aligned.split(1), latents.split(1), lenders, strict=True)
        latents = torch.cat(
            [
                row if lender is None else chain.help(row, chain.lent(al, crop, lender), lender, weight)
                for crop, al, row, lender in rows
            ]
        )
    if models.sampler is not None and detail > 0:
        latents = torch.lerp(latents, models.sampler(latents, crops), detail)
    return latents


@dataclass(frozen=True)
class Chain:
    """The stages between crop and latents, for faces and for the reference photos that are sent after them."""

    models: Models
    fidelity: float
    detail: float

    def align(self, crops: Tensor) -> Tensor:
        latents = self.models.vae.encode(crops)
        return latents if self.models.aligner is None else self.models.aligner(latents, self.fidelity).latents

    def finish(self, aligned: Tensor) -> Tensor:
        """The aligned latents through the prior. A sampler comes after what is lent: it is slow and draws at random."""
        if self.models.prior is None or self.models.sampler is not None or self.detail == 0:
            return aligned
        return torch.lerp(aligned, self.models.prior(aligned), self.detail)

    def lent(self, aligned: Tensor, crop: Tensor, lender: Person) -> Tensor:
        """What the lender's photos have to add to the finished latents (1, C, h, w) of one crop."""
        good = lender.crops.to(crop)
        factor = people.factor_like(good, crop[0])
        poor = self.align(people.shrunk(good, factor))
        # The photos are brought to where the face lies, then made poor once more: now they lose what this face lost.
        good = lending.fetched(good, lending.offsets(aligned, poor))
        poor = self.align(people.shrunk(good, factor))
        lost = self.models.vae.encode(good) - self.finish(poor)
        return lending.even_eyes(lending.borrowed(aligned, poor, lost))

    def help(self, latents: Tensor, lent: Tensor, lender: Person, weight: float) -> Tensor:
        """The finished latents (1, C, h, w) of one crop with ``weight`` of what is lent, as far as the embedder agrees."""
        if self.models.embedder is None:
            return latents + weight * lent
        decode, embedder = self.models.vae.decode, self.models.embedder
        return guidance.approach(latents, latents + lent, decode, embedder, lender.embedding, weight)


def judged(
    faces: Sequence[Face], before: Tensor, after: Tensor, models: Models, lenders: Sequence[Person | None]
) -> list[Face]:
    """The faces of crops (B, 3, 512, 512) with the three read-outs ``change``, ``trust`` and ``likeness``, and whose they are.

    before and after restoring; lenders: the reference person of each, or None. Without an embedder there are no read-outs.
    """
    names = [None if person is None else person.name for person in lenders]
    if models.embedder is None:
        return [replace(face, person=name) for face, name in zip(faces, names, strict=True)]
    changes = cosine(models.embedder, before, after)
    likenesses = [
        None if person is None else likeness(models.embedder, crop[None], person.embedding)
        for crop, person in zip(after, lenders, strict=True)
    ]
    trusts: Sequence[float | None] = trust.estimate(before, after, models.embedder, likenesses) or [None] * len(faces)
    return [
        replace(face, change=c, trust=t, likeness=k, person=name)
        for face, c, t, k, name in zip(faces, changes, trusts, likenesses, names, strict=True)
    ]


def _whose_faces(images: Tensor, faces: Sequence[Face], models: Models, references: References) -> list[Person | None]:
    """For each face its reference person. Asked of all faces of a photo at once: a lone face needs no likeness."""
    if not references.people:
        return [None] * len(faces)
    if len(references.people) == 1 and len(faces) == images.shape[0] == 1:
        return [references.people[0]]
    found: list[Person | None] = []
    for face in faces:
        crop = crop_faces(images, [face]).to(models.device, torch.float32)
        found += people.whose(crop, references.people, models.embedder)
    return found


def _factor(images: Tensor, canvas: Tensor) -> int:
    """How many times as large as ``images`` the ``canvas`` is. Raises InputError where it is no enlargement of them."""
    factor = max(1, canvas.shape[-1] // images.shape[-1])
    expected = (*images.shape[:2], factor * images.shape[-2], factor * images.shape[-1])
    if tuple(canvas.shape) != expected or canvas.dtype != images.dtype:
        raise InputError(
            f"enlarged: expected {images.dtype} {tuple(images.shape)} a whole number of times as large, got {canvas.dtype} "
            f"{tuple(canvas.shape)}; enlarge the same pictures with lafr_core.images.enlarge"
        )
    return factor


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
