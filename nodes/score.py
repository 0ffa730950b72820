"""LAFR_IdentityScore: how alike two photos' faces are."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io
from torch import Tensor

from ..lafr_core.errors import CheckpointError, InputError
from ..lafr_core.faces.identity import cosine
from ..lafr_core.settings import RestoreSettings
from .faces import find_faces
from .layout import to_images
from .memory import host_progress
from .networks import open_embedder
from .widgets import schema


class IdentityScore(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_IdentityScore",
            "LAFR Identity Score",
            "Cosine between the largest face of each photo in A and in B: 1 = the same to the embedder, about 0 = strangers.",
            [
                io.Image.Input("image_a", tooltip="One photo or a batch."),
                io.Image.Input("image_b", tooltip="As many photos as A, or one to compare all of A with."),
            ],
            [
                io.Float.Output(
                    "score",
                    display_name="score",
                    tooltip="Mean cosine over the pairs in which both photos show a face; 0 when there is none.",
                ),
                io.String.Output("report", display_name="report", tooltip="The cosine of every pair."),
            ],
            ["face similarity", "identity", "arcface", "compare faces"],
        )

    @classmethod
    def execute(cls, image_a: Tensor, image_b: Tensor) -> Any:
        a, b = to_images(image_a), to_images(image_b)
        if len(b) not in (1, len(a)):
            raise InputError(f"image_b: expected 1 photo or as many as image_a ({len(a)}), got {len(b)}")
        embedder = open_embedder()
        if embedder is None:
            raise CheckpointError("identity score: expected a face embedder, found none; install the pack again")
        progress, crops_b = host_progress(), [_largest(b[index : index + 1]) for index in range(len(b))]
        scores, lines = [], []
        for index in range(len(a)):
            crop_a, crop_b = _largest(a[index : index + 1]), crops_b[index if len(b) > 1 else 0]
            if crop_a is None or crop_b is None:
                lines.append(f"pair {index}: no face in {'A' if crop_a is None else 'B'}")
            else:
                scores.append(cosine(embedder, crop_a, crop_b)[0])
                lines.append(f"pair {index}: {scores[-1]:.3f}")
            progress("score", index + 1, len(a))
        return io.NodeOutput(sum(scores) / len(scores) if scores else 0.0, "\n".join(lines))


def _largest(photo: Tensor) -> Tensor | None:
    """The crop (1, 3, 512, 512) of the photo's largest face, or None."""
    crops = find_faces(photo, RestoreSettings(sort="area", top_k=1), progress=lambda *_: None).crops
    return crops.to(mm.get_torch_device()) if len(crops) else None
