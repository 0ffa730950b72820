"""LAFR_RestoreVideo: a VIDEO restored into another, frame by frame through memory, with its sound and its times."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import InputImpl, io

from ..lafr_core import heap
from ..lafr_core.settings import RestoreSettings
from ..lafr_core.types import Models, Progress
from ..lafr_core.video.batch import restore_batch
from ..lafr_core.video.run import ClipResult, restore_clip
from ..lafr_core.video.settings import ClipSettings
from .clip import ALIASES, clip_text, readings, restoring_inputs
from .layout import to_image, to_images
from .memory import Managed, host_progress, telling
from .restore import prepared, told
from .widgets import VIDEO_TOOLS, schema

CLIP_SETTINGS = tuple(f.name for f in fields(ClipSettings))


class RestoreVideo(io.ComfyNode):  # type: ignore[misc]
    @classmethod
    def define_schema(cls) -> Any:
        return schema(
            "LAFR_RestoreVideo",
            "Restore Video (LAFR)",
            "Restores the faces of a video and holds them still. Sound and times stay; long videos need no more memory.",
            [
                io.Video.Input("video", tooltip="From Load Video, or from Create Video."),
                *restoring_inputs(CLIP_SETTINGS, advanced=CLIP_SETTINGS[1:]),
            ],
            [
                io.Video.Output(
                    "restored", display_name="video", tooltip="As many frames as came in, at their times, for Save Video."
                ),
                io.String.Output("report", display_name="report", tooltip="Which faces were followed, and what to know."),
            ],
            ALIASES,
            essentials_category=VIDEO_TOOLS,
        )

    @classmethod
    @heap.trimmed()
    def execute(
        cls,
        video: Any,
        timestep: int,
        model: Any = None,
        vae: Any = None,
        adapter: Managed | None = None,
        **values: Any,
    ) -> Any:
        how = ClipSettings(**{name: values.pop(name) for name in CLIP_SETTINGS})
        settings, models, mask_note = prepared(values, timestep, model, vae, adapter)
        progress = telling(host_progress())
        if isinstance(video, InputImpl.VideoFromFile):
            restored, text = _file(video, models, settings, how, progress)
        else:
            restored, text = _frames(video, models, settings, how, progress)
        return io.NodeOutput(restored, told(text, models, mask_note))


def _file(video: Any, models: Models, settings: RestoreSettings, how: ClipSettings, progress: Progress) -> tuple[Any, str]:
    """A video that lies in a file, into a file of the host's temporary folder; one frame is in memory at a time."""
    temporary = Path(folder_paths.get_temp_directory())
    temporary.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="lafr_", dir=temporary))
    try:
        result = restore_clip(_path(video, folder), folder / "restored", models, settings, how, progress=progress)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # what a stop leaves: nobody could go on with it here
        raise
    return InputImpl.VideoFromFile(str(result.output)), film_text(result)


def _path(video: Any, folder: Path) -> Path:
    """The file of a video. One that is in memory, or of which only a part is meant, is written into ``folder`` first."""
    source = video.get_stream_source()
    trimmed = any(getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))())
    if isinstance(source, str) and not trimmed:
        return Path(source)
    written = folder / "source.mp4"
    video.save_to(str(written))
    return written


def _frames(video: Any, models: Models, settings: RestoreSettings, how: ClipSettings, progress: Progress) -> tuple[Any, str]:
    """A video whose frames are in memory already; Save Video codes them once."""
    parts = video.get_components()
    result = restore_batch(
        to_images(parts.images), models, settings, how.steadiness, best_frames=how.best_frames, progress=progress
    )
    restored = replace(parts, images=to_image(result.images, like=parts.images))
    return InputImpl.VideoFromComponents(restored), clip_text(result)


def film_text(result: ClipResult) -> str:
    """How many faces were followed and how much they changed, then the clip's notes."""
    lines = [f"{result.frames} frames: no face found, unchanged"]
    if result.tracks:
        lines = [f"{result.frames} frames, {len(result.tracks)} of {result.found} faces followed and restored"]
    return "\n".join([*lines, *readings(result.tracks), *result.notes])
