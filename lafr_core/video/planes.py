"""A decoded frame <-> RGB tensors, so that what was not restored keeps its very bits.

Most clips store luma and two smaller planes of colour difference. Going to RGB and back would round every pixel of the frame;
here only the *change* goes back: planes + matrix (restored - original), which is 0, exactly, where nothing was restored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

PLAIN = {
    "nv12": "yuv420p", "nv21": "yuv420p", "yuyv422": "yuv422p", "uyvy422": "yuv422p", "yvyu422": "yuv422p", "nv16": "yuv422p",
    "nv24": "yuv444p", "uyyvyy411": "yuv411p", "p010le": "yuv420p10le", "p016le": "yuv420p16le", "p210le": "yuv422p10le",
    "y210le": "yuv422p10le", "v210": "yuv422p10le", "pal8": "rgba", "monow": "gray", "monob": "gray", "ya8": "rgba",
    "ya16le": "rgba64le",
}  # fmt: skip
"""Packed pixel formats -> the planar one that holds the same values."""

KR_KB = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 7: (0.212, 0.087), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
"""Luma weights of red and blue by ITU-T H.273 matrix number; others are ITU-R BT.601's."""
BT601 = (0.299, 0.114)
UNSPECIFIED, FULL_RANGE = 2, 2
HD_HEIGHT = 720
"""Unlabelled clips at least this high are taken for BT.709, smaller ones for BT.601, as players do."""

Array = NDArray[Any]


def plain(frame: Any) -> Any:
    """The PyAV frame in a format that :func:`to_rgb` and :func:`changed` know, the same values where there is one."""
    name = frame.format.name
    if name.startswith("yuvj"):  # the old way of labelling full range; encoders no longer take it
        return _relabelled(frame, "yuv" + name.removeprefix("yuvj"))
    if name in PLAIN:
        return _like(frame.reformat(format=PLAIN[name]), frame)
    if _is_yuv(frame) or name in _RGB:
        return frame
    deep = max(component.bits for component in frame.format.components) > 8
    alpha = has_alpha(frame.format)
    return _like(frame.reformat(format=("rgba64le" if alpha else "rgb48le") if deep else ("rgba" if alpha else "rgb24")), frame)


def has_alpha(pixel_format: Any) -> bool:
    """Whether a PyAV VideoFormat has a plane or channel of transparency."""
    return any(component.is_alpha for component in pixel_format.components) or pixel_format.name == "pal8"


def depth(pixel_format: Any) -> int:
    """Bits a channel of a PyAV VideoFormat."""
    return max((component.bits for component in pixel_format.components), default=8)


def to_rgb(frame: Any) -> Tensor:
    """A PyAV frame, as :func:`plain` gives it -> (3, H, W) float32 RGB in [0, 1], not turned."""
    if not _is_yuv(frame):
        array, scale = _packed(frame)
        return torch.from_numpy(np.ascontiguousarray(array[..., :3].transpose(2, 0, 1)).astype(np.float32)) / scale
    planes = [torch.from_numpy(plane.astype(np.float32)) for plane in _arrays(frame)]
    low, luma, middle, chroma = _levels(frame)
    y = (planes[0] - low) / luma
    if len(planes) < 3:
        return y.clamp(0, 1).expand(3, -1, -1).clone()
    colour = torch.stack(planes[1:3])[None]
    if colour.shape[-2:] != y.shape:
        colour = F.interpolate(colour, size=tuple(y.shape), mode="bilinear", align_corners=False)
    cb, cr = (colour[0] - middle) / chroma
    kr, kb = _weights(frame)
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return torch.stack([red, green, blue]).clamp(0, 1)


def changed(frame: Any, change: Tensor) -> Any:
    """A copy of the PyAV ``frame`` with ``change`` (3, H, W), restored minus original RGB, added.

    Values whose change is 0 keep their bits, transparency too. Raises InputError when the sizes differ.
    """
    if tuple(change.shape) != (3, frame.height, frame.width):
        raise InputError(f"frame: expected a change of (3, {frame.height}, {frame.width}), got {tuple(change.shape)}")
    new = type(frame)(frame.width, frame.height, frame.format.name)
    if not _is_yuv(frame):
        array, scale = _packed(frame)
        out = array.copy()
        step = np.rint(change.numpy().transpose(1, 2, 0) * scale).astype(np.int64)
        out[..., :3] = np.clip(array[..., :3].astype(np.int64) + step, 0, scale)
        return _like(type(frame).from_ndarray(out, format=frame.format.name), frame)
    _, luma, _, chroma = _levels(frame)
    kr, kb = _weights(frame)
    y = kr * change[0] + (1 - kr - kb) * change[1] + kb * change[2]
    steps = [y * luma, (change[2] - y) / (2 * (1 - kb)) * chroma, (change[0] - y) / (2 * (1 - kr)) * chroma]
    top = 2 ** depth(frame.format) - 1
    for number, (old, target) in enumerate(zip(_arrays(frame), _arrays(new), strict=True)):
        if number > 2:  # transparency
            target[:] = old
            continue
        step = steps[number][None, None]
        if step.shape[-2:] != old.shape:
            step = F.interpolate(step, size=old.shape, mode="area")
        target[:] = np.clip(old.astype(np.int32) + np.rint(step[0, 0].numpy()).astype(np.int32), 0, top)
    return _like(new, frame)


_RGB = {"rgb24": 255, "rgba": 255, "rgb48le": 65535, "rgba64le": 65535}
"""The RGB formats worked in, and their white."""


def _is_yuv(frame: Any) -> bool:
    name = frame.format.name
    return name.startswith(("yuv", "gray")) and not name.endswith(("be", "f32le", "f16le", "f32", "f16"))


def _packed(frame: Any) -> tuple[Array, int]:
    """An RGB frame as (H, W, C) and the value of white."""
    return frame.to_ndarray(), _RGB[frame.format.name]


def _arrays(frame: Any) -> list[Array]:
    """The planes of a planar frame as writable views (h, w), uint8 or little-endian uint16."""
    wide = depth(frame.format) > 8
    kind = np.dtype("<u2") if wide else np.dtype(np.uint8)
    return [
        np.frombuffer(plane, kind).reshape(plane.height, plane.line_size // kind.itemsize)[:, : plane.width]
        for plane in frame.planes
    ]


def _levels(frame: Any) -> tuple[float, float, float, float]:
    """(black, luma span, neutral chroma, chroma span) in stored values."""
    bits = depth(frame.format)
    unit = 2.0 ** (bits - 8)
    if frame.color_range == FULL_RANGE:
        white = 2.0**bits - 1
        return 0.0, white, 128 * unit, white
    if frame.format.name.startswith("gray") and frame.color_range != 1:
        white = 2.0**bits - 1  # gray without a label is full range, as FFmpeg's own conversions take it
        return 0.0, white, 128 * unit, white
    return 16 * unit, 219 * unit, 128 * unit, 224 * unit


def _weights(frame: Any) -> tuple[float, float]:
    number = int(frame.colorspace)
    if number in (UNSPECIFIED, 0):
        number = 1 if frame.height >= HD_HEIGHT else 6
    return KR_KB.get(number, BT601)


def _relabelled(frame: Any, name: str) -> Any:
    """The same values under another name, of full range."""
    new = type(frame)(frame.width, frame.height, name)
    for old, target in zip(_arrays(frame), _arrays(new), strict=True):
        target[:] = old
    new = _like(new, frame)
    new.color_range = FULL_RANGE
    return new


def _like(new: Any, old: Any) -> Any:
    """``new`` with the times and colour labels of ``old``."""
    if new is not old:
        new.pts = old.pts
        if old.time_base is not None:
            new.time_base = old.time_base
        for name in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(new, name, getattr(old, name))
    return new
