"""Faces drawn on a photo, for people: boxes, landmarks, and the numbers that the ``faces`` setting takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..types import Face

_COLORS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#af52de", "#ff9500", "#5ac8fa")


def font(size: int) -> Any:
    """Pillow's own font, scalable from Pillow 10.1 on; before that its one fixed size."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError):
        return ImageFont.load_default()


def draw_faces(image: Image.Image, faces: Sequence[Face]) -> Image.Image:
    """A copy of ``image`` (RGB, or RGBA whose alpha is kept) with every face's box, five landmarks, number and score.

    Numbers count from 0 in the order of ``faces``. Line width and text grow with the picture, so that they are legible on any.
    """
    drawn = image.convert("RGBA" if "A" in image.mode else "RGB")
    alpha = drawn.getchannel("A") if drawn.mode == "RGBA" else None
    pen = ImageDraw.Draw(drawn)
    line = max(1, round(min(drawn.size) / 300))
    letters = font(max(11, round(min(drawn.size) / 40)))
    for number, face in enumerate(faces):
        color = _COLORS[number % len(_COLORS)]
        x0, y0, x1, y1 = face.box
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=color, width=line)
        dot = max(1.5, face.size / 60)
        for x, y in face.landmarks:
            pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=color)
        label = f"{number}: {face.score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), label, font=letters)
        width, height = right - left + 2 * line, bottom - top + 2 * line
        at_x = min(max(0, x0), max(0, drawn.width - width))
        at_y = max(0, y0 - height)
        pen.rectangle((at_x, at_y, at_x + width, at_y + height), fill=color)
        pen.text((at_x + line - left, at_y + line - top), label, fill="black", font=letters)
    if alpha is not None:
        drawn.putalpha(alpha)
    return drawn
