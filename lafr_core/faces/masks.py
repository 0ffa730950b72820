"""Soft masks in crop space: which part of a restored crop is pasted, and how softly it ends."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError, SettingsError
from ..geometry import CROP_SIZE
from ..settings import RestoreSettings
from ..types import Parser

OVAL_CENTRE = (255.5, 266.0)
"""(x, y) of the oval in a 512 crop: between the eyes' and the mouth's middle, so that hairline and chin are equally far."""
OVAL_AXES = (225.0, 240.0)
"""Half width and half height where the oval has faded to 0. Inside its default soft edge lie forehead, ears and chin."""
CLOSING = 8
"""Gaps in a parsed face up to twice this many pixels (between glasses and skin, between lips) are filled."""
LEAST_FACE = 0.02
"""A parsed face covering less of the crop than this is a failed parse; such a crop gets the oval."""


def check_parser(parser: Parser | None, settings: RestoreSettings) -> None:
    """Raise SettingsError when the settings ask for mask "parse" and there is no parser."""
    if settings.mask != "parse":
        return
    if parser is None:
        raise SettingsError(
            "mask 'parse': expected facexlib's face parser, got none; install facexlib and put parsing_parsenet.pth or "
            "parsing_bisenet.pth into a model folder (LAFR_MODELS), or choose mask 'oval'"
        )


def crop_mask(settings: RestoreSettings, crops: Tensor | None = None, parser: Parser | None = None) -> Tensor:
    """The paste mask (1 or B, 1, 512, 512) float32 in [0, 1]: exactly 0 along the crop's border, exactly 1 inside.

    ``settings.mask`` picks the shape; ``settings.feather`` is the width of the soft edge as a share of the crop, 0 = hard edge.
    "parse" needs ``crops`` (B, 3, 512, 512) and a ``parser`` and gives one mask a crop; a crop in which the parser sees no face
    gets the oval. The other shapes give one mask for all. Raises SettingsError for "parse" without a parser.
    """
    width = settings.feather * CROP_SIZE
    device = crops.device if crops is not None else torch.device("cpu")
    if settings.mask == "square":
        return square(width).to(device)
    if settings.mask == "oval":
        return oval(width).to(device)
    check_parser(parser, settings)
    assert parser is not None  # check_parser has seen to it
    if crops is None or crops.ndim != 4 or crops.shape[-2:] != (CROP_SIZE, CROP_SIZE):
        got = "none" if crops is None else str(tuple(crops.shape))
        raise InputError(f"mask 'parse': expected crops (B, 3, {CROP_SIZE}, {CROP_SIZE}), got {got}")
    faces = parser(crops)
    found = faces.mean(dim=(1, 2, 3), keepdim=True) >= LEAST_FACE
    return torch.where(found, outline(faces, width), oval(width).to(faces))


def square(width: float) -> Tensor:
    """The whole crop with an edge ``width`` pixels wide, as (1, 1, 512, 512)."""
    axis = torch.arange(CROP_SIZE, dtype=torch.float32)
    ramp = _ramp(torch.minimum(axis, CROP_SIZE - 1 - axis), width)
    return (ramp[:, None] * ramp)[None, None]


def oval(width: float) -> Tensor:
    """A soft ellipse over the face, as (1, 1, 512, 512). The edge lies inside it and is at most its half width wide."""
    axis = torch.arange(CROP_SIZE, dtype=torch.float32)
    (cx, cy), (ax, ay) = OVAL_CENTRE, OVAL_AXES
    x, y = (axis - cx) / ax, ((axis - cy) / ay)[:, None]
    radius = torch.sqrt(x**2 + y**2).clamp_min(1e-6)
    # First-order distance to the outline: level difference over gradient length (Taubin 1991, eq. 2.4).
    slope = torch.sqrt((x / ax) ** 2 + (y / ay) ** 2) / radius
    distance = (1 - radius) / slope.clamp_min(1 / max(ax, ay))
    return _ramp(distance, min(width, min(ax, ay) - 1))[None, None]


def outline(faces: Tensor, width: float) -> Tensor:
    """Parsed faces (B, 1, 512, 512) in [0, 1] -> masks: gaps closed, edge ``width`` pixels wide, 0 along the crop's border."""
    closed = F.max_pool2d(faces.float(), 2 * CLOSING + 1, stride=1, padding=CLOSING)
    closed = -F.max_pool2d(-closed, 2 * CLOSING + 1, stride=1, padding=CLOSING)
    # Two box means in a row: a smooth ramp about ``width`` wide that, unlike a Gaussian, reaches 0 and 1 exactly.
    reach = int(width / 4)
    for _ in range(2):
        for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
            padding = (kernel[0] // 2, kernel[1] // 2)
            closed = F.avg_pool2d(closed, kernel, stride=1, padding=padding, count_include_pad=False)
    return closed.clamp(0, 1) * square(width).to(closed)


def _ramp(distance: Tensor, width: float) -> Tensor:
    """Distance inside the edge -> weight: 0 up to 0, 1 from ``width - 1`` on, smoothstep between; a step below two pixels."""
    if width < 2:
        return (distance > 0).to(distance.dtype)
    t = (distance / (width - 1)).clamp(0, 1)
    return t * t * (3 - 2 * t)
