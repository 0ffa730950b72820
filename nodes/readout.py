"""What a person reads after a run: numbered boxes, before and after, a few lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..lafr_core.faces import trust
from ..lafr_core.faces.crop import crop
from ..lafr_core.faces.detect import left_out
from ..lafr_core.images.draw import draw_faces
from ..lafr_core.images.photos import Photo, from_pil, to_pil
from ..lafr_core.images.sheet import Row, sheet
from ..lafr_core.pipeline import RestoredBatch
from ..lafr_core.settings import RestoreSettings
from ..lafr_core.types import Box, Face

MOST_ROWS = 12
"""A sheet of more faces than this would be too tall to look at."""


def numbered(images: Tensor, faces: Sequence[Face]) -> Tensor:
    """(B, 3, H, W) with each photo's boxes, landmarks and numbers drawn in; the input stays as it was."""
    rows = []
    for index, pixels in enumerate(images):
        own = [face for face in faces if face.image_index == index]
        rows.append(from_pil(draw_faces(to_pil(Photo(pixels)), own)).pixels if own else pixels.clone())
    return torch.stack(rows)


def before_after(images: Tensor, result: RestoredBatch) -> Tensor:
    """(1, 3, H, W): the faces before and after side by side, the whole photos where there is no face."""
    rows = [
        Row(
            f"photo {face.image_index}: {said(face)}",
            (crop(images[face.image_index], face), crop(result.images[face.image_index], face)),
        )
        for face in result.faces[:MOST_ROWS]
    ]
    if len(result.faces) > MOST_ROWS:
        rows[-1] = replace(rows[-1], label=f"{rows[-1].label} (and {len(result.faces) - MOST_ROWS} faces more)")
    rows = rows or [
        Row(f"photo {index}: no face", (images[index], result.images[index])) for index in range(min(len(images), MOST_ROWS))
    ]
    return from_pil(sheet(("before", "after"), rows)).pixels[None]


def report_text(result: RestoredBatch, settings: RestoreSettings, device: torch.device) -> str:
    """One line a face, and what deserves a second look."""
    photos, faces = len(result.images), len(result.faces)
    lines = [f"{photos} photo{'s' if photos != 1 else ''}, {faces} face{'s' if faces != 1 else ''}, on {device}"]
    for index in range(photos):
        own = [face for face in result.faces if face.image_index == index]
        lines += [f"photo {index}: {note}" for note in result.left_out(index, settings)]
        if not own:
            lines.append(f"photo {index}: {'nothing selected' if result.found[index] else 'no face found'}, unchanged")
        for number, face in enumerate(own):
            advice = trust.advice(face, settings.identity_warning)
            lines.append(f"photo {index}, face {number}: {said(face)}{f' - WARNING: {advice}' if advice else ''}")
    return "\n".join(lines)


def detection_text(
    faces: Sequence[Face], counts: Sequence[int], faceless: Sequence[tuple[int, Box]], settings: RestoreSettings
) -> str:
    """One line a photo: how many faces, what the settings left out, which boxes hold no face."""
    lines = []
    for index in range(len(counts)):
        own = sum(face.image_index == index for face in faces)
        notes = left_out(faces, counts, faceless, index, settings)
        lines.append(f"photo {index}: {'; '.join([f'{own} face' + 's' * (own != 1), *notes])}")
    return "\n".join(lines)


def said(face: Face) -> str:
    return ", ".join(filter(None, (f"{face.size:.0f} px, score {face.score:.2f}", trust.said(face))))
