"""A batch of pictures of one size, taken for the frames of one clip: what hosts hand over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor

from ..images.photos import Photo
from ..pipeline import NO_REFERENCES, References, RestoredBatch, check_images
from ..settings import RestoreSettings
from ..types import Face, Models, Progress, ignore_progress
from .frames import ClipInfo, PhotoFrame
from .restore import restored_frames, survey


class BatchClip:
    """Frames in memory, (T, 3, H, W) float RGB in [0, 1], as a :class:`~lafr_core.video.frames.Clip`."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        size = (images.shape[-2], images.shape[-1])
        self.info = ClipInfo("batch", size, Fraction(25), Fraction(1, 25), len(images))

    def frames(self, start: int = 0, times: Sequence[int] = ()) -> Iterator[PhotoFrame]:
        """See :class:`~lafr_core.video.frames.Clip`; times are the frames' numbers."""
        for index in range(start, len(self.images)):
            yield PhotoFrame(index, index, Photo(self.images[index].to("cpu", torch.float32)))


def restore_batch(
    images: Tensor,
    models: Models,
    settings: RestoreSettings,
    steadiness: float,
    *,
    references: References = NO_REFERENCES,
    progress: Progress = ignore_progress,
) -> RestoredBatch:
    """:func:`lafr_core.pipeline.restore_faces` for frames of one clip, in their order.

    images: (T, 3, H, W) float RGB in [0, 1]. At steadiness 0 the pictures come out as from :func:`restore_faces`, bit for
    bit; ``masks`` are 1 where pixels changed. The settings that choose faces choose tracks.
    """
    check_images(images)
    clip = BatchClip(images)
    known = survey(clip, models, settings, steadiness, references=references, progress=progress)
    out, masks = images.clone(), images.new_zeros((len(images), 1, *images.shape[-2:]))
    faces: list[Face] = []
    frames = restored_frames(clip, known, models, settings, steadiness, references=references, progress=progress)
    for index, done in enumerate(frames):
        if not done.faces:
            continue
        out[index] = done.frame.pixels().to(images)
        masks[index] = (out[index] != images[index]).any(0, keepdim=True).to(images)
        faces += [replace(face, image_index=index) for _, face in done.faces]
    return RestoredBatch(out, tuple(faces), masks)
