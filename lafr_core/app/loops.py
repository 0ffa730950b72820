"""A clip in the gallery: short loops that play before and after side by side, of the whole picture and of each face."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import LafrError
from ..images.photos import Photo, to_pil
from ..video.frames import Clip
from ..video.sources import open_clip

FRAMES = 16
"""Frames a loop."""
SIDE = 400
"""Longer side of the whole picture's loop; it shows what moves, the faces' loops show the faces."""
FACE = 160
FACES = 4
"""Faces that get loops of their own."""
_AROUND = 0.35
_QUALITY = 62


@dataclass(frozen=True)
class Loops:
    """What a card shows of a clip, as addresses of animated pictures."""

    size: tuple[int, int]
    """(w, h) of the whole picture's loop."""
    before: str
    after: str
    faces: tuple[tuple[str, str], ...]
    """(before, after) of the first faces in the report's order."""


def loops(entry: Mapping[str, Any]) -> Loops | None:
    """The loops of a clip's entry in the report; None where source or result cannot be read any more."""
    if not entry.get("output"):
        return None
    tracks = entry["tracks"][:FACES]
    try:
        clips = [open_clip(Path(entry[name])) for name in ("input", "output")]
        parts = {(t["start"], t["first"]) for t in tracks} or {(0, 0.0)}
        seen = {start: [_part(clip, start, first) for clip in clips] for start, first in parts}
    except (LafrError, OSError):
        return None
    whole = seen[tracks[0]["start"] if tracks else 0]
    if not all(whole):
        return None
    pace = round(1000 / float(clips[0].info.rate))
    fitted = [[_fitted(image) for image in part] for part in whole]
    faces = [tuple(_uri([_around(image, t["box"]) for image in part], pace) for part in seen[t["start"]]) for t in tracks]
    return Loops(fitted[0][0].size, _uri(fitted[0], pace), _uri(fitted[1], pace), tuple((a, b) for a, b in faces))


def _part(clip: Clip, start: int, first: float) -> list[Image.Image]:
    """Frames from number ``start`` on, which is shown ``first`` seconds after the clip's beginning."""
    times = [round(first / float(clip.info.time_base))] * (start + 1)
    return list(islice(_pictures(clip, start, times), FRAMES))


def _pictures(clip: Clip, start: int, times: Sequence[int]) -> Iterator[Image.Image]:
    for frame in clip.frames(start, times):
        yield to_pil(Photo(frame.pixels())).convert("RGB")  # type: ignore[arg-type]


def _fitted(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return small


def _around(image: Image.Image, box: Sequence[float]) -> Image.Image:
    x0, y0, x1, y1 = box
    half = max(8.0, max(x1 - x0, y1 - y0) * (0.5 + _AROUND))
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    corners = (round(x - half), round(y - half), round(x + half), round(y + half))
    return image.crop(corners).resize((FACE, FACE), Image.Resampling.BICUBIC)


def _uri(images: Sequence[Image.Image], pace: int) -> str:
    buffer = io.BytesIO()
    images[0].save(buffer, "WEBP", save_all=True, append_images=images[1:], duration=pace, loop=0, quality=_QUALITY, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
