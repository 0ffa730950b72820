"""One call for people who have a picture and want it better: any kind of picture in, an object that can be saved out.

What stands here converts pictures and opens models; the work is :mod:`lafr_core.pipeline`'s, on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .errors import InputError, SettingsError
from .faces import people
from .faces.crop import place
from .faces.detect import detect_faces
from .images import photos
from .images.enlarge import enlarged
from .images.keep import keep_mask
from .images.photos import Photo
from .models import open_models
from .pipeline import REFERENCE_WEIGHT, References, check_images, restore_stored
from .settings import RestoreSettings
from .types import Box, Face, Models, Person, Progress, ignore_progress

Picture = str | PathLike[str] | Image.Image | NDArray[Any] | Tensor | Photo
"""A file, a Pillow image, (H, W), (H, W, 3) or (H, W, 4) uint8, a (3, H, W) or (1, 3, H, W) float tensor in [0, 1], a Photo."""


@dataclass(frozen=True, eq=False)
class Restoration:
    """A restored picture, and what is known of its faces."""

    photo: Photo
    """The result with everything that came with the picture: alpha, profile, EXIF, bit depth."""
    faces: tuple[Face, ...]
    """The restored faces in the chosen order, in pixels of the picture as it was given; ``matrix`` is set, ``change`` where an
    embedder was at hand. () = none."""
    mask: Tensor
    """(1, H, W) in [0, 1], as large as the result: where the picture was changed. Where it is 0, pixels are bit-identical to
    the input's, or to its enlargement's."""
    notes: tuple[str, ...] = ()
    """Sentences for a person: what was special about the file, which stage was left out."""

    @property
    def pixels(self) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1]; of pictures with 8 or 16 bits, these bits' values."""
        return self.photo.pixels

    @property
    def image(self) -> Image.Image:
        """The result as an 8-bit Pillow image of mode L, LA, RGB or RGBA."""
        return photos.to_pil(self.photo)

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the result to ``path`` as PNG, whole or not at all, and return the path. The folder must exist.

        Raises InputError when a file is there already and ``overwrite`` is False, ImageFileError when it cannot be written.
        """
        target = Path(path)
        photos.write(target, self.photo, overwrite=overwrite)
        return target


def restore(
    picture: Picture,
    settings: RestoreSettings | None = None,
    *,
    models: Models | None = None,
    device: str = "auto",
    boxes: Sequence[Box] | None = None,
    reference: Picture | Sequence[Picture] | Sequence[Person] | None = None,
    reference_weight: float = REFERENCE_WEIGHT,
    keep: Picture | None = None,
    upscale: int = 1,
    progress: Progress = ignore_progress,
    **options: Any,
) -> Restoration:
    """Restore the faces of one picture.

    settings, or single ``options`` of :class:`RestoreSettings` by name (``fidelity=0.9``), not both. models: what
    :func:`open_models` gave, to open them once for many pictures; opened on ``device`` when None. boxes: face boxes
    (x0, y0, x1, y1) in pixels instead of the search. reference: one or several good photos of the person; or people that
    :func:`open_references` gave. reference_weight: how much they lend, 0 to 1. keep: a picture of the same size,
    white where the photo stays as it is. upscale: 1, 2 or 4: the result is as many times as large (Lanczos), and the faces are
    pasted at that size, so that a small one keeps all that was restored. No face is a result: the picture comes back
    bit-identical, or merely enlarged, with no faces.
    Raises InputError for a picture of the wrong layout or range or another upscale, ImageFileError for a file that cannot be
    read, SettingsError.
    """
    chosen = _settings(settings, options)
    photo = to_photo(picture)
    larger = enlarged(photo, upscale)
    models = models if models is not None else open_models(chosen, device=device)
    references = References(_people(reference, models, chosen), reference_weight)
    canvas = None if larger is photo else larger.stored
    kept = None if keep is None else keep_mask(to_photo(keep), photo, upscale)
    result = restore_stored(
        photo.stored, models, chosen, boxes=boxes, keep=kept, enlarged=canvas, references=references, progress=progress
    )
    notes = (*photo.notes, *result.left_out(0, chosen))
    return Restoration(larger.with_pixels(result.images[0]), result.faces, result.masks[0], notes)


def detect(
    picture: Picture,
    settings: RestoreSettings | None = None,
    *,
    models: Models | None = None,
    device: str = "auto",
    **options: Any,
) -> tuple[Face, ...]:
    """The faces of one picture in the chosen order, ``matrix`` set; () = none. Arguments and errors as :func:`restore`."""
    chosen = _settings(settings, options)
    photo = to_photo(picture)
    models = models if models is not None else open_models(chosen, device=device)
    return tuple(place(face) for face in detect_faces(photo.stored.expand(3, -1, -1)[None], models.detector, chosen))


def to_photo(picture: Picture) -> Photo:
    """Any kind of picture as a :class:`Photo`. Raises InputError, with the step that mends it, for wrong layouts and ranges."""
    if isinstance(picture, Photo):
        if picture.stored.is_floating_point():
            check_images(picture.stored.expand(3, -1, -1)[None])
        return picture
    if isinstance(picture, (str, PathLike)):
        return photos.read(Path(picture))
    if isinstance(picture, Image.Image):
        return photos.from_pil(picture)
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    raise InputError(f"picture: expected a path, Pillow image, numpy array, tensor or Photo, got {type(picture).__name__}")


def _from_array(array: NDArray[Any]) -> Photo:
    if array.dtype != np.uint8:
        raise InputError(
            f"picture: expected a uint8 array, got {array.dtype}; for values in [0, 1] pass "
            "torch.from_numpy(array).permute(2, 0, 1).float(), for 0 to 255 array.round().astype('uint8')"
        )
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        hint = "; move the channels to the end: array.transpose(1, 2, 0)" if array.ndim == 3 and len(array) in (1, 3, 4) else ""
        raise InputError(f"picture: expected (H, W), (H, W, 3) or (H, W, 4), got {array.shape}{hint}")
    return photos.from_pil(Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array))


def _from_tensor(pixels: Tensor) -> Photo:
    single = pixels[0] if pixels.ndim == 4 and len(pixels) == 1 else pixels
    if single.ndim != 3 or single.shape[0] != 3:
        hint = ""
        if pixels.ndim == 4 and len(pixels) > 1:
            hint = "; restore the pictures of a batch one by one, or call lafr_core.pipeline.restore_faces"
        elif single.ndim == 3 and single.shape[-1] in (3, 4):
            hint = "; move the channels to the front: pixels[..., :3].permute(2, 0, 1)"
        raise InputError(f"picture: expected (3, H, W) or (1, 3, H, W), got {tuple(pixels.shape)}{hint}")
    check_images(single[None])
    return Photo(single.detach().to("cpu", torch.float32, copy=True))  # type: ignore[arg-type]


def open_references(path: str | PathLike[str], models: Models, settings: RestoreSettings | None = None) -> tuple[Person, ...]:
    """The people in ``path``: one person for a photo file; for a folder one person of the folder's photos, named after it, or,
    where it holds folders, one person a folder.

    Raises InputError where there is no photo or no face, ImageFileError for a file that cannot be read.
    """
    root = Path(path)
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []
    people = []
    for place_ in folders or [root]:
        files = sorted(f for f in place_.iterdir() if f.suffix.lower() in photos.SUFFIXES) if place_.is_dir() else [place_]
        if not files:
            raise InputError(f"{place_}: expected reference photos in this folder, found none; put photos of one person there")
        people.append(_person(place_.name if place_.is_dir() else place_.stem, files, models, settings))
    return tuple(people)


def _people(
    reference: Picture | Sequence[Picture] | Sequence[Person] | None, models: Models, settings: RestoreSettings
) -> tuple[Person, ...]:
    if reference is None:
        return ()
    several = isinstance(reference, Sequence) and not isinstance(reference, str)
    given: list[Any] = list(reference) if several else [reference]  # type: ignore[arg-type]
    if all(isinstance(entry, Person) for entry in given):
        return tuple(given)
    return (_person("reference", given, models, settings),)


def _person(name: str, pictures: Sequence[Picture], models: Models, settings: RestoreSettings | None) -> Person:
    if models.embedder is None:
        raise InputError(
            "reference: expected a face embedder to know the person by, found none; reinstall LAFR with its weights"
        )
    pixels = [to_photo(picture).stored.expand(3, -1, -1) for picture in pictures]
    return people.meet(name, pixels, models.detector, models.embedder, settings)


def _settings(settings: RestoreSettings | None, options: dict[str, Any]) -> RestoreSettings:
    if settings is not None and options:
        raise SettingsError(f"settings: expected a RestoreSettings or single options, got both ({', '.join(options)})")
    return settings if settings is not None else RestoreSettings.from_mapping(options)
