"""Faces -> 512 crops at the FFHQ template, and the pixels they cover in the photo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import CROP_SIZE, FFHQ_TEMPLATE, compose, crop_bounds, enlarging, invert, scale_of, similarity, transform
from ..types import Face, Matrix, Point, to_unit
from .resample import resample


def place(face: Face) -> Face:
    """The face with its ``matrix`` set: the similarity that takes its five landmarks to the FFHQ-512 template."""
    return replace(face, matrix=similarity(face.landmarks, FFHQ_TEMPLATE))


def enlarge(face: Face, factor: int) -> Face:
    """The face where it is in its photo enlarged ``factor`` times; its crop is the same crop. 1 = the face itself."""
    if factor == 1:
        return face
    larger = enlarging(factor)
    (x0, y0), (x1, y1), *landmarks = transform(larger, [face.box[:2], face.box[2:], *face.landmarks])
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    return replace(
        face,
        box=(x0, y0, x1, y1),
        landmarks=(left_eye, right_eye, nose, left_mouth, right_mouth),
        matrix=None if face.matrix is None else compose(face.matrix, invert(larger)),
    )


def crop(image: Tensor, face: Face) -> Tensor:
    """The face's crop.

    Convention: image (3, H, W) float in [0, 1] -> (3, 512, 512), same dtype and device. ``face.matrix`` must be set (see
    :func:`place`). Pixels beyond the photo's border repeat the border. Faces larger than the crop are low-pass filtered
    first, so fine texture does not alias.
    """
    if image.ndim != 3:
        raise InputError(f"crop: expected one image (C, H, W), got {tuple(image.shape)}")
    if face.matrix is None:
        raise InputError("crop: the face has no matrix; call lafr_core.faces.crop.place(face) first")
    return warp(image, face.matrix, CROP_SIZE)


def crop_faces(images: Tensor, faces: Sequence[Face]) -> Tensor:
    """Crops (N, 3, 512, 512) of N placed faces; ``face.image_index`` picks the row of ``images`` (B, 3, H, W). N may be 0."""
    if not faces:
        dtype = images.dtype if images.is_floating_point() else torch.float32
        return images.new_zeros((0, images.shape[1], CROP_SIZE, CROP_SIZE), dtype=dtype)
    return torch.stack([crop(images[face.image_index], face) for face in faces])


def warp(image: Tensor, matrix: Matrix, size: int) -> Tensor:
    """(C, H, W) -> (C, size, size) through ``matrix`` (image -> crop, pixels); bicubic, border replicated, within [0, 1]."""
    height, width = image.shape[-2:]
    to_image = invert(matrix)
    # The low-pass filter for shrinking reads two crop pixels to each side, bicubic sampling two photo pixels more.
    margin = 4 + math.ceil(2 * scale_of(to_image))
    x0, y0, x1, y1 = crop_bounds(matrix, (height, width), size, margin)
    if x1 <= x0 or y1 <= y0:  # the crop lies wholly outside: the nearest border pixels are all there is
        x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
        x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    region = to_unit(image[:, y0:y1, x0:x1])
    to_region = compose(((1.0, 0.0, -float(x0)), (0.0, 1.0, -float(y0))), to_image)
    seen = resample(region, to_region, (size, size)).clamp(0, 1)
    return seen.to(image.dtype) if image.is_floating_point() else seen


def template_crops(crops: Tensor, template: Sequence[Point], size: int) -> Tensor:
    """FFHQ-template crops (B, C, 512, 512) -> (B, C, size, size) at another five-point template. Differentiable.

    What embedders and landmark networks take: the same face, another frame. Low-pass filtered before shrinking.
    """
    if crops.ndim != 4 or crops.shape[-1] != crops.shape[-2]:
        raise InputError(f"template_crops: expected square crops (B, C, S, S), got {tuple(crops.shape)}")
    side = crops.shape[-1]
    source = [((x + 0.5) * side / CROP_SIZE - 0.5, (y + 0.5) * side / CROP_SIZE - 0.5) for x, y in FFHQ_TEMPLATE]
    matrix = similarity(source, template)
    shrink = max(1.0, 1.0 / scale_of(matrix))
    small = max(1, round(side / shrink))
    if small != side:
        crops = F.interpolate(crops, size=(small, small), mode="bilinear", antialias=True, align_corners=False)
    inverse = torch.tensor(invert(matrix), dtype=crops.dtype, device=crops.device)
    axis = torch.arange(size, dtype=crops.dtype, device=crops.device)
    gy, gx = torch.meshgrid(axis, axis, indexing="ij")
    sx = inverse[0, 0] * gx + inverse[0, 1] * gy + inverse[0, 2]
    sy = inverse[1, 0] * gx + inverse[1, 1] * gy + inverse[1, 2]
    grid = torch.stack([(sx + 0.5) * 2 / side - 1, (sy + 0.5) * 2 / side - 1], dim=-1)
    grid = grid[None].expand(crops.shape[0], -1, -1, -1)
    return F.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)
