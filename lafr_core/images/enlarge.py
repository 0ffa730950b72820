"""Photos made larger by interpolation, in the bits that they are kept with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..types import from_unit
from .photos import MAX_PIXELS, Photo, in_words

FACTORS = (1, 2, 4)
"""How many times as large a photo may be made; 1 = as it is."""


Enlarge = Callable[[Tensor, int], Tensor]
"""Planes (C, H, W) as stored, and the factor -> planes of the same dtype, as many times as wide and high."""


def enlarged(photo: Photo, factor: int, *, max_pixels: int | None = None, enlarge: Enlarge | None = None) -> Photo:
    """The photo ``factor`` times as wide and high, with all that came with it; 1 = the photo itself.

    enlarge: makes the colours larger (an :class:`.upscaler.Upscaler`); None = Lanczos, three lobes, for every channel by
    itself, as alpha always is. The 8 or 16 bits are kept. Raises InputError for a factor that is not in FACTORS and for
    results of more than ``max_pixels`` (None = MAX_PIXELS).
    """
    check_factor(factor)
    if factor == 1:
        return photo
    height, width = (factor * side for side in photo.stored.shape[-2:])
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > limit:
        raise InputError(
            f"upscale {factor}: the result would have {width}x{height} pixels, the limit is {in_words(limit)}; "
            "take a smaller factor or raise the limit (--max-pixels)"
        )
    alpha = photo.stored_alpha
    return photo.with_pixels(
        (enlarge or enlarge_planes)(photo.stored, factor), None if alpha is None else enlarge_planes(alpha, factor)
    )


def enlarge_planes(planes: Tensor, factor: int) -> Tensor:
    """(C, H, W) uint8, uint16 or float in [0, 1] -> (C, factor*H, factor*W) of the same dtype, Lanczos, within its range."""
    return torch.stack([_plane(plane, factor) for plane in planes.detach().cpu()])


def check_factor(factor: int) -> None:
    """Raise InputError unless the factor is in FACTORS."""
    if factor not in FACTORS:
        raise InputError(f"upscale: expected {', '.join(map(str, FACTORS[:-1]))} or {FACTORS[-1]}, got {factor!r}")


def _plane(plane: Tensor, factor: int) -> Tensor:
    height, width = plane.shape
    size = (factor * width, factor * height)
    if plane.dtype == torch.uint8:
        return torch.from_numpy(np.array(_lanczos(Image.fromarray(plane.contiguous().numpy()), size)))
    # Pillow resizes 16 whole bits in its newest versions only, float32 in all of them, and float32 holds 16 bits.
    top = 1 if plane.is_floating_point() else 65535
    values = np.array(_lanczos(Image.fromarray(plane.numpy().astype(np.float32)), size)) / np.float32(top)
    return from_unit(torch.from_numpy(values).clamp(0, 1), plane.dtype)


def _lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)
