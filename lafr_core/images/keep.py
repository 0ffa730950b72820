"""Masks of what a photo keeps as it is, whatever a face is restored to: hands, hair, glasses, a microphone."""

from __future__ import annotations

from torch import Tensor

from ..errors import InputError
from .photos import Photo


def keep_mask(mask: Photo, photo: Photo, factor: int = 1) -> Tensor:
    """The brightness of a mask picture of the size (H, W) of ``photo``, as large as the photo enlarged ``factor`` times.

    (1, 1, factor * H, factor * W) in [0, 1]: 1, white, where the photo stays. Raises InputError for a mask of another size.
    """
    light = mask.pixels.mean(0, keepdim=True)
    (h, w), (height, width) = light.shape[-2:], photo.stored.shape[-2:]
    if (h, w) != (height, width):
        raise InputError(f"keep mask: expected the photo's {width}x{height} pixels, got {w}x{h}; save it at the photo's size")
    return light.repeat_interleave(factor, -2).repeat_interleave(factor, -1)[None]
