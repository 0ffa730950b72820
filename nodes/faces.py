"""LAFR_DetectFaces, and the record its faces travel in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management as mm
import torch
from comfy_api.latest import io
from torch import Tensor

from ..lafr_core.errors import InputError
from ..lafr_core.faces.crop import crop_faces, place
from ..lafr_core.faces.detect import detect_faces
from ..lafr_core.faces.paste import paste_faces
from ..lafr_core.geometry import CROP_SIZE
from ..lafr_core.settings import RestoreSettings
from ..lafr_core.types import Face, Progress
from .layout import to_boxes, to_image, to_images, to_mask
from .memory import host_progress
from .networks import open_detector
from .readout import numbered
from .widgets import BOUNDING_BOX, FACES, schema, settings_inputs

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

    def __len__(self) -> int:
        return len(self.faces)


def find_faces(images: Tensor, settings: RestoreSettings, boxes: Any = None, progress: Progress | None = None) -> FaceSet:
    """The faces of (B, 3, H, W), cut out. ``boxes`` per photo replace the detector's search."""
    detector = open_detector(settings.detector)
    detector.load()
    found = detect_faces(
        images.to(mm.get_torch_device()), detector.call, settings, boxes=boxes, progress=progress or host_progress()
    )
    faces = tuple(place(face) for face in found)
    return FaceSet(faces, crop_faces(images, faces), images.shape[0], (images.shape[-2], images.shape[-1]))


def reference_crops(photos: Tensor) -> Tensor:
    """The surest face of each reference photo (R, 3, H, W), cut out; photos without a face are left out.

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
                BOUNDING_BOX.Input(
                    "bounding_boxes",
                    optional=True,
                    tooltip="Face boxes drawn by hand or by another node; they replace the search.",
                ),
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
            ],
            ["face detection", "detect face", "crop face", "retinaface", "face restore"],
        )

    @classmethod
    def execute(cls, image: Tensor, bounding_boxes: Any = None, **options: Any) -> Any:
        images = to_images(image)
        found = find_faces(images, RestoreSettings(**options), to_boxes(bounding_boxes, images.shape[0]))
        crops = found.crops if len(found) else images.new_zeros((1, 3, CROP_SIZE, CROP_SIZE))
        _, mask = paste_faces(images, found.faces, torch.ones_like(found.crops), RestoreSettings())
        return io.NodeOutput(found, to_image(crops), to_mask(mask), to_image(numbered(images, found.faces)), len(found))
