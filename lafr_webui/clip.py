"""Frames of one clip: what *Batch from Directory* hands over picture by picture, restored as a clip.

The webui says nothing of a batch but the file it is at. That is enough: the folder, in the webui's own order, is the clip. The
first picture looks through all of it, and every picture then takes its frame of what
:func:`~lafr_core.video.restore.restored_frames` makes, which reads a few files ahead. So the webui's own loop goes on reading,
saving and showing, and nothing grows with the length.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lafr_core.errors import ImageFileError, LafrError
from lafr_core.images import photos
from lafr_core.images.photos import Photo
from lafr_core.types import Progress
from lafr_core.video.folder import PictureFiles
from lafr_core.video.frames import PhotoFrame
from lafr_core.video.restore import RestoredFrame, Survey, restored_frames, survey

from . import engine, host, restorer
from .infotext import report
from .restorer import Result
from .settings import EngineSettings, Request

ALONE = "restored alone, not as a frame of a clip"


def read(path: Path) -> Photo:
    """The file as the webui's loop hands it to scripts. Raises ImageFileError, path and one sentence."""
    try:
        return restorer.stored(host.read_picture(path))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, LafrError) as error:
        raise ImageFileError(f"{path}: cannot be read ({error})") from error


@dataclass
class Session:
    """A batch that is under way."""

    key: tuple[Any, ...]
    clip: PictureFiles
    known: Survey
    frames: Iterator[RestoredFrame]
    given: int = -1
    """Number of the last frame given."""

    def goes_on(self, key: tuple[Any, ...], path: Path) -> bool:
        """Whether ``path`` comes later in the same batch. Files that the batch itself wrote meanwhile are no frames."""
        return self.key == key and path in self.clip.paths and self.clip.paths.index(path) > self.given


_sessions: list[Session] = []
"""The present one, never more: the webui works at one batch at a time."""


def restore(image: Image.Image, request: Request, reference: Image.Image | None = None) -> Result:
    """Restore the faces of ``image``, the file that *Batch from Directory* is at, as those of one frame of its folder.

    In any other work, and where the picture is no longer what is in its file, it is restored alone and a note says why. Never
    raises. At strength 0 nothing is looked at.
    """
    path = host.batch_file()
    if request.restore.strength == 0:
        return restorer.restore(image, request, reference)
    if path is None:
        return _alone(image, request, reference, "frames of one clip are taken from Batch from Directory only")
    result = restorer.guarded(image, request, lambda: _frame(image, request, reference, path))
    if result.report.status in ("failed", "stopped"):
        _sessions.clear()
    return result


def _frame(image: Image.Image, request: Request, reference: Image.Image | None, path: Path) -> Result:
    host.poll()
    photo, held = restorer.stored(image), restorer.stored(host.read_picture(path))
    if not torch.equal(photo.stored, held.stored):
        return _alone(image, request, reference, "the picture is not what its file holds; switch off what comes before LAFR")
    key = (request, None if reference is None else hashlib.sha256(reference.tobytes()).digest())
    files = host.batch_files()  # before our own progress takes the file's name off the webui's
    with host.neutral(host.device()), host.progress() as progress, engine.opened(request, reference) as opened:
        if not (_sessions and _sessions[0].goes_on(key, path)):
            _sessions.clear()
            clip = PictureFiles(files, (image.height, image.width), read)
            _sessions.append(_begun(key, clip, files.index(path), request.engine, opened, progress))
        (session,) = _sessions
        session.given = session.clip.paths.index(path)
        done = next(frame for frame in session.frames if frame.frame.index == session.given)
    if session.given + 1 == len(session.clip.paths):
        _sessions.clear()
    if done.frame.fault:
        return _alone(image, request, reference, done.frame.fault)
    faces = tuple(face for _, face in done.faces)
    if not faces:
        status = "none selected" if session.known.found and not session.known.tracks else "no face"
        return Result(image, report(status, request, note="; ".join(opened.notes), found=session.known.found))
    assert isinstance(done.frame, PhotoFrame)
    return restorer.finished(image, photos.to_pil(done.frame.photo), request, faces, opened.notes, len(faces))


def _begun(
    key: tuple[Any, ...], clip: PictureFiles, start: int, how: EngineSettings, opened: engine.Opened, progress: Progress
) -> Session:
    """The batch looked through, and its frames from number ``start`` on."""
    models, settings, people = opened.models, opened.settings, opened.references
    known = survey(clip, models, settings, how.steadiness, best_frames=how.best_frames, references=people, progress=progress)
    frames = restored_frames(clip, known, models, settings, how.steadiness, start=start, references=people, progress=progress)
    return Session(key, clip, known, frames)


def _alone(image: Image.Image, request: Request, reference: Image.Image | None, why: str) -> Result:
    result = restorer.restore(image, request, reference)
    note = "; ".join(filter(None, [f"{ALONE} ({why})", result.report.note]))
    return replace(result, report=replace(result.report, note=note))
