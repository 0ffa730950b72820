"""What critics and embedders are shown of a face: moved, nearer, mirrored; the same view for both sides of a comparison."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.geometry import CROP_SIZE
from train.precision import channels_last

CLOSE = 144 / CROP_SIZE
"""Side of a close-up as a share of the face."""
LEFT_EYE, MOUTH = (176 / CROP_SIZE, 116 / CROP_SIZE), (300 / CROP_SIZE, 184 / CROP_SIZE)
"""Top and left of the close-ups of an aligned face, as shares of it. The right eye's is the left one's mirror image."""


def look(pictures: Tensor, places: Tensor, side: int) -> Tensor:
    """(B, C, side, side) of (B, C, S, S): from pixel ``places[:, :2]`` (top, left) on, every ``1 / places[:, 2]`` pixels.

    Bilinear; beyond the picture its border repeats. A network that looks in steps of four pixels, always at the same ones, is
    blind to a grid of four pixels: hence whole views that are only moved.
    """
    top, left, near = (places[:, k].view(-1, 1, 1).to(pictures.device, torch.float32) for k in range(3))
    reach = torch.arange(side, device=pictures.device, dtype=torch.float32) + 0.5
    ys, xs = (top + reach[:, None] / near).expand(-1, side, side), (left + reach / near).expand(-1, side, side)
    grid = torch.stack([xs, ys], -1) * 2 / pictures.shape[-1] - 1
    return channels_last(F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False))


def view_box(places: Tensor, side: int, whole: int) -> Tensor:
    """(B, 4): the boxes (train.judges.projected) of views of ``side`` pixels in faces of ``whole``."""
    extent = (side / places[:, 2:] / whole).expand(-1, 2)
    return torch.cat([places[:, :2] / whole, extent], 1).float()


def close_ups(pictures: Tensor) -> Tensor:
    """(3B, C, S/2, S/2) of faces (B, C, S, S): all left eyes, then all right ones, mirrored, then all mouths."""
    side = pictures.shape[-1]

    def part(pictures: Tensor, top: float, left: float) -> Tensor:
        rows, columns = (slice(round(v * side), round(v * side) + round(CLOSE * side)) for v in (top, left))
        return pictures[..., rows, columns]

    parts = [part(pictures, *LEFT_EYE), part(pictures.flip(-1), *LEFT_EYE), part(pictures, *MOUTH)]
    return channels_last(F.interpolate(torch.cat(parts), size=(side // 2, side // 2), mode="bilinear", align_corners=False))


def close_up_boxes(count: int, device: torch.device) -> Tensor:
    """(3 count, 4): where :func:`close_ups` of ``count`` faces lie; a mirrored right eye lies where a left one does."""
    boxes = [[*at, CLOSE, CLOSE] for at in (LEFT_EYE, LEFT_EYE, MOUTH)]
    return torch.tensor(boxes, device=device).repeat_interleave(count, 0)


def turned(pictures: Tensor, turns: Tensor) -> Tensor:
    """(B, C, S, S) moved and mirrored by ``turns`` (B, 3): right and down as shares of half a face, and -1 to mirror, else 1.

    An embedder that sees a face from slightly other places each time cannot be pleased by what only one of them shows.
    """
    affine = pictures.new_zeros(len(pictures), 2, 3, dtype=torch.float32)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = turns[:, 2], 1, turns[:, :2]
    grid = F.affine_grid(affine, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures.float(), grid, padding_mode="border", align_corners=False)
