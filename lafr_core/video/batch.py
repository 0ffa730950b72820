"""Pictures of one size, taken for the frames of one clip: what hosts hand over, all at once or one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from ..errors import InputError
from ..images.photos import Photo
from ..pipeline import NO_REFERENCES, References, RestoredBatch, check_images
from ..settings import RestoreSettings
from ..types import Face, Models, Progress, ignore_progress
from .frames import ClipInfo, PhotoFrame
from .restore import restored_frames, survey


class BatchClip:
    """Frames (3, H, W) float RGB in [0, 1] as a :class:`~lafr_core.video.frames.Clip`.

    frames: a tensor (T, 3, H, W), or any sequence with a length whose items are such frames: a list, or an object that reads
    or draws frame ``k`` only when it is asked for ``frames[k]``. Raises InputError for no frames, and, while they are read, for
    one that is no picture or of another size than the first.
    """

    def __init__(self, frames: Sequence[Tensor] | Tensor) -> None:
        if not len(frames):
            raise InputError("frames: expected at least one, got none")
        self.sequence = frames
        first = frames[0]
        self.info = ClipInfo("frames", (first.shape[-2], first.shape[-1]), Fraction(25), Fraction(1, 25), len(frames))

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[PhotoFrame]:
        """See :class:`~lafr_core.video.frames.Clip`; times are the frames' numbers."""
        for index in range(start, len(self.sequence)):
            frame = self.sequence[index]
            if frame.ndim != 3 or tuple(frame.shape[-2:]) != self.info.size:
                raise InputError(
                    f"frame {index}: expected (3, {self.info.size[0]}, {self.info.size[1]}) as the first, got "
                    f"{tuple(frame.shape)}; scale the frames of one clip to one size"
                )
            check_images(frame[None])
            yield PhotoFrame(index, index, Photo(frame.to("cpu", torch.float32)))  # type: ignore[arg-type]


def restore_sequence(
    frames: Sequence[Tensor] | Tensor,
    models: Models,
    settings: RestoreSettings,
    steadiness: float,
    *,
    best_frames: float = 0.0,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> Iterator[RestoredBatch]:
    """The frames of one clip, restored, one after the other in their order: memory does not grow with their number.

    frames: see :class:`BatchClip`; each is asked for twice, in order, first to find and follow faces through the whole clip,
    then to restore them. best_frames: how much those in which a face is seen best lend to those in which it is seen much
    worse, 0 (nothing) to 1; those few are asked for once more, with their neighbours. Each result has one row, as from
    :func:`lafr_core.pipeline.restore_faces`; at steadiness 0 frames come out as from that function, bit for bit. The settings
    that choose faces choose tracks. Raises SettingsError, InputError, and what ``progress`` raises to stop.
    """
    clip = BatchClip(frames)
    known = survey(clip, models, settings, steadiness, best_frames=best_frames, references=references, progress=progress)
    for done in restored_frames(clip, known, models, settings, steadiness, references=references, progress=progress):
        after = done.frame.pixels()[None]
        mask = after.new_zeros((1, *after.shape[-2:])) if done.mask is None else done.mask
        yield RestoredBatch(after, tuple(replace(face, image_index=0) for _, face in done.faces), mask[None])


def restore_batch(
    images: Tensor,
    models: Models,
    settings: RestoreSettings,
    steadiness: float,
    *,
    best_frames: float = 0.0,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> RestoredBatch:
    """:func:`restore_sequence` for frames (T, 3, H, W) that are all there, with one result for all: rows without faces are the
    input's own, dtype and device too."""
    check_images(images)
    out, masks = images.clone(), images.new_zeros((len(images), 1, *images.shape[-2:]))
    faces: list[Face] = []
    rows = restore_sequence(
        images, models, settings, steadiness, best_frames=best_frames, references=references, progress=progress
    )
    for index, done in enumerate(rows):
        if done.faces:
            out[index], masks[index] = done.images[0].to(images), done.masks[0].to(images)
            faces += [replace(face, image_index=index) for face in done.faces]
    return RestoredBatch(out, tuple(faces), masks)
