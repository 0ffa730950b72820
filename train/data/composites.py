"""Pictures with faces where they say, made of portraits: what the starter detector's nets are trained on.

Every picture is drawn afresh from its own generator: no face, a portrait, or up to twelve faces of any size and angle on
a background without faces; then the whole picture is degraded. Nothing but the portraits, scikit-image's bundled pictures
without faces and drawn patterns goes in. Face boxes follow from the landmarks (:func:`lafr_core.faces.boxes.face_box`).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from lafr_core.faces.boxes import MIRRORED, face_box
from lafr_core.geometry import invert, transform
from lafr_core.images.photos import read_rgb
from lafr_core.types import Box, Matrix, Point
from train.config import Data
from train.data.faces import Picture, labelled_photos
from train.data.photos import Portrait, load_pixels

FACELESS = (
    "brick", "grass", "gravel", "chelsea", "coins", "page", "text", "moon", "horse", "hubble_deep_field", "ihc", "cell",
    "color",
)  # fmt: skip
"""scikit-image's pictures without faces that training sees; the benchmark keeps others."""

CROWDED = (
    "house_chris-pappas", "house_madeleine-dean", "house_michael-guest", "house_raul-grijalva", "house_scott-peters",
    "senate_bill-hagerty",
)  # fmt: skip
"""Portraits with unlabelled faces behind the person (looked at): left out, or they would count as background."""


@dataclass(frozen=True)
class Labelled:
    """A face drawn into a picture. ``certain`` False: too small, too blurred or too cut off to hold the network to it."""

    box: Box
    landmarks: tuple[Point, ...]
    certain: bool

    @property
    def size(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


class Library:
    """The portraits at half, quarter and eighth size, and pictures without faces, all in memory as uint8."""

    def __init__(self, photos: list[Portrait]) -> None:
        self.photos = photos
        self.pictures = [Picture(photo.path.name, photo.path) for photo in photos]
        self.levels: list[tuple[Image.Image, ...]] = []
        for photo in photos:
            full = Image.fromarray(load_pixels(photo))
            self.levels.append(tuple(full.reduce(k) for k in (2, 4, 8)))
        self.faceless = faceless_pictures(FACELESS)

    def view(self, index: int, matrix: Matrix, size: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Image.Image:
        """Photo ``index`` through ``matrix`` (photo -> canvas), the canvas region of ``size`` (w, h) at ``origin``."""
        back = np.asarray(invert(matrix))
        scale = 1.0 / math.sqrt(abs(float(np.linalg.det(back[:, :2]))))
        level = 0 if scale > 0.27 else 1 if scale > 0.135 else 2
        shrink = 2 << level
        # PIL has pixel corners at integers, our matrices pixel centres; the reduced level is `shrink` times smaller.
        a = back[:, :2] / shrink
        t = a @ (np.asarray(origin, dtype=float) - 0.5) + (back[:, 2] + 0.5) / shrink
        data = (a[0, 0], a[0, 1], t[0], a[1, 0], a[1, 1], t[1])
        return self.levels[index][level].transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def open_library(data: Data) -> Library:
    """The portraits of ``data.source`` without the crowded ones."""
    return Library([photo for photo in labelled_photos(data) if photo.path.stem not in CROWDED])


def faceless_pictures(names: tuple[str, ...], side: int = 700) -> list[Image.Image]:
    """scikit-image's bundled pictures of these names as RGB, at most ``side`` pixels wide or high."""
    import skimage

    pictures = []
    for name in names:
        path = next(Path(skimage.__file__).parent.joinpath("data").glob(f"{name}.*"))
        picture = read_rgb(path)
        picture.thumbnail((side, side))
        pictures.append(picture)
    return pictures


# --- backgrounds -----------------------------------------------------------------------------------------------------


def random_crop(g: np.random.Generator, image: Image.Image, side: int) -> Image.Image:
    """A random square part of ``image``, turned by quarter turns and mirrored, at ``side`` pixels."""
    w, h = image.size
    part = int(min(w, h) * g.uniform(0.2, 1.0))
    x, y = int(g.integers(0, w - part + 1)), int(g.integers(0, h - part + 1))
    out = image.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + part, y + part), reducing_gap=2.0)
    if g.random() < 0.5:
        out = out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turn = int(g.integers(0, 4))
    return out if turn == 0 else out.rotate(90 * turn)


def beside_face(g: np.random.Generator, library: Library, side: int) -> Image.Image:
    """Clothing, shoulders, hair or wall: a part of a portrait that its face box does not reach, stretched to a square."""
    index = int(g.integers(len(library.photos)))
    image = library.levels[index][0]
    w, h = image.size
    x0, y0, x1, y1 = (v / 2 for v in face_box(library.photos[index].landmarks))
    strips = [(0, y1, w, h), (0, 0, x0, h), (x1, 0, w, h), (0, 0, w, y0)]
    strips = [s for s in strips if s[2] - s[0] > 24 and s[3] - s[1] > 24]
    if not strips:
        return pattern(g, side)
    areas = np.asarray([(s[2] - s[0]) * (s[3] - s[1]) for s in strips])
    left, top, right, bottom = strips[int(g.choice(len(strips), p=areas / areas.sum()))]
    pw, ph = (right - left) * g.uniform(0.4, 1.0), (bottom - top) * g.uniform(0.4, 1.0)
    x, y = left + g.uniform(0, right - left - pw), top + g.uniform(0, bottom - top - ph)
    if g.random() < 0.5:  # keep the aspect half of the time: cloth that looks like cloth
        pw = ph = min(pw, ph)
    out = image.resize((side, side), Image.Resampling.BILINEAR, box=(x, y, x + pw, y + ph))
    turn = int(g.integers(0, 4))
    return out if turn == 0 else out.rotate(90 * turn)


def pattern(g: np.random.Generator, side: int) -> Image.Image:
    """Gradients, noise of many octaves, stripes, blobs or discs in random colours."""
    kind = int(g.integers(0, 5))
    low, high = g.integers(0, 256, 3), g.integers(0, 256, 3)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    angle = float(g.uniform(0, 2 * math.pi))
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == 0:
        field = along * 0.5 + 0.5
    elif kind == 1:
        field = np.zeros((side, side), np.float32)
        for cells in (3, 7, 15, 31, 63):
            noise = Image.fromarray(g.random((cells, cells), dtype=np.float32)).resize((side, side), Image.Resampling.BICUBIC)
            field += np.asarray(noise) * float(g.uniform(0.1, 1.0))
        field = (field - field.min()) / (np.ptp(field) + 1e-6)
    elif kind == 2:
        field = 0.5 + 0.5 * np.sign(np.sin(along * float(g.uniform(3, 60))) + float(g.uniform(-0.7, 0.7)))
    elif kind == 3:
        field = np.zeros((side, side), np.float32)
        for _ in range(int(g.integers(2, 30))):
            cx, cy, r = g.uniform(-1, 1), g.uniform(-1, 1), g.uniform(0.02, 0.5)
            d = ((x - cx) ** 2 * g.uniform(0.5, 2) + (y - cy) ** 2) / r**2
            field = np.where(d < 1, np.float32(g.random()), field)
    else:
        noise = Image.fromarray(g.random((side, side), dtype=np.float32))
        field = np.asarray(noise)
    rgb = low + (high - low) * np.clip(field, 0, 1)[..., None]
    return Image.fromarray(rgb.astype(np.uint8))


def shuffled(g: np.random.Generator, image: Image.Image) -> Image.Image:
    """The picture cut into tiles and put together in another order."""
    side = image.size[0]
    n = int(g.integers(2, 7))
    tile = side // n
    out = image.copy()
    order = g.permutation(n * n)
    for place, source in enumerate(order):
        x, y = (int(source) % n) * tile, (int(source) // n) * tile
        out.paste(image.crop((x, y, x + tile, y + tile)), ((place % n) * tile, (place // n) * tile))
    return out


def background(g: np.random.Generator, library: Library, side: int) -> Image.Image:
    """A picture (side x side) without a face."""
    u = g.random()
    if u < 0.4:
        image = beside_face(g, library, side)
    elif u < 0.65:
        image = random_crop(g, library.faceless[int(g.integers(len(library.faceless)))], side)
    elif u < 0.8:
        image = pattern(g, side)
    elif u < 0.9:
        image = Image.blend(beside_face(g, library, side), pattern(g, side), float(g.uniform(0.2, 0.8)))
    else:
        image = zoomed(g, library, side)
    return shuffled(g, image) if u < 0.8 and g.random() < 0.15 else image


def zoomed(g: np.random.Generator, library: Library, side: int) -> Image.Image:
    """A part of a face so large that it is no face at this scale: what the finer pyramid level sees of a big face."""
    index = int(g.integers(len(library.photos)))
    points = np.asarray(library.photos[index].landmarks)
    size = side * math.exp(g.uniform(math.log(2.2), math.log(5.0)))
    look_at = points.mean(0) + g.uniform(-0.45, 0.45, 2) * 280
    matrix = placement(library, index, size, float(g.uniform(-30, 30)), (0.0, 0.0))
    ((x, y),) = transform(matrix, [(float(look_at[0]), float(look_at[1]))])
    (a, b, c), (d, e, f) = matrix
    return library.view(index, ((a, b, c - x + side / 2), (d, e, f - y + side / 2)), (side, side))


# --- faces -----------------------------------------------------------------------------------------------------------


def placement(library: Library, index: int, size: float, degrees: float, centre: Point) -> Matrix:
    """Photo -> canvas: face box of upright length ``size``, turned by ``degrees``, its middle at ``centre``."""
    points = library.photos[index].landmarks
    x0, y0, x1, y1 = face_box(points)
    k = size / max(x1 - x0, y1 - y0)
    c, s = k * math.cos(math.radians(degrees)), k * math.sin(math.radians(degrees))
    mx, my = (x0 + x1) / 2, (y0 + y1) / 2
    return ((c, -s, centre[0] - c * mx + s * my), (s, c, centre[1] - s * mx - c * my))


def draw_angle(g: np.random.Generator) -> float:
    """Mostly near upright, a tail to 45 degrees, now and then lying on the side."""
    u = g.random()
    if u < 0.5:
        return float(np.clip(g.normal(0, 10), -45, 45))
    if u < 0.93:
        return float(g.uniform(-45, 45))
    return float(g.choice([-90.0, 90.0]) + g.uniform(-20, 20))


def visible(box: Box, side: int) -> float:
    """The share of the box inside the canvas."""
    x0, y0, x1, y1 = box
    w = max(0.0, min(x1, side) - max(x0, 0.0))
    h = max(0.0, min(y1, side) - max(y0, 0.0))
    return w * h / ((x1 - x0) * (y1 - y0))


def overlap(box: Box, other: Box) -> float:
    """The share of ``box`` covered by ``other``."""
    w = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    h = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    return w * h / max(1e-6, (box[2] - box[0]) * (box[3] - box[1]))


def soft_mask(
    g: np.random.Generator, library: Library, index: int, matrix: Matrix, region: tuple[int, int, int, int]
) -> Image.Image:
    """How strongly a pasted portrait covers the pixels of ``region`` (x0, y0, x1, y1): a soft ellipse or the photo's frame."""
    x0, y0, x1, y1 = region
    back = np.asarray(invert(matrix))
    xs, ys = np.arange(x0, x1, dtype=np.float32)[None, :], np.arange(y0, y1, dtype=np.float32)[:, None]
    px = back[0, 0] * xs + back[0, 1] * ys + back[0, 2]
    py = back[1, 0] * xs + back[1, 1] * ys + back[1, 2]
    width, height = library.levels[index][0].size
    inside = np.minimum(np.minimum(px, 2 * width - 1 - px), np.minimum(py, 2 * height - 1 - py))
    feather = float(g.uniform(2, 30))
    alpha = np.clip(inside / feather, 0, 1)
    if g.random() < 0.6:
        bx0, by0, bx1, by1 = face_box(library.photos[index].landmarks)
        grow = float(g.uniform(1.15, 2.2))
        rx, ry = (bx1 - bx0) / 2 * grow, (by1 - by0) / 2 * grow
        d = np.sqrt(((px - (bx0 + bx1) / 2) / rx) ** 2 + ((py - (by0 + by1) / 2) / ry) ** 2)
        alpha = alpha * np.clip((1 - d) / float(g.uniform(0.03, 0.3)), 0, 1)
    return Image.fromarray((alpha * 255).astype(np.uint8))


def label(library: Library, index: int, matrix: Matrix, side: int) -> Labelled | None:
    """The pasted face as a label, or None when hardly any of it is on the canvas."""
    points = transform(matrix, library.photos[index].landmarks)
    box = face_box(points)
    share = visible(box, side)
    return None if share < 0.25 else Labelled(box, points, certain=share > 0.6)


def paste_face(g: np.random.Generator, library: Library, canvas: Image.Image, size: float, faces: list[Labelled]) -> None:
    """Paste one portrait with its face of ``size`` pixels where it hides none of ``faces``; appends its label. May give up."""
    side = canvas.size[0]
    index = int(g.integers(len(library.photos)))
    for _ in range(6):
        margin = min(0.35 * size, side / 2 - 1)
        centre = (float(g.uniform(margin, side - margin)), float(g.uniform(margin, side - margin)))
        matrix = placement(library, index, size, draw_angle(g), centre)
        found = label(library, index, matrix, side)
        if found is None or any(overlap(found.box, f.box) > 0.1 or overlap(f.box, found.box) > 0.1 for f in faces):
            continue
        reach = size * float(g.uniform(0.75, 1.3))
        region = tuple(
            int(np.clip(v, 0, side))
            for v in (centre[0] - reach, centre[1] - reach, centre[0] + reach + 1, centre[1] + reach + 1)
        )
        x0, y0, x1, y1 = region
        mask = soft_mask(g, library, index, matrix, (x0, y0, x1, y1))
        covered = np.asarray(mask) > 100
        for f in faces:  # a face under the new patch is no longer a fair label
            fx0, fy0, fx1, fy1 = (int(v) for v in f.box)
            part = covered[max(0, fy0 - y0) : max(0, fy1 - y0), max(0, fx0 - x0) : max(0, fx1 - x0)]
            if part.size and part.sum() > 0.15 * (fx1 - fx0) * (fy1 - fy0):
                break
        else:
            patch = library.view(index, matrix, (x1 - x0, y1 - y0), (x0, y0))
            if g.random() < 0.3:
                gain = float(g.uniform(0.6, 1.4))
                patch = ImageEnhance.Brightness(patch).enhance(gain)
            canvas.paste(patch, (x0, y0), mask)
            faces.append(found)
            return


def portrait(g: np.random.Generator, library: Library, side: int) -> tuple[Image.Image, list[Labelled]]:
    """A whole portrait filling the canvas (its frame over a faceless background), as photos of one person look."""
    index = int(g.integers(len(library.photos)))
    size = side * math.exp(g.uniform(math.log(0.22), math.log(0.95)))
    angle = draw_angle(g)
    if g.random() < 0.4:
        angle = float(g.normal(0, 4))
    shift = g.uniform(-0.5, 0.5, 2) * (side - 0.6 * size)
    matrix = placement(library, index, size, angle, (side / 2 + float(shift[0]), side / 2 + float(shift[1])))
    canvas = background(g, library, side)
    back = np.asarray(invert(matrix))
    xs, ys = np.arange(side, dtype=np.float32)[None, :], np.arange(side, dtype=np.float32)[:, None]
    px, py = back[0, 0] * xs + back[0, 1] * ys + back[0, 2], back[1, 0] * xs + back[1, 1] * ys + back[1, 2]
    w, h = library.levels[index][0].size
    mask = (px > 0) & (px < 2 * w - 1) & (py > 0) & (py < 2 * h - 1)
    canvas.paste(library.view(index, matrix, (side, side)), (0, 0), Image.fromarray((mask * 255).astype(np.uint8)))
    found = label(library, index, matrix, side)
    return canvas, [found] if found else []


def distract(g: np.random.Generator, library: Library, canvas: Image.Image, faces: list[Labelled]) -> None:
    """Paste soft ellipses and discs that are no faces, so that the paste itself gives nothing away."""
    side = canvas.size[0]
    for _ in range(int(g.integers(0, 4))):
        size = int(math.exp(g.uniform(math.log(10), math.log(110))))
        x, y = int(g.integers(-size // 2, side - size // 2)), int(g.integers(-size // 2, side - size // 2))
        box = (float(x), float(y), float(x + size), float(y + size))
        if any(overlap(f.box, box) > 0.05 for f in faces):
            continue
        axis = np.linspace(-1, 1, size, dtype=np.float32)
        d = np.sqrt((axis[None, :] / float(g.uniform(0.6, 1))) ** 2 + axis[:, None] ** 2)
        mask = Image.fromarray((np.clip((1 - d) / float(g.uniform(0.03, 0.4)), 0, 1) * 255).astype(np.uint8))
        u = g.random()
        if u < 0.4:  # bare skin: a patch of cheek or forehead colour without features
            low = np.asarray([g.uniform(60, 250)]) * np.asarray([1.0, g.uniform(0.62, 0.9), g.uniform(0.45, 0.8)])
            high = low * float(g.uniform(0.4, 1.0))
            ramp = (axis[None, :] * float(g.uniform(-1, 1)) + axis[:, None] * float(g.uniform(-1, 1))) * 0.25 + 0.5
            rgb = low + (high - low) * np.clip(ramp, 0, 1)[..., None]
            patch = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
        else:
            patch = background(g, library, max(size, 16)).resize((size, size), Image.Resampling.BILINEAR)
        canvas.paste(patch, (x, y), mask)


def compose_picture(g: np.random.Generator, library: Library, side: int) -> tuple[Image.Image, list[Labelled]]:
    """One training picture before degradation, and its faces."""
    u = g.random()
    faces: list[Labelled] = []
    if u < 0.32:
        canvas, faces = portrait(g, library, side)
        count = int(g.integers(0, 3)) if g.random() < 0.3 else 0
    else:
        canvas = background(g, library, side)
        count = 0 if u < 0.47 else int(g.integers(1, 13)) if g.random() < 0.5 else int(g.integers(1, 4))
    largest = 0.95 * side / math.sqrt(max(1, count))
    sizes = sorted((math.exp(g.uniform(math.log(8.0), math.log(largest))) for _ in range(count)), reverse=True)
    for size in sizes:
        paste_face(g, library, canvas, size, faces)
    if g.random() < 0.5:
        distract(g, library, canvas, faces)
    return canvas, faces


# --- degradation -----------------------------------------------------------------------------------------------------


def degrade_picture(g: np.random.Generator, image: Image.Image, largest: float) -> tuple[NDArray[np.float32], float]:
    """The blind degradation of :mod:`train.degrade` at canvas scale, and the shrink it used. Blur, noise and JPEG act as there.

    The shrink is drawn so that the largest face keeps 11 pixels or more; a picture without faces takes any.
    """
    side = image.size[0]
    u = g.random()
    limit = min(14.0, max(1.0, largest / 11.0)) if largest else 10.0
    ratio = 1.0 if u < 0.25 else math.exp(g.uniform(0.0, math.log(limit)))
    if u > 0.12:
        sigma = ratio * float(g.uniform(0.0, 1.6))
        if g.random() < 0.4:  # anisotropic: blur in a squeezed copy
            squeeze = float(g.uniform(0.4, 1.0))
            shape = (max(8, int(side * squeeze)), side) if g.random() < 0.5 else (side, max(8, int(side * squeeze)))
            image = image.resize(shape, Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(sigma * squeeze))
        elif sigma > 0.2:
            image = image.filter(ImageFilter.GaussianBlur(sigma))
    small = max(8, round(side / ratio))
    image = image.resize((small, small), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.float32)
    if g.random() < 0.12:
        pixels = np.repeat(pixels @ np.asarray([[0.299], [0.587], [0.114]], dtype=np.float32), 3, axis=2)
    if g.random() < 0.5:
        pixels = (pixels - 127) * float(g.uniform(0.5, 1.3)) + 127 + float(g.uniform(-50, 50))
        pixels = pixels * g.uniform(0.85, 1.15, 3).astype(np.float32)
    if u > 0.12:
        noise = g.standard_normal(pixels.shape, dtype=np.float32)
        pixels = pixels + (noise if g.random() < 0.7 else noise[..., :1]) * float(g.uniform(0, 20))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if u > 0.12:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(g.integers(30, 96)))
        image = Image.open(buffer).convert("RGB")
    if small != side:
        image = image.resize((side, side), Image.Resampling.BICUBIC if g.random() < 0.8 else Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32) / np.float32(255), ratio


def sample(
    g: np.random.Generator, library: Library, side: int, flip: float = 0.5
) -> tuple[NDArray[np.float32], list[Labelled]]:
    """One training picture (side, side, 3) in [0, 1] and its faces; faces left with too few pixels become uncertain."""
    image, faces = compose_picture(g, library, side)
    largest = max((f.size for f in faces if f.certain), default=0.0)
    pixels, ratio = degrade_picture(g, image, largest)
    if g.random() < flip:
        pixels = pixels[:, ::-1]
        faces = [mirrored(f, side) for f in faces]
    kept = [Labelled(f.box, f.landmarks, f.certain and f.size >= 7.5 and f.size / ratio >= 8.0) for f in faces]
    return pixels, kept


def mirrored(face: Labelled, side: int) -> Labelled:
    """The face in the mirrored picture; left and right landmarks change places."""
    flipped = [(side - 1 - x, y) for x, y in face.landmarks]
    x0, y0, x1, y1 = face.box
    return Labelled((side - 1 - x1, y0, side - 1 - x0, y1), tuple(flipped[i] for i in MIRRORED), face.certain)
