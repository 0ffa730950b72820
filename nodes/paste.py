"""LAFR_FacePaste: restored crops back into their photos."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..lafr_core import heap
from ..lafr_core.errors import InputError
from ..lafr_core.faces.color import match_color
from ..lafr_core.faces.grain import match_grain
from ..lafr_core.faces.paste import paste_faces
from ..lafr_core.settings import RestoreSettings
from .faces import FaceSet
from .layout import to_image, to_images, to_keep, to_mask
from .memory import check_rows, host_progress, say
from .networks import open_parser
from .widgets import FACES, keep_input, schema, settings_inputs

PASTING = ("strength", "mask", "feather", "color", "grain")


class FacePaste(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_FacePaste",
            "Face Paste",
            "Blends restored faces back into the photos they were cut from. Outside the mask nothing changes, bit for bit.",
            [
                io.Image.Input(
                    "original", tooltip="The photos that went into LQ Face Detect, all of them and in the same order."
                ),
                FACES.Input("faces", tooltip="From LQ Face Detect."),
                io.Image.Input("restored", tooltip="The restored crops, one row a face. Ignored when no face was found."),
                *settings_inputs(PASTING),
                keep_input(),
            ],
            [
                io.Image.Output("image", display_name="image", tooltip="As many photos as came in, same sizes, same order."),
                io.Mask.Output("changed", display_name="mask", tooltip="Where, and how strongly, the photos were changed."),
            ],
            ["face restore", "paste face", "composite", "uncrop"],
        )

    @classmethod
    @heap.trimmed()
    def execute(cls, original: Tensor, faces: FaceSet, restored: Tensor, keep: Tensor | None = None, **options: Any) -> Any:
        settings = RestoreSettings(**options)
        images = to_images(original)
        if (images.shape[0], tuple(images.shape[-2:])) != (faces.photos, faces.size):
            raise InputError(
                f"original: expected the {faces.photos} photos of {faces.size[1]}x{faces.size[0]} the faces were found in, got "
                f"{images.shape[0]} of {images.shape[-1]}x{images.shape[-2]}; connect the picture that goes into LQ Face Detect"
            )
        if not len(faces):
            return io.NodeOutput(original, torch.zeros(images.shape[0], *images.shape[-2:]))
        crops = to_images(restored)
        check_rows("restored", len(crops), len(faces))
        check_side(crops)
        settings, parser, note = open_parser(settings)
        if note:
            say(note)
        crops = match_grain(match_color(crops, faces.crops, settings.color), faces.crops, settings.grain)
        pasted, masks = paste_faces(
            images,
            faces.faces,
            crops,
            settings,
            parser=parser,
            keep=to_keep(keep, images),
            progress=host_progress(),
        )
        return io.NodeOutput(to_image(pasted, like=original), to_mask(masks))


def check_side(crops: Tensor) -> None:
    if tuple(crops.shape[-2:]) != (512, 512):
        raise InputError(
            f"restored: expected 512x512 crops, got {tuple(crops.shape[-2:])}; decode the latents without scaling them"
        )
