"""One picture of the webui -> the same picture with its faces restored, and what to tell about it. Never raises into the
webui.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lafr_core import heap
from lafr_core.errors import Cancelled, InputError, LafrError
from lafr_core.faces import trust
from lafr_core.images import photos
from lafr_core.pipeline import restore_stored
from lafr_core.types import Face

from . import engine, host
from .infotext import Report, report
from .settings import Request


@dataclass(frozen=True)
class Result:
    """A restored picture."""

    image: Image.Image
    """The very object that came in where nothing was changed (no face, strength 0, stopped, failed); else a new one of its
    size.
    """
    report: Report
    faces: tuple[Face, ...] = ()
    error: Exception | None = None
    """What stopped it, where the status is "failed"."""


def restore(image: Image.Image, request: Request, reference: Image.Image | None = None) -> Result:
    """Restore the faces of ``image`` (any Pillow mode; alpha is kept, the input stays as it is).

    Stopping, bad input, missing weights and even errors nobody foresaw end in an unchanged picture and a report that says
    so: one bad picture must not end a batch of two hundred.
    """
    return guarded(image, request, lambda: _restore_somehow(image, request, reference))


@heap.trimmed()
def guarded(image: Image.Image, request: Request, work: Callable[[], Result]) -> Result:
    """What ``work`` gives, or where it raises the unchanged ``image`` and a report that says why."""
    try:
        return work()
    except Cancelled:
        host.free_memory()
        return Result(image, report("stopped", request))
    except LafrError as error:
        host.log.warning("LAFR: %s", error)
        return Result(image, report("failed", request, note=str(error)), error=error)
    except torch.cuda.OutOfMemoryError as error:
        engine.CACHE.clear()
        host.free_memory()
        host.log.warning("LAFR: out of GPU memory")
        return Result(image, report("failed", request, note="out of GPU memory; lower 'Faces at a time'"), error=error)
    except Exception as error:  # an image decoder or a host hook can raise anything
        host.report("LAFR", error)
        return Result(image, report("failed", request, note=f"{type(error).__name__} {error}"), error=error)


def _restore_somehow(image: Image.Image, request: Request, reference: Image.Image | None) -> Result:
    """With the loaded checkpoint if that is wanted and works; a webui that holds it in a way nobody foresaw costs the
    checkpoint, not the restoration.
    """
    try:
        return _restore(image, request, reference)
    except (LafrError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        if request.engine.engine != "checkpoint":
            raise
        host.report("LAFR: the loaded checkpoint", error)
        return _restore(image, request, reference, f"checkpoint: cannot be used here ({type(error).__name__} {error})")


def _restore(image: Image.Image, request: Request, reference: Image.Image | None, broken: str = "") -> Result:
    host.poll()
    if request.restore.strength == 0:
        return Result(image, report("ok", request))
    with host.neutral(host.device()), host.progress() as progress, engine.opened(request, reference, broken) as opened:
        photo = stored(image)
        done = restore_stored(photo.stored, opened.models, opened.settings, references=opened.references, progress=progress)
        (found,), notes = done.found, [*done.left_out(0, opened.settings), *opened.notes]
        if not done.faces:
            status = "none selected" if found else "no face"
            return Result(image, report(status, request, note="; ".join(notes), found=found))
        if opened.references.people and all(face.person is None for face in done.faces):
            notes.append("reference photo not used (no face here looks like that person)")
        restored = photos.to_pil(photo.with_pixels(done.images[0]))
    result = finished(image, restored, request, done.faces, notes, found)
    if host.setting("face_restoration_unload", False):
        engine.CACHE.clear()
        host.free_memory()
    return result


def finished(
    image: Image.Image, restored: Image.Image, request: Request, faces: tuple[Face, ...], notes: Sequence[str], found: int
) -> Result:
    """The result of ``image`` from its 8-bit ``restored`` picture and the faces, with ``image``'s mode and metadata."""
    restored.info = dict(image.info)
    if image.mode in ("RGB", "RGBA", "L", "LA") and restored.mode != image.mode:
        restored = restored.convert(image.mode)
    said = "; ".join(filter(None, [*notes, _warning(faces, request)]))
    return Result(restored, report("ok", request, faces, said, found), faces)


def stored(image: Image.Image) -> photos.Photo:
    """The picture with the bits it has and without its EXIF: the webui has applied its orientation (Forge) or ignores it
    (A1111), and the size must stay what it is.

    Raises InputError for more than :data:`lafr_core.images.photos.MAX_PIXELS`, before anything is copied.
    """
    if image.width * image.height > photos.MAX_PIXELS:
        limit = photos.MAX_PIXELS // 1_000_000
        raise InputError(
            f"picture: {image.width}x{image.height} pixels, at most {limit} megapixels can be taken; scale it down or split it"
        )
    copy = image.copy()
    copy.info = {name: value for name, value in image.info.items() if name in ("transparency", "icc_profile")}
    return photos.from_pil(copy)


def _warning(faces: tuple[Face, ...], request: Request) -> str:
    """What to do about the face that deserves the least trust; '' where all deserve enough."""
    said = [(face.trust if face.trust is not None else face.change, face) for face in faces]
    known = [(value, face) for value, face in said if value is not None]
    if not known:
        return ""
    return trust.advice(min(known, key=lambda pair: pair[0])[1], request.restore.identity_warning)
