"""ComfyUI's tensor layouts <-> ours. The only place that knows both; imports no host.

ComfyUI: IMAGE (B, H, W, 3 or 4), MASK (B, H, W), float32 in [0, 1]. Ours: images (B, 3, H, W), masks (B, 1, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..lafr_core.errors import InputError
from ..lafr_core.types import Face


def to_images(image: Tensor) -> Tensor:
    """IMAGE (B, H, W, 1, 3 or 4) -> (B, 3, H, W) float32; alpha is left behind, a single channel is repeated."""
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"IMAGE: expected (B, H, W, 3) with at least one pixel, got {tuple(image.shape)}; connect a picture")
    if not bool(torch.isfinite(image).all()):
        raise InputError("IMAGE: contains NaN or infinite values; check the node that made it")
    pixels = image.movedim(-1, 1).float()
    return pixels.repeat(1, 3, 1, 1) if pixels.shape[1] == 1 else pixels[:, :3]


def to_image(images: Tensor, like: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) -> IMAGE (B, H, W, 3), or (B, H, W, 4) with the alpha of ``like`` where that has one. Contiguous float32."""
    out = images.float().movedim(1, -1)
    if like is not None and like.shape[-1] == 4:
        out = torch.cat([out, like[..., 3:].to(out)], dim=-1)
    return out.contiguous()


def to_mask(masks: Tensor) -> Tensor:
    """(B, 1, H, W) -> MASK (B, H, W) float32."""
    if masks.ndim != 4 or masks.shape[1] != 1:
        raise InputError(f"mask: expected (B, 1, H, W), got {tuple(masks.shape)}")
    return masks[:, 0].float().contiguous()


def to_keep(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """MASK -> (B or 1, 1, H, W) for images (B, 3, H, W), or None where nothing is to be kept.

    A mask of another size is scaled to the photos': a picture without alpha comes with one of 64x64 zeros.
    """
    if mask is None or not bool(mask.any()):
        return None
    rows = mask.reshape(-1, 1, *mask.shape[-2:]).float().clamp(0, 1)
    if len(rows) not in (1, len(images)):
        raise InputError(
            f"keep: expected 1 mask or as many as photos ({len(images)}), got {len(rows)}; connect one mask a photo"
        )
    if rows.shape[-2:] != images.shape[-2:]:
        rows = F.interpolate(rows, size=tuple(images.shape[-2:]), mode="bilinear", align_corners=False)
    return rows


def to_boxes(bounding_boxes: object, photos: int) -> list[list[tuple[float, float, float, float]]] | None:
    """BOUNDING_BOX -> boxes (x0, y0, x1, y1) per photo, or None for "none given".

    As the host's own nodes have it: a mapping with x, y, width, height, a list of them, or a single list in a list holds for
    every photo; else one list a photo. Raises InputError when the lists do not fit the number of photos.
    """
    if bounding_boxes is None:
        return None
    rows = list(bounding_boxes) if isinstance(bounding_boxes, (list, tuple)) else [bounding_boxes]
    if not any(isinstance(row, (list, tuple)) for row in rows):
        rows = [rows]
    if len(rows) == 1:
        rows = rows * photos
    if len(rows) != photos:
        raise InputError(f"BOUNDING_BOX: expected boxes for {photos} photos, got {len(rows)}; give one list of boxes a photo")
    return [[_to_box(box) for box in (row if isinstance(row, (list, tuple)) else [row])] for row in rows]


def from_faces(faces: Sequence[Face], photos: int) -> list[list[dict[str, Any]]]:
    """Faces -> BOUNDING_BOX, as the host's detectors give it: one list a photo, each box with label and score."""

    def box(face: Face) -> dict[str, Any]:
        place = {"x": face.box[0], "y": face.box[1], "width": face.width, "height": face.height}
        return {**place, "label": "face", "score": face.score}

    return [[box(face) for face in faces if face.image_index == photo] for photo in range(photos)]


def _to_box(box: object) -> tuple[float, float, float, float]:
    try:
        x, y, width, height = (float(box[key]) for key in ("x", "y", "width", "height"))  # type: ignore[index]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"BOUNDING_BOX: expected x, y, width and height, got {box!r}") from error
    if not (width > 0 and height > 0):
        raise InputError(f"BOUNDING_BOX: expected a width and height above 0, got {width:g} x {height:g}")
    return x, y, x + width, y + height
