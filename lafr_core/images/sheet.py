"""Contact sheets: the same photo before and after, side by side, with a piece of each at 100 %."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..types import Point
from .draw import font
from .photos import Photo, to_pil

TILE = 384
"""Side of a picture and of a zoom on the sheet, in pixels."""
_MARGIN, _HEAD = 8, 28


@dataclass(frozen=True, eq=False)
class Row:
    """One photo in its versions."""

    label: str
    pictures: tuple[Tensor, ...]
    """(3, H, W) in [0, 1] each, one for each title of the sheet."""
    focus: Point | None = None
    """Centre of the zooms, in pixels of the first picture; None = where the first two differ most."""


def sheet(titles: Sequence[str], rows: Sequence[Row], tile: int = TILE) -> Image.Image:
    """An RGB picture: titles on top; for each row its label, its pictures scaled to fit ``tile``, and their zooms at 100 %.

    Pictures of other sizes than the first of their row are zoomed at the same relative place. A line of pictures is as high as
    its highest.
    """
    for row in rows:
        if len(row.pictures) != len(titles):
            raise InputError(
                f"sheet: expected {len(titles)} pictures ({', '.join(titles)}), got {len(row.pictures)} in {row.label!r}"
            )
    step = tile + _MARGIN
    lines = [line for row in rows for line in (row.label, *_lines(row, tile))]
    heights = [_HEAD if isinstance(line, str) else _MARGIN + max(picture.height for picture in line) for line in lines]
    page = Image.new("RGB", (_MARGIN + len(titles) * step, _HEAD + sum(heights)), "white")
    pen = ImageDraw.Draw(page)
    letters = font(16)
    for column, title in enumerate(titles):
        pen.text((_MARGIN + column * step, 6), title, fill="black", font=letters)
    top = _HEAD
    for line, height in zip(lines, heights, strict=True):
        if isinstance(line, str):
            pen.text((_MARGIN, top + 6), line, fill="black", font=letters)
        else:
            for column, picture in enumerate(line):
                page.paste(picture, (_MARGIN + column * step, top))
        top += height
    return page


def most_changed(before: Tensor, after: Tensor, window: int = 64) -> Point:
    """Centre (x, y) of the ``window`` in which two pictures (3, H, W) differ most; the middle of equal ones."""
    if before.shape != after.shape:
        after = F.interpolate(after[None], size=before.shape[-2:], mode="bilinear", align_corners=False)[0]
    change = (before - after).abs().mean(0, keepdim=True)[None]
    height, width = change.shape[-2:]
    if not bool((change > 0).any()):
        return (width - 1) / 2, (height - 1) / 2
    size = (min(window, height), min(window, width))
    means = F.avg_pool2d(change, size, stride=1)[0, 0]
    index = int(torch.argmax(means))
    return index % means.shape[1] + (size[1] - 1) / 2, index // means.shape[1] + (size[0] - 1) / 2


def _lines(row: Row, tile: int) -> tuple[list[Image.Image], list[Image.Image]]:
    """The row's pictures, each scaled to fit, and the zooms below them."""
    x, y = row.focus if row.focus is not None else most_changed(row.pictures[0], row.pictures[1])
    place = (x / row.pictures[0].shape[-1], y / row.pictures[0].shape[-2])
    return [_fitted(picture, tile) for picture in row.pictures], [_zoom(picture, place, tile) for picture in row.pictures]


def _fitted(picture: Tensor, tile: int) -> Image.Image:
    image = to_pil(Photo(picture))
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _zoom(picture: Tensor, place: tuple[float, float], tile: int) -> Image.Image:
    """``tile`` x ``tile`` pixels of the picture, one to one, around the relative ``place``; less where it is smaller."""
    height, width = picture.shape[-2:]
    left = min(max(0, round(place[0] * width - tile / 2)), max(0, width - tile))
    top = min(max(0, round(place[1] * height - tile / 2)), max(0, height - tile))
    return to_pil(Photo(picture[:, top : top + tile, left : left + tile]))
