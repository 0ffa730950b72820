"""LAFR_DetectFaces, and the record its faces travel in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..lafr_core.errors import InputError
from ..lafr_core.faces import detect
from ..lafr_core.faces.crop import crop_faces, place
from ..lafr_core.faces.paste import paste_faces
from ..lafr_core.geometry import CROP_SIZE
from ..lafr_core.settings import RestoreSettings
from ..lafr_core.types import Box, Face, Progress
from .layout import from_faces, to_boxes, to_image, to_images, to_mask
from .memory import host_progress, say
from .networks import open_detector
from .readout import detection_text, numbered
from .widgets import BOUNDING_BOX, ESSENTIALS, FACES, boxes_input, schema, settings_inputs

DETECTION = ("detector", "threshold", "min_face", "max_face", "sort", "top_k", "faces", "rotate", "detect_side", "small_faces")


@dataclass(frozen=True)
class FaceSet:
    """LAFR_FACES: the faces of one batch of photos."""

    faces: tuple[Face, ...]
    """Placed faces, ordered by photo, then by the chosen order. May be empty."""
    crops: Tensor
    """(N, 3, 512, 512) float32 in [0, 1], one row a face, as cut from the photos."""
    photos: int
    """Number of photos in the batch."""
    size: tuple[int, int]
    """(h, w) of the photos."""
    counts: tuple[int, ...] = ()
    """How many faces each photo has, before the settings chose among them."""
    faceless: tuple[tuple[int, Box], ...] = ()
    """Hand-given boxes that cover no face: (photo, box)."""

    def __len__(self) -> int:
        return len(self.faces)


def find_faces(images: Tensor, settings: RestoreSettings, boxes: Any = None, progress: Progress | None = None) -> FaceSet:
    """The faces of (B, 3, H, W), cut out. ``boxes`` per photo replace the detector's search."""
    detector = open_detector(settings.detector)
    detector.load()
    found = detect.find_faces(
        images.to(mm.get_torch_device()), detector.call, settings, boxes=boxes, progress=progress or host_progress()
    )
    faces = tuple(place(face) for face in found.faces)
    size = (images.shape[-2], images.shape[-1])
    return FaceSet(faces, crop_faces(images, faces), images.shape[0], size, found.counts, found.faceless)


def reference_crops(photos: Tensor) -> Tensor:
    """The largest face of each reference photo (R, 3, H, W), cut out; photos without a face are left out.

    Raises InputError when none has one.
    """
    settings = RestoreSettings(sort="area", top_k=1)
    crops = find_faces(photos, settings).crops
    if not len(crops):
        raise InputError(
            f"reference: expected a face in at least one of {len(photos)} reference photos, found none; use a clear portrait"
        )
    return crops


class DetectFaces(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_DetectFaces",
            "LQ Face Detect",
            "Finds faces in blurred, small or damaged photos and cuts each out upright at 512x512.",
            [
                io.Image.Input("image", tooltip="One photo or a batch of photos of one size."),
                *settings_inputs(DETECTION, advanced=("min_face", "max_face", "detect_side", "small_faces")),
                boxes_input(),
            ],
            [
                FACES.Output("found", display_name="faces", tooltip="The faces, for the other LAFR nodes. May hold none."),
                io.Image.Output(
                    "crops",
                    display_name="crops",
                    tooltip="Each face cut out upright, 512x512, one row a face. One black picture when no face was found.",
                ),
                io.Mask.Output("mask", display_name="mask", tooltip="Where the faces are in the photos."),
                io.Image.Output(
                    "preview", display_name="preview", tooltip="The photos with boxes, landmarks and the faces' numbers."
                ),
                io.Int.Output("count", display_name="count", tooltip="How many faces were found in all photos together."),
                BOUNDING_BOX.Output(
                    "boxes", display_name="boxes", tooltip="The faces' boxes, one list a photo, for the host's own box nodes."
                ),
                io.String.Output(
                    "report", display_name="report", tooltip="What was found in each photo, and what the settings left out."
                ),
            ],
            ["face detection", "detect face", "crop face", "retinaface", "face restore", "face boxes", "bbox"],
            essentials_category=ESSENTIALS,
        )

    @classmethod
    def execute(cls, image: Tensor, bounding_boxes: Any = None, **options: Any) -> Any:
        images, settings = to_images(image), RestoreSettings(**options)
        found = find_faces(images, settings, to_boxes(bounding_boxes, images.shape[0]))
        crops = found.crops if len(found) else images.new_zeros((1, 3, CROP_SIZE, CROP_SIZE))
        _, mask = paste_faces(images, found.faces, torch.ones_like(found.crops), RestoreSettings())
        preview = to_image(numbered(images, found.faces))
        report = detection_text(found.faces, found.counts, found.faceless, settings)
        say(report)
        return io.NodeOutput(
            found,
            to_image(crops),
            to_mask(mask),
            preview,
            len(found),
            from_faces(found.faces, found.photos),
            report,
            ui=ui.PreviewImage(preview),
        )
