"""LAFR_SamplePhoto: a damaged photo at hand, so that the first click shows a restored face."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional as F

from ..lafr_core.app.demo import PORTRAIT, spoil
from ..lafr_core.errors import InputError
from ..lafr_core.images import photos
from ..lafr_core.images.degrade import SEVERITIES
from ..lafr_core.store.assets import sample
from ..lafr_core.types import Face
from .layout import to_image
from .widgets import ESSENTIALS, schema

MIDDLE_OF_GROUP = Face(
    box=(405.2, 48.2, 530.9, 229.4),
    landmarks=((436.0, 119.6), (497.7, 117.8), (465.9, 155.3), (440.7, 177.9), (496.1, 177.3)),
    score=1.0,
)
"""One of the group's faces; they are of one size. The damage is measured on it: severities are defined for faces."""
FACES = {"group": MIDDLE_OF_GROUP, "portrait": PORTRAIT}
CLIP = "clip"
"""The choice beside :data:`FACES`: the portrait, swaying before the camera."""
FRAMES, SIDE = 16, 384
DAMAGE = tuple(name for name in SEVERITIES if name != "full")


def undamaged(photo: str) -> Tensor:
    """One of :data:`FACES` as it was: (3, H, W) in [0, 1]."""
    return photos.read(sample(photo)).pixels


def damaged(photo: str, damage: str = "medium") -> Tensor:
    """One of :data:`FACES` with its faces damaged, always alike: (3, H, W) in [0, 1]."""
    return spoil(undamaged(photo), FACES[photo], damage)


def clip() -> Tensor:
    """The portrait swaying before the camera: (16, 3, 384, 384) in [0, 1], the last frame followed by the first."""
    photo = F.interpolate(undamaged("portrait")[None], (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    frames = []
    for number in range(FRAMES):
        phase = 2 * math.pi * number / FRAMES
        angle, shift = 0.06 * math.sin(phase), 0.05 * math.cos(phase)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), shift], [math.sin(angle), math.cos(angle), 0.0]])
        grid = F.affine_grid(0.9 * turn[None], [1, 3, SIDE, SIDE], align_corners=False)
        frames.append(F.grid_sample(photo, grid, padding_mode="reflection", align_corners=False))
    return torch.cat(frames).clamp(0, 1)


def damaged_clip(damage: str = "medium") -> Tensor:
    """:func:`clip` as a bad tape has it: the same damage in every frame, other noise."""
    k = SIDE / undamaged("portrait").shape[-1]
    place = tuple((k * x, k * y) for x, y in PORTRAIT.landmarks)
    face = replace(PORTRAIT, landmarks=place)
    return torch.stack([spoil(frame, face, damage, number) for number, frame in enumerate(clip())])


class SamplePhoto(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_SamplePhoto",
            "Sample Photo (LAFR)",
            "A damaged photo or clip of people who do not exist (CC0), to try the pack. Connect your own Load Image instead.",
            [
                io.Combo.Input(
                    "photo",
                    options=[*FACES, CLIP],
                    default="group",
                    tooltip="group = four people, portrait = one large face, clip = 16 frames of it for Create Video.",
                ),
                io.Combo.Input(
                    "damage",
                    options=list(DAMAGE),
                    default="medium",
                    tooltip="How much blur, shrinking, noise and compression the faces suffered. Always the same damage.",
                ),
            ],
            [
                io.Image.Output("image", display_name="image", tooltip="The damaged photo: what a restoration starts from."),
                io.Image.Output("original", display_name="original", tooltip="The same photo undamaged, to compare with."),
            ],
            ["example image", "test photo", "demo", "lafr sample"],
            essentials_category=ESSENTIALS,
        )

    @classmethod
    def execute(cls, photo: str, damage: str) -> Any:
        if photo not in (*FACES, CLIP) or damage not in DAMAGE:
            choices = f"one of {', '.join((*FACES, CLIP))} and one of {', '.join(DAMAGE)}"
            raise InputError(f"sample photo: expected {choices}, got {photo!r} and {damage!r}; choose from the lists")
        if photo == CLIP:
            return io.NodeOutput(to_image(damaged_clip(damage)), to_image(clip()))
        return io.NodeOutput(to_image(damaged(photo, damage)[None]), to_image(undamaged(photo)[None]))
