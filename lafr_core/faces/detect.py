"""Photos -> faces: every choice a user has about which faces are restored, as pure functions on lists of faces.

The detector finds faces in one upright image; scales, quarter turns, hand-given boxes, filters and the order are done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..geometry import compose, transform
from ..settings import RestoreSettings, options
from ..types import Box, Detector, Face, Matrix, Progress, ignore_progress, to_unit
from .boxes import distinct, five, merge, overlap, usable

BOX_CONTEXT = 0.6
"""How far beyond a hand-given box the detector looks, as a share of the box on each side."""

BOX_SIDE = 320
"""Longer side in pixels of the region around a hand-given box when the detector sees it."""

BOX_THRESHOLD = 0.2
"""Inside a box that a person drew there is a face: a lower score is enough."""

HINT = 0.5
"""In the smaller look at a turned photo, this share of the threshold is enough for a look at the larger one."""

STRIP = 1 << 22
"""Pixels of a big photo that are float at a time while it is made small for detection."""

CHOICES = ("min_face", "max_face", "top_k", "faces")
"""The settings that leave out faces which were found."""


@dataclass(frozen=True)
class Found:
    """What a look through a batch of photos came to."""

    faces: tuple[Face, ...]
    """The faces to restore: by photo, then in the chosen order."""
    counts: tuple[int, ...]
    """How many faces each photo has, before the settings chose among them."""
    faceless: tuple[tuple[int, Box], ...] = ()
    """Hand-given boxes that cover no face: (photo, box)."""


def detect_faces(
    images: Tensor,
    detector: Detector,
    settings: RestoreSettings,
    *,
    boxes: Sequence[Sequence[Box]] | None = None,
    progress: Progress = ignore_progress,
) -> list[Face]:
    """The ``faces`` of :func:`find_faces`, whose contract and errors are its own."""
    return list(find_faces(images, detector, settings, boxes=boxes, progress=progress).faces)


def find_faces(
    images: Tensor,
    detector: Detector,
    settings: RestoreSettings,
    *,
    boxes: Sequence[Sequence[Box]] | None = None,
    progress: Progress = ignore_progress,
) -> Found:
    """All faces to restore in a batch of photos, and what there was besides.

    images: (B, 3, H, W) RGB, float in [0, 1] or as files store it (uint8, uint16), any device. boxes: per photo, hand-given
    face boxes that replace the search there (score 1.0, filtered and ordered like found ones); one that covers no face is told
    of and left alone, several around one face count as the first of them. Faces are ordered by image row, then by
    ``settings.sort``; ``image_index`` is set, ``matrix`` is None. An upside-down face keeps its own left and right: the crop
    turns it upright.
    Raises InputError when ``boxes`` does not hold one list a photo or a box is empty or outside the photo.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"detect_faces: expected images (B, 3, H, W), got {tuple(images.shape)}")
    total = images.shape[0]
    if boxes is not None and len(boxes) != total:
        raise InputError(f"boxes: expected one list of boxes a photo ({total}), got {len(boxes)}")
    faces: list[Face] = []
    counts: list[int] = []
    faceless: list[tuple[int, Box]] = []
    for row in range(total):
        image = images[row]
        size = (image.shape[-2], image.shape[-1])
        if boxes is None:
            found = search(image, detector, settings)
        else:
            looks = [(box, face_in_box(image, check_box(box, size), detector, settings)) for box in boxes[row]]
            found = distinct([face for _, face in looks if face is not None])
            faceless += [(row, box) for box, face in looks if face is None]
        faces += [replace(face, image_index=row, matrix=None) for face in select(found, size, settings)]
        counts.append(len(found))
        progress("detect", row + 1, total)
    return Found(tuple(faces), tuple(counts), tuple(faceless))


def search(image: Tensor, detector: Detector, settings: RestoreSettings) -> list[Face]:
    """Every face the detector finds in one image (3, H, W), at the scales and turns the settings allow, without duplicates.

    The work does not grow with the image: it is made small once, and turned when it is small. Of the turns, the one in which
    the smaller look sees most is looked at in the larger one as well.
    """
    sides = detection_sides(image.shape[-2:], settings)
    near, to_image = reduced(image, sides[-1])
    looks = [resized(near, side) for side in sides]

    def see(turns: int, look: int, threshold: float) -> list[Face]:
        small, to_near = looks[look]
        found = turned(small, turns, lambda shown: detector(shown, threshold)) if turns else detector(small, threshold)
        return [moved(face, compose(to_image, to_near)) for face in found if usable(face) and face.score >= threshold]

    found = merge([face for look in range(len(looks)) for face in see(0, look, settings.threshold)])
    if found or not settings.rotate:
        return found
    if len(looks) == 1:
        return merge([face for turns in (1, 2, 3) for face in see(turns, 0, settings.threshold)])
    hints = {turns: see(turns, 0, HINT * settings.threshold) for turns in (1, 2, 3)}
    best = max(hints, key=lambda turns: max((face.score for face in hints[turns]), default=0.0))
    closer = see(best, 1, settings.threshold) if hints[best] else []
    return merge([face for seen in (*hints.values(), closer) for face in seen if face.score >= settings.threshold])


def detection_sides(size: Sequence[int], settings: RestoreSettings) -> list[int]:
    """The longer sides at which a photo of ``size`` (h, w) is looked at."""
    longest = max(size)
    sides = [min(longest, settings.detect_side)]
    if settings.small_faces and longest > settings.detect_side:
        sides.append(min(longest, 2 * settings.detect_side))
    return sides


def reduced(image: Tensor, side: int) -> tuple[Tensor, Matrix]:
    """The image (3, H, W), float or as stored, as float with its longer side at ``side`` to twice that, and the matrix back.

    Means of whole blocks of pixels, a strip at a time: neither memory nor what follows grows with the image. An image of less
    than twice ``side`` stays as it is.
    """
    step = max(image.shape[-2:]) // side
    if step < 2:
        return to_unit(image), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    rows = step * max(1, STRIP // (step * image.shape[-1]))
    strips = [
        F.avg_pool2d(to_unit(image[:, top : top + rows])[None], step, ceil_mode=True, count_include_pad=False)[0]
        for top in range(0, image.shape[-2], rows)
    ]
    k = float(step)
    return torch.cat(strips, dim=1), ((k, 0.0, 0.5 * k - 0.5), (0.0, k, 0.5 * k - 0.5))


def resized(image: Tensor, side: int) -> tuple[Tensor, Matrix]:
    """The image (3, H, W) with its longer side at ``side``, low-pass filtered, and the matrix from it back to the image."""
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale == 1:
        return image, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
    kx, ky = width / size[1], height / size[0]
    return small, ((kx, 0.0, 0.5 * kx - 0.5), (0.0, ky, 0.5 * ky - 0.5))


def turned(image: Tensor, turns: int, find: Callable[[Tensor], list[Face]]) -> list[Face]:
    """What ``find`` finds in the image (3, H, W) turned counter-clockwise by ``turns`` quarters, in pixels of the image."""
    height, width = image.shape[-2:]
    back: Matrix = {
        1: ((0.0, -1.0, width - 1.0), (1.0, 0.0, 0.0)),
        2: ((-1.0, 0.0, width - 1.0), (0.0, -1.0, height - 1.0)),
        3: ((0.0, 1.0, 0.0), (-1.0, 0.0, height - 1.0)),
    }[turns]
    return [moved(face, back) for face in find(torch.rot90(image, turns, (-2, -1)))]


def moved(face: Face, matrix: Matrix) -> Face:
    """The face through ``matrix``: landmarks mapped, the box the bounds of its mapped corners."""
    x0, y0, x1, y1 = face.box
    corners = transform(matrix, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    xs, ys = [x for x, _ in corners], [y for _, y in corners]
    return replace(face, box=(min(xs), min(ys), max(xs), max(ys)), landmarks=five(transform(matrix, face.landmarks)))


# --- hand-given boxes ------------------------------------------------------------------------------------------------


def check_box(box: Box, size: tuple[int, int]) -> Box:
    """The box as floats. Raises InputError unless it is finite, has an inside and touches the photo of ``size`` (h, w)."""
    height, width = size
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        raise InputError(f"box: expected four finite numbers (x0, y0, x1, y1), got {tuple(box)}")
    x0, y0, x1, y1 = (float(v) for v in box)
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise InputError(f"box: expected x0 < x1 and y0 < y1, at least one pixel apart, got {tuple(box)}")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise InputError(f"box: expected one that touches the photo of {width}x{height} pixels, got {tuple(box)}")
    return x0, y0, x1, y1


def face_in_box(image: Tensor, box: Box, detector: Detector, settings: RestoreSettings) -> Face | None:
    """The face in a hand-given box, with the detector's landmarks; None where it finds none there.

    A face guessed from the box alone would be restored into a smear: the box may be a tool's default, or cover a hand.
    """
    x0, y0, x1, y1 = box
    height, width = image.shape[-2:]
    dx, dy = BOX_CONTEXT * (x1 - x0), BOX_CONTEXT * (y1 - y0)
    left, top = max(0, math.floor(x0 - dx)), max(0, math.floor(y0 - dy))
    right, bottom = min(width, math.ceil(x1 + dx) + 1), min(height, math.ceil(y1 + dy) + 1)
    region = to_unit(image[:, top:bottom, left:right])
    small, (row0, row1) = resized(region, BOX_SIDE)
    matrix: Matrix = ((row0[0], row0[1], row0[2] + left), (row1[0], row1[1], row1[2] + top))
    threshold = min(BOX_THRESHOLD, settings.threshold)

    def look(upright: Tensor) -> list[Face]:
        return [face for face in detector(upright, threshold) if usable(face)]

    def fits(found: list[Face]) -> list[Face]:
        mapped = [moved(face, matrix) for face in found]
        return [face for face in mapped if overlap(face.box, box) >= 0.25]

    found = fits(look(small))
    if not found and settings.rotate:
        found = fits([face for turns in (1, 2, 3) for face in turned(small, turns, look)])
    if not found:
        return None
    best = max(found, key=lambda face: face.score * overlap(face.box, box))
    return Face(box, best.landmarks, 1.0)


# --- choosing --------------------------------------------------------------------------------------------------------


def select(faces: Sequence[Face], size: tuple[int, int], settings: RestoreSettings) -> list[Face]:
    """The faces of one photo of ``size`` (h, w) that the settings want, in their order: by size, sorted, top k, by number."""
    kept = [
        face for face in faces if face.size >= settings.min_face and (not settings.max_face or face.size <= settings.max_face)
    ]
    kept = ordered(kept, size, settings.sort)
    if settings.top_k:
        kept = kept[: settings.top_k]
    wanted = settings.face_indices()
    return [face for number, face in enumerate(kept) if not wanted or number in wanted]


def choice_note(found: int, chosen: int, settings: RestoreSettings) -> str:
    """'1 found, 0 selected (Smallest face / Which faces)': said where the settings left faces out; '' where they did not."""
    if chosen >= found:
        return ""
    knobs = [
        option.label for name, (option, default) in options().items() if name in CHOICES and getattr(settings, name) != default
    ]
    return f"{found} found, {chosen} selected ({' / '.join(knobs)})"


def left_out(
    faces: Sequence[Face], counts: Sequence[int], faceless: Sequence[tuple[int, Box]], row: int, settings: RestoreSettings
) -> tuple[str, ...]:
    """What of photo ``row`` was left as it was, in words; the first three as :class:`Found` has them. () = nothing."""
    chosen = sum(face.image_index == row for face in faces)
    choice = choice_note(counts[row] if counts else chosen, chosen, settings)
    empty = [box for at, box in faceless if at == row]
    boxes = [f"box {', '.join(f'{value:.6g}' for value in box)}: no face in it, left alone" for box in empty]
    return (*filter(None, [choice]), *boxes)


def ordered(faces: Sequence[Face], size: tuple[int, int], sort: str) -> list[Face]:
    """The faces in the order ``sort`` (one of settings.SORTS); equals stay from top to bottom, then left to right."""
    height, width = size

    def middle(face: Face) -> tuple[float, float]:
        return (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2

    def from_centre(face: Face) -> float:
        x, y = middle(face)
        return math.hypot(x - (width - 1) / 2, y - (height - 1) / 2)

    keys: dict[str, Callable[[Face], float]] = {
        "area": lambda face: -face.width * face.height,
        "x": lambda face: middle(face)[0],
        "y": lambda face: middle(face)[1],
        "score": lambda face: -face.score,
        "centre": from_centre,
    }
    return sorted(faces, key=lambda face: (keys[sort](face), middle(face)[1], middle(face)[0]))
