"""Which files are opened: the formats on one list, told by their content and not by their name.

Pillow would open some forty formats, a PostScript program among them, which it hands to an interpreter. Every reader of the
repository, the training's too, opens pictures through :func:`open_image`.
"""

from __future__ import annotations

import importlib
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import ImageFileError
from . import jxl

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "AVIF", "HEIF", "JXL")
"""Pillow's names of the formats that are opened; the last three where this Pillow or a plug-in of it has them."""

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".jpx", ".j2k", ".ppm",
    ".pgm", ".pnm", ".avif", ".heic", ".heif", ".hif", ".jxl",
)  # fmt: skip
"""What counts as an image when a folder is searched."""

PLUG_INS = {
    "AVIF": ("pillow_avif", "pillow-avif-plugin"),
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""Format -> (module, package) that teaches Pillow to read it: what the extra ``lafr[formats]`` installs."""

_RAW = "a camera's raw file: develop it to TIFF or PNG first (darktable, RawTherapee)"
_LAYERS = "a drawing program's file: export it as PNG or TIFF (GIMP, Krita, Photoshop)"
_PROGRAM = "a page description, not a photo: draw it as PNG first (pdftoppm, Inkscape)"
_OTHER = "a format that is not opened: convert it to PNG first (ImageMagick, GIMP)"
_UNOPENED = {
    _RAW: (
        ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .rwl .x3f .3fr .fff .iiq .erf .kdc .dcr .mrw "
        ".mos"
    ),
    _LAYERS: ".psd .psb .xcf .kra .ora .clip .afphoto",
    _PROGRAM: ".eps .ps .ai .pdf .svg .svgz .wmf .emf .djvu",
    _OTHER: ".tga .pcx .exr .hdr .ico .icns .sgi .ras .dds .pict .pct .xpm .xbm .fits .wbmp .qoi .jxr .wdp .hdp",
}
UNOPENED = {suffix: why for why, suffixes in _UNOPENED.items() for suffix in suffixes.split()}
"""Suffix of a picture that is not opened -> what would read it. A folder's are listed, so that none is missed silently."""

_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"hevc": "HEIF", b"hevx": "HEIF", b"mif1": "HEIF",
    b"msf1": "HEIF", b"heim": "HEIF", b"heis": "HEIF",
}  # fmt: skip
_MAGIC = (
    (b"\xff\x0a", "JXL"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"),
    (b"%!PS", _PROGRAM),
    (b"\xc5\xd0\xd3\xc6", _PROGRAM),
    (b"%PDF", _PROGRAM),
    (b"8BPS", _LAYERS),
    (b"gimp xcf", _LAYERS),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIRO", _RAW),
    (b"IIU\0", _RAW),
    (b"II\x1a\0\0\0HEAPCCDR", _RAW),
)
_DNG_VERSION = 50706  # TIFF tag


def regular_file(path: Path) -> str | None:
    """Why ``path`` is no file that can be opened: a pipe, a device, a link to itself, a folder; None where it is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "expected an image file, found no file there; check the path"
    except (OSError, ValueError) as error:
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(mode):
        return "expected an image file, got a folder"
    return None if stat.S_ISREG(mode) else "expected an image file, got a pipe, socket or device; it was not opened"


def open_image(stream: BinaryIO, max_pixels: int | None = None) -> Image.Image:
    """The picture in an open stream, not decoded yet; how large it may be is for the caller to say.

    max_pixels: what the caller will say, for GIF, WebP and JPEG XL, whose canvas is made when the file is opened. Raises
    ImageFileError for everything that is not on the list, Pillow's DecompressionBombError for such a canvas.
    """
    stream.seek(0)
    head = stream.read(32)
    kind = _kind(head)
    if kind in PLUG_INS:
        _plug_in(kind)
    elif kind is not None:
        raise ImageFileError(kind)
    width, height = jxl.size(stream) if kind == "JXL" else _webp_canvas(head)
    if kind == "JXL" and not width:
        raise ImageFileError(_damaged(kind))
    if max_pixels is not None and width * height > max_pixels:
        raise Image.DecompressionBombError(f"{width}x{height} pixels")
    stream.seek(0)
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with canvas_limit(max_pixels if head.startswith(b"GIF8") else None):
            image = Image.open(stream, formats=known)
    except UnidentifiedImageError:
        if kind in PLUG_INS and kind in known:
            raise ImageFileError(_damaged(kind)) from None
        raise ImageFileError("not an image this Pillow can read; convert it to PNG, TIFF or JPEG") from None
    if image.format == "TIFF" and (_DNG_VERSION in getattr(image, "tag_v2", {}) or head[8:10] == b"CR"):
        raise ImageFileError(_RAW)  # what Pillow sees of it is a thumbnail
    return image


@contextmanager
def canvas_limit(max_pixels: int | None) -> Iterator[None]:
    """While this is entered Pillow makes no canvas of a GIF of more pixels (None = any): it does so when a file is opened, and
    for each further picture. Raises Pillow's DecompressionBombError. Not for several threads at a time."""
    before = Image.MAX_IMAGE_PIXELS
    # Pillow refuses what is more than twice its limit; where it has none, the caller's speaks.
    Image.MAX_IMAGE_PIXELS = None if max_pixels is None else (max_pixels + 1) // 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except Image.DecompressionBombError:
        raise Image.DecompressionBombError("the canvas of a GIF") from None
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def salvaging(wanted: bool) -> Iterator[None]:
    """While this is entered Pillow decodes what there is of a file that is cut short. Not for several threads at a time."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = wanted or before
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _kind(head: bytes) -> str | None:
    """A format that needs a plug-in, or the sentence about one that is not opened; None for the rest."""
    if head[4:8] == b"ftyp":
        return _RAW if head[8:11] == b"crx" else _BRANDS.get(head[8:12])
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def _damaged(kind: str) -> str:
    return f"damaged or cut short (a {kind} picture that cannot be decoded); copy it again"


def _webp_canvas(head: bytes) -> tuple[int, int]:
    """(w, h) of the canvas of a WebP that says it in an extended header (RFC 9649, 2.7); (0, 0) for other files: plain ones are
    16383 pixels wide and high at most."""
    if head[:4] + head[8:16] != b"RIFFWEBPVP8X":
        return 0, 0
    return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")


def _plug_in(kind: str) -> None:
    """See that Pillow can read ``kind``. Raises ImageFileError naming the package where it cannot."""
    Image.init()
    if kind in Image.OPEN:
        return
    module, package = PLUG_INS[kind]
    try:
        plug_in = importlib.import_module(module)
    except Exception as error:  # a plug-in built for another Pillow raises what it likes
        raise ImageFileError(
            f"a {kind} picture, which needs the package {package}; run pip install {package}, or convert it to PNG or JPEG"
        ) from error
    if kind == "HEIF":
        plug_in.register_heif_opener()
