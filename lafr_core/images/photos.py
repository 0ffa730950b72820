"""Image files <-> tensors: every photo decoded right, or refused by name.

What is kept: size (after the EXIF orientation is applied), alpha, ICC profile, EXIF, bit depth, grayness. Pixel values are
taken as stored; only CMYK and Lab, which have no RGB values of their own, are converted (to sRGB). Untouched pixels come back
bit for bit. Reads the formats on the list in :mod:`.formats` with Pillow (9.5 or newer); :mod:`.encode` writes.

16 bits: Pillow reduces 16-bit colour PNG and TIFF files to their high bytes. The low bytes are had by decoding the same file a
second time with the other byte order, so no decoder of our own is needed; :mod:`.png16` and :mod:`.tiff16` write them.

Memory: a picture becomes an array, and an array a file, some rows at a time; Pillow's copy is gone before the next one is made.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from ..errors import ImageFileError, InputError
from ..store.atomic import atomic
from ..types import to_unit
from . import encode, metadata
from .formats import SUFFIXES as SUFFIXES
from .formats import UNOPENED, open_image, regular_file, salvaging
from .metadata import Metadata

MAX_PIXELS = 178_956_970
"""Larger pictures are refused unless asked for: Pillow's own limit against decompression bombs (twice MAX_IMAGE_PIXELS)."""

STRIP = 1 << 22
"""Pixels that are converted at a time: bounds memory, not the result."""

_ORIENTATION = 0x0112
_PHOTOMETRIC, _BITS_PER_SAMPLE, _PLANAR = 262, 258, 284  # TIFF tags
_OTHER_ORDER = {"16B": "16L", "16L": "16B", "16N": "16B" if np.little_endian else "16L"}

_RELATIVE_COLORIMETRIC: Any = 1  # ICC.1:2022, 7.2.15; Pillow 9.5 and newer disagree on the enumeration's type

Array = NDArray[Any]


class Planes:
    """A field of :class:`Photo`: kept with the bits that it is given with, seen as float32 in [0, 1] with its channels."""

    def __init__(self, channels: int, needed: bool) -> None:
        self.channels = channels
        self.needed = needed

    def __set_name__(self, owner: type, name: str) -> None:
        self.slot = f"_{name}"

    def __get__(self, photo: Any, owner: type | None = None) -> Any:
        if photo is None:
            if self.needed:
                raise AttributeError(self.slot)  # a dataclass field without a default
            return None
        stored = photo.__dict__[self.slot]
        if stored is None:
            return None
        seen = to_unit(stored)
        return seen.repeat(self.channels, 1, 1) if len(seen) < self.channels else seen

    def __set__(self, photo: Any, value: Tensor | None) -> None:
        photo.__dict__[self.slot] = value


@dataclass(frozen=True, eq=False)
class Photo:
    """One decoded picture, upright.

    Pixels and alpha may be given as uint8 or uint16, (1, H, W) for gray, and are kept so; they are made float anew each time
    they are looked at, so keep what you got rather than asking twice.
    """

    pixels: Planes = Planes(3, needed=True)
    """(3, H, W) float32 RGB in [0, 1]; gray pictures have three equal channels."""
    alpha: Planes = Planes(1, needed=False)
    """(1, H, W) float32 in [0, 1], 1 = opaque; None where the file has no transparency."""
    icc: bytes | None = None
    """The embedded colour profile, embedded again on saving."""
    exif: bytes | None = None
    """EXIF without its orientation, which is applied to the pixels already. Starts with its TIFF header."""
    bits: int = 8
    """8 or 16 bits a channel, in the file and when saved."""
    gray: bool = False
    """The file holds one channel; saved as one channel again where the pixels are still gray."""
    notes: tuple[str, ...] = ()
    """What a person should know about the reading: 'first of 12 pictures in the file', 'CMYK without a colour profile: ...'"""
    kept: Metadata = Metadata()  # noqa: RUF009 - frozen
    """What else came with the picture: XMP, IPTC, resolution, comment."""

    @property
    def stored(self) -> Tensor:
        """The pixels with the bits they are kept with: (1 or 3, H, W) uint8, uint16 or float32. Not a copy."""
        stored: Tensor = self.__dict__["_pixels"]
        return stored

    @property
    def stored_alpha(self) -> Tensor | None:
        """The alpha with the bits it is kept with, (1, H, W), as :attr:`stored`; None where there is none. Not a copy."""
        stored: Tensor | None = self.__dict__["_alpha"]
        return stored

    def with_pixels(self, pixels: Tensor, alpha: Tensor | None = None) -> Photo:
        """The photo with other pixels, float or as :attr:`stored`, and another alpha where one is given."""
        alpha = self.stored_alpha if alpha is None else alpha
        return replace(self, pixels=pixels, alpha=alpha)  # type: ignore[arg-type]


def read(path: Path, *, salvage: bool = False, max_pixels: int | None = None) -> Photo:
    """The picture in the file. Raises ImageFileError, path and one sentence, for anything that is not a whole picture.

    salvage: of a file that is cut short, what can be decoded, with a note. max_pixels: larger pictures are refused (None =
    MAX_PIXELS).
    """
    path = Path(path)
    if problem := regular_file(path) or UNOPENED.get(path.suffix.lower()):
        raise ImageFileError(f"{path}: {problem}")
    try:
        with path.open("rb") as stream:
            return decode(stream, str(path), salvage=salvage, max_pixels=max_pixels)
    except OSError as error:
        raise ImageFileError(f"{path}: cannot be read ({error.strerror or error})") from error


def read_rgb(path: Path) -> Image.Image:
    """The picture in the file as an upright 8-bit RGB Pillow image: what training sees, read as :func:`read` does."""
    return to_pil(read(path)).convert("RGB")


def decode(stream: BinaryIO, name: str = "image", *, salvage: bool = False, max_pixels: int | None = None) -> Photo:
    """The picture in an open binary stream; ``name`` is what errors call it. See :func:`read`."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    if not stream.read(1):
        raise ImageFileError(f"{name}: is empty (0 bytes); copy the file again")
    try:
        try:
            return _decoded(stream, max_pixels)
        except (ImageFileError, Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if not salvage:
                raise
            with salvaging(True):
                photo = _decoded(stream, max_pixels)
            notes = (*photo.notes, "damaged or cut short: what could be decoded was kept")
            return _noted(photo, notes)
    except ImageFileError as error:
        raise ImageFileError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        raise ImageFileError(
            f"{name}: too large ({error}); the limit is {in_words(max_pixels)}, split or scale it first"
        ) from error
    except MemoryError as error:
        raise ImageFileError(f"{name}: does not fit into memory; scale it down first") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything: SyntaxError, struct.error, KeyError ...
        raise ImageFileError(f"{name}: damaged or cut short ({error or type(error).__name__}); copy it again") from error


def in_words(pixels: int) -> str:
    """178956970 -> '178 megapixels', 5000 -> '5000 pixels'."""
    return f"{pixels // 1_000_000} megapixels" if pixels >= 1_000_000 else f"{pixels} pixels"


def _decoded(stream: BinaryIO, max_pixels: int) -> Photo:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with open_image(stream, max_pixels) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise Image.DecompressionBombError(f"{width}x{height} pixels")
            photo = from_pil(image, _low_bytes(image, stream))
            there = bool(image.info.get("exif"))
    if (there and photo.exif is None) or any("EXIF" in str(warning.message) for warning in said):
        return _noted(photo, (*photo.notes, "EXIF damaged: what cannot be read of it is lost"))
    return photo


def from_pil(image: Image.Image, low: Array | None = None) -> Photo:
    """A Pillow image of any mode as a Photo. ``low``: what :func:`decode` finds in 16-bit colour files; filled up and kept.

    Raises ImageFileError for floating-point and 32-bit pictures, whose range nobody can know.
    """
    image.load()
    notes = []
    frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
    if frames > 1:
        notes.append(f"first of {frames} pictures in the file")
    icc: bytes | None = image.info.get("icc_profile") or None
    orientation = _orientation(image)
    if low is not None:
        gray = low.shape[2] == 2
        array = _gathered(image, lambda strip: _bytes16(strip, [0, 3] if gray else None) << 8, orientation, onto=low)
        if "A" not in image.mode:
            array = _keyed(array[..., :3], image.info.get("transparency"))
    elif image.mode in ("CMYK", "LAB"):
        to_srgb, note = _to_srgb(image, icc)
        array, icc, notes = _gathered(image, to_srgb, orientation), None, [*notes, *note]
    else:
        array = _gathered(image, _reader(image), orientation)

    gray, bits = array.shape[2] < 3, 16 if array.dtype == np.uint16 else 8
    planes = _planes(array)
    color, alpha = (planes[:1], planes[1:2]) if gray else (planes[:3], planes[3:4])
    return Photo(
        pixels=color,  # type: ignore[arg-type]
        alpha=alpha if len(alpha) else None,  # type: ignore[arg-type]
        icc=icc,
        exif=metadata.exif_of(image),
        bits=bits,
        gray=gray,
        notes=tuple(notes),
        kept=metadata.read(image),
    )


def _planes(array: Array) -> Tensor:
    """(H, W, C) whole numbers -> (C, H, W) without copying them, or as float where this torch has no 16-bit unsigned type."""
    planes = array.transpose(2, 0, 1)
    if array.dtype == np.uint16 and not hasattr(torch, "uint16"):
        return torch.from_numpy(planes.astype(np.float32)) / 65535
    return torch.from_numpy(planes)


class Raster:
    """A photo as it will be saved: (H, W, C) uint8 or uint16, made a few rows at a time. Sliced by rows, like an array.

    C = 1 or 2 for gray pictures still gray, else 3 or 4 (with alpha).
    """

    def __init__(self, photo: Photo) -> None:
        self.bits = photo.bits
        self.dtype = np.dtype(np.uint16 if photo.bits == 16 else np.uint8)
        self._color, self._alpha = photo.stored.detach(), photo.stored_alpha
        height, width = self._color.shape[-2:]
        self._height, self._step = height, max(1, STRIP // max(1, width))
        if photo.gray and len(self._color) == 3 and self._is_gray():
            self._color = self._color[:1]
        self._copies = 3 if len(self._color) == 1 and not photo.gray else 1
        self.shape = (height, width, len(self._color) * self._copies + (self._alpha is not None))

    def __getitem__(self, rows: slice) -> Array:
        """The rows, contiguous; a view of the photo's own memory where it has that layout."""
        planes = _quantised(self._color[:, rows], self.bits).repeat(self._copies, axis=0) if self._copies > 1 else None
        color = _quantised(self._color[:, rows], self.bits) if planes is None else planes
        if self._alpha is not None:
            color = np.concatenate([color, _quantised(self._alpha.detach()[:, rows], self.bits)])
        return np.ascontiguousarray(color.transpose(1, 2, 0))

    def _is_gray(self) -> bool:
        for top in range(0, self._height, self._step):
            red, green, blue = _quantised(self._color[:, top : top + self._step], self.bits)
            if not ((red == green).all() and (red == blue).all()):
                return False
        return True


def to_array(photo: Photo) -> Array:
    """The whole of :class:`Raster`."""
    return Raster(photo)[:]


def _quantised(planes: Tensor, bits: int) -> Array:
    """Planes as stored or in [0, 1] -> whole numbers of ``bits``."""
    dtype = np.uint16 if bits == 16 else np.uint8
    stored = planes.detach().cpu()
    if not stored.is_floating_point():
        array: Array = stored.numpy()
        if array.dtype == dtype:
            return array
    scaled = to_unit(stored).clamp(0, 1) * (2**bits - 1)
    return scaled.round().numpy().astype(dtype)


def to_pil(photo: Photo) -> Image.Image:
    """The picture as an 8-bit Pillow image of mode L, LA, RGB or RGBA."""
    array = to_array(photo if photo.bits == 8 else _noted(photo, photo.notes, bits=8))
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write(
    path: Path,
    photo: Photo,
    kind: str | None = None,
    *,
    quality: int = encode.QUALITY,
    called: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Save, whole or not at all, with the photo's alpha, bit depth, profile, EXIF and metadata. The folder must exist.

    kind: png, jpg, webp or tiff; None = what the suffix says, PNG where it says nothing. What the format cannot hold is left
    out (:func:`losses` says what). quality: of JPEG and WebP, 1 to 100. called: the name that people know the file by, where it
    gets that later. Raises InputError when a file is there already and ``overwrite`` is False, ImageFileError when the file
    system refuses.
    """
    path = Path(path)
    taken = InputError(f"{called or path}: a file is there already; choose another name or pass overwrite=True")
    if not overwrite and os.path.lexists(path):
        raise taken
    kind = kind or encode.KINDS.get(path.suffix.lower(), "png")
    if kind == "tiff" and photo.bits == 16 and photo.stored_alpha is not None:
        photo = _noted(photo, photo.notes, gray=False)  # few readers, Pillow not among them, know 16-bit gray with alpha
    try:
        with atomic(path, replace=overwrite) as temporary:
            encode.save(temporary, Raster(photo), kind, icc=photo.icc, exif=photo.exif, kept=photo.kept, quality=quality)
    except FileExistsError:
        raise taken from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageFileError(f"{called or path}: cannot be written ({reason}); make room, or choose another place") from error


def losses(photo: Photo, kind: str) -> list[str]:
    """One sentence for each thing of the photo that a file of ``kind`` cannot hold."""
    return encode.losses(kind, photo.bits, photo.__dict__["_alpha"] is not None, photo.kept, photo.exif)


def recorded(photo: Photo, software: str, what: Mapping[str, Any]) -> Photo:
    """The photo with a record of its restoration in EXIF (software) and XMP (software and ``what``, which is JSON)."""
    exif, kept = metadata.recorded(photo.exif, photo.kept, software, what)
    return _noted(photo, photo.notes, exif=exif, kept=kept)


def _noted(photo: Photo, notes: Sequence[str], **more: Any) -> Photo:
    """The photo with other notes and ``more``, its planes as they are kept."""
    return replace(photo, pixels=photo.stored, alpha=photo.__dict__["_alpha"], notes=tuple(notes), **more)  # type: ignore[arg-type]


def _low_bytes(image: Image.Image, stream: BinaryIO) -> Array | None:
    """The low bytes (H, W, 2..4) uint16, upright, of a 16-bit picture with several channels, which is not loaded yet; None for
    other pictures.

    Pillow's unpackers ending in ;16B keep the first byte of each pair, those in ;16L the second: decoding with the order
    swapped keeps just the bytes that the ordinary decoding drops. Gray with alpha has no ;16L; its pairs are read as four
    channels.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
        raise ImageFileError("a 16-bit TIFF with separate colour planes, which Pillow decodes wrong; save it as 16-bit PNG")
    if {_raw_mode(tile).partition(";")[0] for tile in _tiles(image)} - {"RGB", "RGBA", "RGBX", "LA"}:
        return None
    if not all(_raw_mode(tile).partition(";")[2] in _OTHER_ORDER for tile in _tiles(image)) or not _tiles(image):
        return None
    with open_image(stream) as second:
        gray = _raw_mode(_tiles(second)[0]).startswith("LA")
        second.tile = [_with_raw_mode(tile, "RGBA" if gray else _swapped(_raw_mode(tile))) for tile in _tiles(second)]
        second.load()
        return _gathered(second, lambda strip: _bytes16(strip, [1, 3] if gray else None), _orientation(second))


def _bytes16(strip: Image.Image, channels: Sequence[int] | None) -> Array:
    """The strip (h, W, C) as uint16, or some of its channels."""
    array = np.asarray(strip)
    return (array if channels is None else array[..., channels]).astype(np.uint16)


def _gathered(image: Image.Image, rows: Callable[[Image.Image], Array], orientation: int, onto: Array | None = None) -> Array:
    """The upright array (H, W, C) of what ``rows`` makes of strips of a loaded image: (h, W) or (h, W, C), whole numbers.

    onto: such an array, to which they are added where it lies. Nothing else of the size of the picture is made.
    """
    width, height = image.size
    step = max(1, STRIP // max(1, width))
    for top in range(0, max(1, height), step):
        strip = rows(image.crop((0, top, width, min(height, top + step))))
        strip = strip if strip.ndim == 3 else strip[..., None]
        if top == 0:
            size = (width, height) if orientation in _TURNED else (height, width)
            upright = np.empty((*size, strip.shape[2]), strip.dtype) if onto is None else onto
            stored = _upright(upright, _BACK.get(orientation, orientation))
        if onto is None:
            stored[top : top + step] = strip
        else:
            stored[top : top + step] += strip
    return upright


def _tiles(image: Image.Image) -> list[Any]:
    return list(getattr(image, "tile", []))


def _raw_mode(tile: Any) -> str:
    """How the tile's bytes are packed: the decoder's only or first argument."""
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _with_raw_mode(tile: Any, mode: str) -> Any:
    args = tile[3]
    args = (mode, *args[1:]) if isinstance(args, tuple) else mode
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)  # a plain tuple before Pillow 11


def _swapped(mode: str) -> str:
    name, _, order = mode.partition(";")
    return f"{name};{_OTHER_ORDER[order]}"


def _reader(image: Image.Image) -> Callable[[Image.Image], Array]:
    """What makes arrays (h, W) or (h, W, C), uint8 or uint16, of strips of this image of RGB or gray values; transparency
    becomes a channel."""
    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or mode == "I":
        return _gray16(image, key)
    if mode == "F":
        raise ImageFileError("a floating-point picture, whose range is not known; save it with 8 or 16 bits")
    if mode in ("1", "L"):
        shown = "LA" if key is not None else "L"
    elif mode in ("LA", "La"):
        shown = "LA"
    else:
        shown = "RGBA" if mode in ("RGBA", "RGBa", "PA") or key is not None else "RGB"
    return lambda strip: np.asarray(strip if strip.mode == shown else strip.convert(shown))


def _gray16(image: Image.Image, key: Any) -> Callable[[Image.Image], Array]:
    """Modes I;16 and I (what older Pillows make of 16-bit gray): strips become (h, W, 1) or, with a transparent value,
    (h, W, 2) uint16."""
    tags = getattr(image, "tag_v2", {})
    depth = max(tags.get(_BITS_PER_SAMPLE, (16,)))
    white_is_zero = tags.get(_PHOTOMETRIC) == 0  # Pillow inverts 8-bit files of this kind but not 16-bit ones

    def rows(strip: Image.Image) -> Array:
        array = np.asarray(strip)
        if depth != 16 or array.min() < 0 or array.max() > 65535:
            kind = f"a {image.format} with {depth}-bit or signed whole numbers"
            raise ImageFileError(f"{kind}; save it with 8 or 16 unsigned bits")
        array = array.astype(np.uint16)
        return _keyed((65535 - array if white_is_zero else array)[..., None], key)

    return rows


def _keyed(array: Array, key: Any) -> Array:
    """16-bit colours (H, W, C) with PNG's one transparent colour as an alpha channel; unchanged when ``key`` is None."""
    if key is None:
        return array
    opaque = (array != np.asarray(key, dtype=np.int64).reshape(-1)).any(-1, keepdims=True)
    return np.concatenate([array, opaque.astype(np.uint16) * 65535], axis=-1)


def _to_srgb(image: Image.Image, icc: bytes | None) -> tuple[Callable[[Image.Image], Array], list[str]]:
    """What makes (h, W, 3) uint8 sRGB of strips of a CMYK or Lab image, and notes. CMYK goes through its embedded profile
    (relative colorimetric); without a usable one through Pillow's plain formula, which is only roughly right."""
    target = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        source: Any = ImageCms.createProfile("LAB")
    elif icc is not None:
        source = io.BytesIO(icc)
    else:
        return _plainly, ["CMYK without a colour profile: colours are approximate"]
    try:
        source = ImageCms.ImageCmsProfile(source)
        turn: Any = ImageCms.buildTransform(source, target, image.mode, "RGB", renderingIntent=_RELATIVE_COLORIMETRIC)
        ImageCms.applyTransform(Image.new(image.mode, (1, 1)), turn)
    except (ImageCms.PyCMSError, OSError):
        return _plainly, ["CMYK with an unusable colour profile: colours are approximate"]
    return lambda strip: np.asarray(ImageCms.applyTransform(strip, turn)), [f"{image.mode} converted to sRGB"]


def _plainly(image: Image.Image) -> Array:
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that a loaded image still has."""
    # Pillow turns TIFF upright while loading, but before version 10 it leaves the tag as it was.
    return 1 if image.format == "TIFF" else int(image.getexif().get(_ORIENTATION, 1))


_UPRIGHT: dict[int, Callable[[Array], Array]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF orientation -> the step that makes the stored rows and columns upright (EXIF 2.32, tag 0x0112); others mean upright."""

_TURNED = (5, 6, 7, 8)
"""Orientations in which rows and columns change places."""
_BACK = {6: 8, 8: 6}
"""Orientations that are not their own inverse."""


def _upright(array: Array, orientation: int) -> Array:
    return _UPRIGHT.get(orientation, lambda a: a)(array)
