"""A small TIFF encoder for 16 bits a channel, which Pillow cannot write for colour pictures.

TIFF 6.0 (Adobe, 1992): header and directories (section 2), RGB and gray (4 to 6), differencing predictor (14), extra samples
(18); deflate as in Adobe Photoshop TIFF Technical Notes (2002). Little-endian, chunky, in strips.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .rows import Rows

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 7
_CODES = {BYTE: "B", SHORT: "H", LONG: "I", UNDEFINED: "B"}
_STRIP = 1 << 16
"""Bytes of a strip before it is packed: what TIFF readers hold at a time."""
_LARGEST = (1 << 32) - (1 << 20)
"""Where a directory may begin at the latest: offsets have 32 bits."""


def encode(
    file: BinaryIO,
    pixels: Rows,
    icc: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    more: Mapping[int, tuple[int, str | bytes]] | None = None,
) -> None:
    """Rows (H, W, 1..4) of uint16 into an open file. ``more``: other tags as (type, value).

    Raises ValueError where the file would pass 4 GB, which this format cannot.
    """
    height, width, channels = pixels.shape
    rows = max(1, _STRIP // (2 * channels * width))
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    offsets, counts = [], []
    for top in range(0, height, rows):
        packed = zlib.compress(_differences(pixels[top : top + rows]), 6)
        offsets.append(file.tell())
        counts.append(len(packed))
        file.write(packed)
        if file.tell() > _LARGEST:
            raise ValueError("a TIFF file holds at most 4 GB; write PNG")
    alpha = channels in (2, 4)
    tags = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [16] * channels),
        259: (SHORT, [8]),  # Adobe deflate
        262: (SHORT, [2 if channels > 2 else 1]),  # RGB, or gray where black is zero
        273: (LONG, offsets),
        277: (SHORT, [channels]),
        278: (LONG, [rows]),
        279: (LONG, counts),
        284: (SHORT, [1]),
        317: (SHORT, [2]),
        **({282: (RATIONAL, dpi[0]), 283: (RATIONAL, dpi[1]), 296: (SHORT, [2])} if dpi else {}),
        **({338: (SHORT, [2])} if alpha else {}),  # transparency, colours not multiplied by it
        **({34675: (UNDEFINED, icc)} if icc else {}),
        **(more or {}),
    }
    file.write(b"\0" * (file.tell() % 2))
    start = file.tell()
    file.write(_directory(tags, start))
    file.seek(4)
    file.write(struct.pack("<I", start))


def add_directories(file: BinaryIO, directories: Mapping[int, Callable[[int], bytes]]) -> None:
    """Directories of their own for a little-endian TIFF in an open file: tag -> what makes the bytes for the place where they
    will stand. What was the first directory is written anew behind them, with their tags."""
    file.seek(0)
    order, _, start = struct.unpack("<2sHI", file.read(8))
    if order != b"II":  # Pillow writes as the machine does
        return
    file.seek(start)
    (count,) = struct.unpack("<H", file.read(2))
    entries = [file.read(12) for _ in range(count)]
    following = file.read(4)
    file.seek(0, 2)
    for tag, made in directories.items():
        file.write(b"\0" * (file.tell() % 2))
        place = file.tell()
        file.write(made(place))
        entries.append(struct.pack("<HHII", tag, LONG, 1, place))
    file.write(b"\0" * (file.tell() % 2))
    start = file.tell()
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    file.write(struct.pack("<H", len(entries)) + b"".join(entries) + following)
    file.seek(4)
    file.write(struct.pack("<I", start))


def _differences(rows: NDArray[np.uint16]) -> bytes:
    """Each value less the one of the pixel to its left, modulo 65536."""
    made = rows.astype("<u2")
    made[:, 1:] -= rows[:, :-1]
    return made.tobytes()


def _directory(tags: Mapping[int, tuple[int, Any]], start: int) -> bytes:
    """The directory that begins at ``start``, with the values that do not fit into its entries behind it."""
    entries, values = b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        count, data = _packed(kind, value)
        if len(data) > 4:
            place = struct.pack("<I", behind + len(values))
            values += data + b"\0" * (len(data) % 2)
        else:
            place = data.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    return struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + values


def _packed(kind: int, value: Any) -> tuple[int, bytes]:
    """How many values of ``kind`` there are, and their bytes."""
    if kind == RATIONAL:
        share = Fraction(value).limit_denominator(10_000)
        return 1, struct.pack("<II", share.numerator, share.denominator)
    if isinstance(value, str):
        value = value.encode("utf-8", "replace") + b"\0"
    if isinstance(value, bytes):
        return len(value), value
    return len(value), struct.pack(f"<{len(value)}{_CODES[kind]}", *value)
