"""LAFR_RestoreClip: the frames of one clip, restored so that the faces hold still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from statistics import fmean
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..lafr_core import heap
from ..lafr_core.pipeline import RestoredBatch
from ..lafr_core.settings import options
from ..lafr_core.types import Face
from ..lafr_core.video.batch import restore_batch
from ..lafr_core.video.run import TrackReport
from ..lafr_core.video.settings import ClipSettings
from .layout import to_image, to_images
from .memory import Managed, host_progress, telling
from .restore import model_inputs, prepared, told
from .widgets import drawn, schema, settings_inputs, timestep_input

UNFOLDED = ("faces", "fidelity", "strength", "detail")
"""What most people touch; the other widgets are folded away."""

ALIASES = ["video face restore", "restore video", "flicker", "deflicker face", "camcorder", "old film", "clip"]
"""What people search for, of both nodes for clips."""


LATER = ("best_frames",)
"""Knobs that the nodes got after others: last, because saved workflows keep widgets by their place."""


def clip_inputs(names: tuple[str, ...], advanced: tuple[str, ...] = ()) -> list[Any]:
    """The knobs that photos do not have, as :class:`ClipSettings` declares them."""
    known = {f.name: f for f in fields(ClipSettings)}
    return [drawn(name, known[name].metadata["option"], known[name].default, advanced=name in advanced) for name in names]


def restoring_inputs(names: tuple[str, ...], advanced: tuple[str, ...] = ()) -> list[Any]:
    """What a node that restores clips takes besides the clip: of clips the knobs ``names``, and all that photos have."""
    folded = tuple(name for name in options() if name not in UNFOLDED)
    return [
        *clip_inputs(tuple(name for name in names if name not in LATER), advanced),
        *settings_inputs(tuple(options()), advanced=folded),
        timestep_input(advanced=True),
        *model_inputs(),
        *clip_inputs(tuple(name for name in names if name in LATER), advanced),
    ]


class RestoreClip(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_RestoreClip",
            "Restore Clip (LAFR)",
            "Restores the faces in the frames of one clip and holds them still: every face is followed from frame to frame.",
            [
                io.Image.Input("image", tooltip="The frames of one clip, in their order."),
                *restoring_inputs(("steadiness", "best_frames"), advanced=("best_frames",)),
            ],
            [
                io.Image.Output(
                    "restored", display_name="image", tooltip="As many frames as came in, same order. No face = unchanged."
                ),
                io.String.Output("report", display_name="report", tooltip="In how many frames faces were found and restored."),
            ],
            ALIASES,
        )

    @classmethod
    @heap.trimmed()
    def execute(
        cls,
        image: Tensor,
        steadiness: float,
        best_frames: float,
        timestep: int,
        model: Any = None,
        vae: Any = None,
        adapter: Managed | None = None,
        **values: Any,
    ) -> Any:
        settings, models, mask_note = prepared(values, timestep, model, vae, adapter)
        result = restore_batch(
            to_images(image), models, settings, steadiness, best_frames=best_frames, progress=telling(host_progress())
        )
        return io.NodeOutput(to_image(result.images, like=image), told(clip_text(result), models, mask_note))


def clip_text(result: RestoredBatch) -> str:
    """How many frames have faces, and how much they changed."""
    frames, seen = len(result.images), len({face.image_index for face in result.faces})
    if not result.faces:
        return f"{frames} frames: no face found, unchanged"
    lines = [f"{frames} frames, faces restored in {seen} of them"]
    return "\n".join([*lines, *readings(result.faces)])


def readings(seen: Sequence[Face] | Sequence[TrackReport]) -> list[str]:
    """A line for each read-out that some of the faces or tracks have: its mean and its lowest value."""
    lines = []
    for name in ("change", "trust"):
        known: list[float] = [value for one in seen if (value := getattr(one, name)) is not None]
        if known:
            lines.append(f"{name} {fmean(known):.2f} (mean), {min(known):.2f} (lowest)")
    return lines
