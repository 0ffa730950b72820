"""The faces of a photo with the numbers that *Which faces* takes, for the button on the panel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from lafr_core.errors import Cancelled, LafrError
from lafr_core.faces.detect import find_faces
from lafr_core.images.draw import draw_faces

from . import engine, host, restorer
from .settings import Request

SHOWN_SIDE = 1024
"""Longer side of the picture that is shown, in pixels."""


def numbered(image: Image.Image | None, values: dict[str, Any]) -> tuple[Image.Image | None, str]:
    """The photo with its faces numbered as the panel's ``values`` order them, and a sentence. Never raises.

    Waits for its turn in the webui's queue. Size limits and *At most* hold; *Which faces* does not, it is what the numbers are
    for.
    """
    if image is None:
        return None, "Choose a picture above first."
    try:
        wanted = replace(Request.from_mapping(values).restore, faces="", strength=1.0, mask="oval")
        with host.job(), host.neutral(host.device()), host.progress() as progress:
            photo = restorer.stored(image)
            models = engine.starter_parts(wanted).models
            found = find_faces(photo.stored.expand(3, -1, -1)[None], models.detector, wanted, progress=progress)
    except Cancelled:
        return None, "Stopped."
    except LafrError as error:
        return None, f"Not possible - {error}"
    except Exception as error:
        host.report("LAFR: numbering the faces", error)
        return None, f"Not possible - {type(error).__name__} {error}"
    if not found.faces:
        left_out = f"; {found.counts[0]} are outside the size limits" if found.counts[0] else ""
        return None, f"No face found{left_out}."
    drawn = draw_faces(image if image.mode in ("RGB", "RGBA") else image.convert("RGB"), found.faces)
    drawn.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    last = len(found.faces) - 1
    numbers = "number 0" if last == 0 else f"numbers 0 to {last}"
    return drawn, f"{len(found.faces)} found, {numbers}. Put the ones you want into Which faces, separated by commas."
