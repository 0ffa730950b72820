"""Restored crops -> photo. All work on a face happens in the face's own region, so its cost does not depend on the photo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import CROP_SIZE, compose, crop_bounds
from ..settings import RestoreSettings
from ..types import Face, Parser, Progress, from_unit, ignore_progress, to_unit
from .masks import crop_mask
from .resample import resample

STRIP = 1 << 20
"""Photo pixels composited at a time: bounds the memory of a face that fills a big photo."""


def paste_faces(
    images: Tensor,
    faces: Sequence[Face],
    restored: Tensor,
    settings: RestoreSettings,
    *,
    parser: Parser | None = None,
    keep: Tensor | None = None,
    progress: Progress = ignore_progress,
) -> tuple[Tensor, Tensor]:
    """Blend restored crops into their photos.

    images (B, 3, H, W) float in [0, 1]; faces: N placed faces, ``image_index`` picks the row; restored (N, 3, 512, 512)
    in [0, 1]. Returns new (images (B, 3, H, W), masks (B, 1, H, W)), dtype and device of ``images``. The mask is the weight
    that restored pixels have in the result: ``settings.strength`` times ``settings.mask`` with its feather; where it is 0
    the image is bit-identical to the input. keep (B or 1, 1, H, W) in [0, 1]: 1 leaves the photo as it is there (a hand, a
    microphone, glasses), 0 pastes as usual. Faces are composited in order; a later one covers an earlier one. Strength 0
    or no faces change nothing. Raises InputError when faces and crops do not fit together or the crops hold NaN,
    SettingsError for mask "parse" without a parser.
    """
    if not images.is_floating_point():
        raise InputError(f"paste: expected float images in [0, 1], got {images.dtype}; divide 8-bit pixels by 255")
    pasted = images.clone()
    masks = images.new_zeros((images.shape[0], 1, *images.shape[-2:]))
    paste_into(pasted, masks, faces, restored, settings, parser=parser, keep=keep, progress=progress)
    return pasted, masks


def paste_into(
    images: Tensor,
    masks: Tensor,
    faces: Sequence[Face],
    restored: Tensor,
    settings: RestoreSettings,
    *,
    parser: Parser | None = None,
    keep: Tensor | None = None,
    progress: Progress = ignore_progress,
) -> None:
    """:func:`paste_faces` in place, for a caller that pastes a photo's faces a few at a time.

    images and masks (B, 1, H, W) are changed; masks are float and start at 0. Images may be as files store them, uint8 or
    uint16: only the regions of faces become float. Same contract and errors otherwise.
    """
    _check(images, faces, restored)
    check_keep(keep, images)
    if settings.strength == 0:
        return
    shared = crop_mask(settings, restored[:0]) if settings.mask != "parse" else None
    for index, face in enumerate(faces):
        crop = restored[index].to(images.device, torch.float32)
        mask = crop_mask(settings, crop[None], parser) if shared is None else shared
        row = face.image_index
        kept = None if keep is None else keep[row if len(keep) > 1 else 0]
        _composite(images[row], masks[row], face, crop, mask[0].to(crop) * settings.strength, kept)
        progress("paste", index + 1, len(faces))


def _composite(image: Tensor, weights: Tensor, face: Face, crop: Tensor, mask: Tensor, keep: Tensor | None) -> None:
    """Blend one crop (3, 512, 512) into ``image`` (3, H, W) and its weight into ``weights`` (1, H, W), both in place.

    keep: (1, H, W) in [0, 1], where the image stays as it is.
    """
    assert face.matrix is not None  # _check has seen to it
    x0, y0, x1, y1 = crop_bounds(face.matrix, (image.shape[-2], image.shape[-1]))
    if x1 <= x0 or y1 <= y0:
        return
    rows = max(1, STRIP // (x1 - x0))
    for top in range(y0, y1, rows):
        bottom = min(top + rows, y1)
        to_crop = compose(face.matrix, ((1.0, 0.0, float(x0)), (0.0, 1.0, float(top))))
        size = (bottom - top, x1 - x0)
        # Beyond the crop the mask is 0, so that nothing of the repeated border pixels there is used.
        weight = resample(mask, to_crop, size, mode="bilinear", padding="zeros").clamp(0, 1)
        weight = weight.to(image.dtype) if image.is_floating_point() else weight
        if keep is not None:
            weight = weight * (1 - keep[:, top:bottom, x0:x1].to(weight))
        new = resample(crop, to_crop, size).clamp(0, 1)
        old = image[:, top:bottom, x0:x1]
        seen = to_unit(old)  # float16 photos are blended in float32
        blend = seen + (new - seen) * weight.float()
        # Written only where the weight is not 0: arithmetic may not touch the other pixels, not even in the last bit.
        if image.is_floating_point():
            old.copy_(torch.where(weight > 0, blend.to(image.dtype), old))
        else:
            old.copy_(from_unit(torch.where(weight > 0, blend, seen), image.dtype))
        part = weights[:, top:bottom, x0:x1]
        part.add_(weight * (1 - part))


def check_keep(keep: Tensor | None, images: Tensor) -> None:
    """Raise InputError unless ``keep`` is None or (B or 1, 1, H, W) in [0, 1] for images (B, 3, H, W)."""
    if keep is None:
        return
    rows, size = len(images), tuple(images.shape[-2:])
    if keep.ndim != 4 or keep.shape[0] not in (1, rows) or keep.shape[1] != 1 or tuple(keep.shape[-2:]) != size:
        raise InputError(f"keep: expected a mask ({rows} or 1, 1, {size[0]}, {size[1]}), got {tuple(keep.shape)}")
    low, high = (float(value) for value in torch.aminmax(keep))
    if not (low >= 0 and high <= 1):
        raise InputError(f"keep: expected values in [0, 1], got {low:g} to {high:g}")


def _check(images: Tensor, faces: Sequence[Face], restored: Tensor) -> None:
    whole = images.dtype in (torch.uint8, getattr(torch, "uint16", torch.uint8))
    if images.ndim != 4 or images.shape[1] != 3 or not (images.is_floating_point() or whole):
        raise InputError(
            f"paste: expected images (B, 3, H, W) in [0, 1] or as stored, got {tuple(images.shape)} {images.dtype}"
        )
    if tuple(restored.shape) != (len(faces), 3, CROP_SIZE, CROP_SIZE):
        raise InputError(
            f"paste: expected one crop a face, ({len(faces)}, 3, {CROP_SIZE}, {CROP_SIZE}), got {tuple(restored.shape)}; "
            "paste the crops together with the faces they were cut from"
        )
    if not bool(restored.sum(dtype=torch.float32).isfinite()):  # one NaN or infinity makes the sum one
        raise InputError("paste: the restored crops contain NaN or infinite values; run VAE and prior in float32")
    for number, face in enumerate(faces):
        if face.matrix is None:
            raise InputError(f"paste: face {number} has no matrix; call lafr_core.faces.crop.place(face) first")
        if not 0 <= face.image_index < images.shape[0]:
            raise InputError(
                f"paste: face {number} belongs to image {face.image_index}, got a batch of {images.shape[0]}; "
                "paste into the images the faces were found in"
            )
