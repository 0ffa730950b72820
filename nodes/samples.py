"""LAFR_SamplePhoto: a damaged photo at hand, so that the first click shows a restored face."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

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
DAMAGE = tuple(name for name in SEVERITIES if name != "full")


def undamaged(photo: str) -> Tensor:
    """One of :data:`FACES` as it was: (3, H, W) in [0, 1]."""
    return photos.read(sample(photo)).pixels


def damaged(photo: str, damage: str = "medium") -> Tensor:
    """One of :data:`FACES` with its faces damaged, always alike: (3, H, W) in [0, 1]."""
    return spoil(undamaged(photo), FACES[photo], damage)


class SamplePhoto(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_SamplePhoto",
            "Sample Photo (LAFR)",
            "A damaged photo of people who do not exist (CC0), to try the pack with. Connect your own Load Image instead.",
            [
                io.Combo.Input(
                    "photo", options=list(FACES), default="group", tooltip="group = four people, portrait = one large face."
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
        if photo not in FACES or damage not in DAMAGE:
            choices = f"one of {', '.join(FACES)} and one of {', '.join(DAMAGE)}"
            raise InputError(f"sample photo: expected {choices}, got {photo!r} and {damage!r}; choose from the lists")
        return io.NodeOutput(to_image(damaged(photo, damage)[None]), to_image(undamaged(photo)[None]))
