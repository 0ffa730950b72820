"""Whole numbers -> the bytes of a picture file, with everything that came with the picture as far as the format holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import metadata, png16, tiff16
from .metadata import Metadata
from .rows import Rows

KINDS = {
    ".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".jpe": "jpg", ".jfif": "jpg", ".webp": "webp", ".tif": "tiff",
    ".tiff": "tiff",
}  # fmt: skip
"""Suffix -> the format that is written under it."""
QUALITY = 95
"""Of JPEG and WebP, as Pillow counts it; WebP at 100 is lossless."""
_ROWS = 256
"""Rows reduced to 8 bits at a time."""
LOSSLESS = ("png", "tiff")
_HOLDS = {
    "png": {"XMP", "IPTC", "resolution (DPI)", "comment"},
    "jpg": {"XMP", "IPTC", "resolution (DPI)", "comment"},
    "tiff": {"XMP", "IPTC", "resolution (DPI)"},
    "webp": {"XMP"},
}


def losses(kind: str, bits: int, alpha: bool, kept: Metadata, exif: bytes | None) -> list[str]:
    """One sentence for each thing that a file of ``kind`` cannot hold."""
    name = {"jpg": "JPEG", "webp": "WebP", "tiff": "TIFF", "png": "PNG"}[kind]
    lost = [f"{what} lost: {name} files hold none" for what in kept.names() if what not in _HOLDS[kind]]
    if kind == "jpg":
        lost += _lost_in_jpeg(kept, exif)
    if bits == 16 and kind not in LOSSLESS:
        lost.append(f"16 bits a channel reduced to 8 for {name}; PNG and TIFF keep them")
    if alpha and kind == "jpg":
        lost.append("transparency laid on white: JPEG files hold none")
    return lost


def _lost_in_jpeg(kept: Metadata, exif: bytes | None) -> list[str]:
    short, short_exif = metadata.in_jpeg(kept, exif)
    long = [what for what in kept.names() if what not in short.names()] + (["EXIF"] if exif and not short_exif else [])
    others = [name for name in kept.texts if name != "Comment"]
    named = [f"texts ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) lost: JPEG files hold a comment only"]
    return [f"{what} lost: longer than the 64 kB that JPEG files hold" for what in long] + (named if others else [])


def save(
    path: Path,
    picture: Rows,
    kind: str,
    *,
    icc: bytes | None,
    exif: bytes | None,
    kept: Metadata,
    quality: int = QUALITY,
) -> None:
    """(H, W, 1..4) uint8 or uint16 into ``path`` as ``kind`` (a value of KINDS). Raises OSError when the disk refuses."""
    if icc and picture.shape[2] > 2 and icc[16:20] == b"GRAY":
        icc = None  # a gray profile describes no RGB picture; readers reject the pair
    if picture.dtype == np.uint16 and kind in LOSSLESS:
        with path.open("wb") as file:
            if kind == "png":
                file.writelines(png16.encode(picture, icc, exif, _chunks(kept)))
            else:
                tiff16.encode(file, picture, icc, kept.dpi, metadata.tiff_values(kept, exif))
        if kind == "tiff":
            _add_directories(path, exif)
        return
    array = picture[:] if picture.dtype == np.uint8 else _high_bytes(picture)
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    extra: dict[str, Any] = {"icc_profile": icc} if icc else {}
    if kept.dpi:
        extra["dpi"] = kept.dpi
    if kind == "jpg":
        kept, exif = metadata.in_jpeg(kept, exif)
    if kind == "tiff":
        tags = metadata.tiff_tags(kept, exif)
        image.save(path, format="TIFF", compression="tiff_adobe_deflate", tiffinfo=tags, **extra)
        _add_directories(path, exif)
        return
    if exif:
        extra["exif"] = exif
    if kind == "png":
        image.save(path, format="PNG", compress_level=4, pnginfo=metadata.png_text(kept), **extra)
        return
    if kept.xmp:
        extra["xmp"] = kept.xmp
    if kind == "webp":
        image.save(path, format="WEBP", quality=quality, lossless=quality == 100, exact=True, **extra)
        return
    if "A" in image.mode:
        image = _on_white(image)
    if exif:
        extra["exif"] = b"Exif\0\0" + exif
    if comment := metadata.comment(kept):
        extra["comment"] = comment
    if segments := metadata.jpeg_segments(kept):
        extra["extra"] = segments
    image.save(path, format="JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, optimize=True, **extra)


def _add_directories(path: Path, exif: bytes | None) -> None:
    """Put what EXIF has in directories of their own into a TIFF: Pillow's packed ones hold none."""
    if directories := metadata.tiff_directories(exif):
        with path.open("r+b") as file:
            tiff16.add_directories(file, {tag: made.tobytes for tag, made in directories.items()})


def _high_bytes(picture: Rows) -> NDArray[np.uint8]:
    high = np.empty(picture.shape, np.uint8)
    for top in range(0, len(high), _ROWS):
        high[top : top + _ROWS] = picture[top : top + _ROWS] >> 8
    return high


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white.convert("L" if image.mode == "LA" else "RGB")


def _chunks(kept: Metadata) -> list[tuple[bytes, bytes]]:
    """The PNG chunks of resolution and texts: (name, data)."""
    found = [(bytes(chunk[0]), bytes(chunk[1])) for chunk in metadata.png_text(kept).chunks]
    if kept.dpi:
        x, y = (round(value / 0.0254) for value in kept.dpi)
        found.append((b"pHYs", x.to_bytes(4, "big") + y.to_bytes(4, "big") + b"\1"))
    return found
