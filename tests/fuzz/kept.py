"""Keep masks of every kind, whole and damaged, on a photo with a face.

What is white in the mask is bit-identical to the photo, what is black is bit-identical to the result without a mask, and what
is gray lies between them by its share. A mask of another size is refused.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fakes import face_at, parts
from frame import Case, Group, mutated, rounds
from numpy.typing import NDArray
from PIL import Image

from lafr_core.app.batch import restore_photo
from lafr_core.app.jobs import Job
from lafr_core.app.keep import KeepMasks
from lafr_core.errors import LafrError
from lafr_core.images import photos
from lafr_core.images.photos import Photo
from lafr_core.settings import RestoreSettings

WIDTH, HEIGHT = 60, 72
MAX_PIXELS = 1_000_000
Light = NDArray[np.float64]


def lights() -> NDArray[np.uint8]:
    """(H, W): black, white and every gray, such that no turn of it is itself."""
    ramp = np.linspace(0, 255, WIDTH * HEIGHT // 3).round().astype(np.uint8)
    third = WIDTH * HEIGHT // 3
    return (
        np.concatenate([np.zeros(third), ramp, np.full(WIDTH * HEIGHT - 2 * third, 255)])
        .reshape(HEIGHT, WIDTH)
        .astype(np.uint8)
    )


def masks() -> dict[str, tuple[bytes, Light | None]]:
    """The kind of mask -> its file, and what it says in [0, 1]; None where it says that only roughly, or does not fit."""
    light = lights()
    gray = Image.fromarray(light)
    rgb = Image.merge("RGB", [gray] * 3)
    steps = Image.fromarray((light // 64 * 85).astype(np.uint8))
    deep = Image.fromarray(light.astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = gray.transpose(Image.Transpose.ROTATE_90)
    exact, coarse = light / 255, np.asarray(steps) / 255
    made: dict[str, tuple[Image.Image, dict[str, Any], Light | None]] = {
        "png": (gray, {"format": "PNG"}, exact),
        "png rgb": (rgb, {"format": "PNG"}, exact),
        "png alpha": (gray.convert("LA"), {"format": "PNG"}, exact),
        "png palette": (steps.quantize(4), {"format": "PNG"}, coarse),
        "png 1 bit": (gray.point(lambda v: 255 * (v > 127), mode="1"), {"format": "PNG"}, (light > 127).astype(np.float64)),
        "png 16": (deep, {"format": "PNG"}, exact),
        "png turned": (turned, {"format": "PNG", "exif": exif}, exact),
        "tiff 16": (deep, {"format": "TIFF"}, exact),
        "tiff cmyk": (rgb.convert("CMYK"), {"format": "TIFF"}, None),
        "tiff float": (Image.fromarray(light.astype(np.float32)), {"format": "TIFF"}, None),
        "webp": (rgb, {"format": "WEBP", "lossless": True}, exact),
        "jpeg": (gray, {"format": "JPEG"}, None),
        "bmp": (gray, {"format": "BMP"}, exact),
        "gif": (steps, {"format": "GIF"}, coarse),
        "gif animated": (steps, {"format": "GIF", "save_all": True, "append_images": [Image.new("L", steps.size, 9)]}, coarse),
        "apng": (rgb, {"format": "PNG", "save_all": True, "append_images": [Image.new("RGB", rgb.size)]}, exact),
        "wider": (Image.new("L", (WIDTH + 1, HEIGHT), 255), {"format": "PNG"}, None),
        "turned about": (turned, {"format": "PNG"}, None),
        "a pixel": (Image.new("L", (1, 1), 255), {"format": "PNG"}, None),
    }  # fmt: skip
    files = {}
    for name, (image, options, says) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, **options)
        files[name] = buffer.getvalue(), says
    return files


@functools.cache
def _photo(upscale: int) -> tuple[Photo, NDArray[np.uint8], NDArray[np.uint8]]:
    """The photo, and it and its result without a mask, both enlarged: (H, W, 3)."""
    pixels = np.frombuffer(random.Random(5).randbytes(3 * WIDTH * HEIGHT), np.uint8).reshape(HEIGHT, WIDTH, 3)
    photo = photos.from_pil(Image.fromarray(pixels))
    without = [_restored(photo, None, upscale, strength) for strength in (0.0, 1.0)]
    return photo, without[0], without[1]


def _restored(photo: Photo, mask: Path | None, upscale: int, strength: float = 1.0) -> NDArray[np.uint8]:
    read: Callable[[Path], Photo] = lambda path: photo if path.name == "photo" else _read(path)
    masks = None if mask is None else KeepMasks(mask, read)
    settings = RestoreSettings(fidelity=0.0, strength=strength, feather=0.0)
    made = restore_photo(
        Job(Path("photo"), Path("photo.png")), parts([face_at(8, 8, 40)]), settings, read=read, upscale=upscale, masks=masks
    )
    return _saved(made.save)


def _saved(save: Callable[[Path], None]) -> NDArray[np.uint8]:
    """The pixels that a result is saved with, without saving them."""
    seen: list[Photo] = []
    write = photos.write
    photos.write = lambda path, photo, *_, **__: seen.append(photo)  # type: ignore[assignment]
    try:
        save(Path("photo.png"))
    finally:
        photos.write = write
    return photos.to_array(seen[0])


def _read(path: Path) -> Photo:
    return photos.read(path, max_pixels=MAX_PIXELS)


def damaged_masks(seed: int) -> Iterator[Case]:
    files = masks()
    others = [data for data, _ in files.values()]
    for name, (data, says), rng in rounds(files, seed):
        upscale = 2 if rng.random() < 0.1 else 1
        if rng.random() < 0.25:
            fits = name not in ("wider", "turned about", "a pixel", "tiff float")
            yield Case(name, data, _kept(upscale, says, fits))
        else:
            yield Case(name, mutated(data, others, rng), _kept(upscale, None, None))


def _kept(upscale: int, says: Light | None, fits: bool | None) -> Callable[[Path], None]:
    """says: the mask in [0, 1] where that is known. fits: whether it must be taken or refused; None = either."""

    def work(path: Path) -> None:
        photo, before, after = _photo(upscale)
        try:
            result = _restored(photo, path, upscale)
        except LafrError:
            assert fits is not True, "a mask that fits is refused"
            raise
        assert fits is not False, "a mask that does not fit is taken"
        light = says if says is not None else _read(path).pixels.double().mean(0).numpy()
        light = light.repeat(upscale, 0).repeat(upscale, 1)
        white, black = light > 1 - 1e-6, light < 1e-6
        assert (result[white] == before[white]).all(), "what is white has changed"
        assert (result[black] == after[black]).all(), "what is black differs from the result without a mask"
        between = after + light[..., None] * (before.astype(np.float64) - after)
        assert np.abs(result - between).max() <= 1.5, "what is gray lies elsewhere"

    return work


GROUPS = {"masks": Group(damaged_masks, lambda: (_photo(1), _photo(2)))}
