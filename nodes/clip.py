"""LAFR_RestoreClip: the frames of one clip, restored so that the faces hold still."""

from __future__ import annotations

from dataclasses import fields, replace
from statistics import fmean
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..lafr_core.models import prior_note
from ..lafr_core.pipeline import RestoredBatch
from ..lafr_core.settings import RestoreSettings, options
from ..lafr_core.video.batch import restore_batch
from ..lafr_core.video.settings import ClipSettings
from .layout import to_image, to_images
from .memory import Managed, host_progress, say, telling
from .networks import open_parser
from .restore import HostPrior, model_inputs, open_models
from .widgets import drawn, schema, settings_inputs, timestep_input

UNFOLDED = ("faces", "fidelity", "strength", "detail")
"""What most people touch; the other widgets are folded away."""


def clip_inputs(names: tuple[str, ...], advanced: tuple[str, ...] = ()) -> list[Any]:
    """The knobs that photos do not have, as :class:`ClipSettings` declares them."""
    known = {f.name: f for f in fields(ClipSettings)}
    return [drawn(name, known[name].metadata["option"], known[name].default, advanced=name in advanced) for name in names]


class RestoreClip(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_RestoreClip",
            "Restore Clip (LAFR)",
            "Restores the faces in the frames of one clip and holds them still: every face is followed from frame to frame.",
            [
                io.Image.Input("image", tooltip="The frames of one clip, in their order."),
                *clip_inputs(("steadiness",)),
                *settings_inputs(tuple(options()), advanced=tuple(name for name in options() if name not in UNFOLDED)),
                timestep_input(advanced=True),
                *model_inputs(),
            ],
            [
                io.Image.Output(
                    "restored", display_name="image", tooltip="As many frames as came in, same order. No face = unchanged."
                ),
                io.String.Output("report", display_name="report", tooltip="In how many frames faces were found and restored."),
            ],
            ["video face restore", "restore video", "flicker", "deflicker face", "camcorder", "old film", "clip"],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        steadiness: float,
        timestep: int,
        model: Any = None,
        vae: Any = None,
        adapter: Managed | None = None,
        **values: Any,
    ) -> Any:
        settings, parser, mask_note = open_parser(RestoreSettings(**values))
        models = replace(open_models(settings, timestep, model, vae, adapter), parser=parser)
        result = restore_batch(to_images(image), models, settings, steadiness, progress=telling(host_progress()))
        note = models.prior.note if isinstance(models.prior, HostPrior) else ""
        report = "\n".join(filter(None, (clip_text(result), prior_note(models), note, mask_note)))
        say(report)
        return io.NodeOutput(to_image(result.images, like=image), report)


def clip_text(result: RestoredBatch) -> str:
    """How many frames have faces, and how much they changed."""
    frames, seen = len(result.images), len({face.image_index for face in result.faces})
    if not result.faces:
        return f"{frames} frames: no face found, unchanged"
    lines = [f"{frames} frames, faces restored in {seen} of them"]
    for name in ("change", "trust"):
        known = [value for face in result.faces if (value := getattr(face, name)) is not None]
        if known:
            lines.append(f"{name} {fmean(known):.2f} (mean), {min(known):.2f} (lowest)")
    return "\n".join(lines)
