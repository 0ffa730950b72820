"""A small PNG encoder for 16 bits a channel, which Pillow cannot write for colour pictures.

PNG specification, third edition (W3C 2023): signature and chunks (5), filters (9.2), deflate (10). Colour types 0, 2, 4 and
6, no interlacing, the filter of each row chosen by the specification's minimum-sum-of-absolute-differences heuristic (12.7).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from .rows import Rows

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
"""Channels -> PNG colour type: gray, gray + alpha, RGB, RGBA."""
_ROWS = 256
"""Rows filtered at a time: bounds memory, not the result."""


def encode(
    pixels: Rows,
    icc: bytes | None = None,
    exif: bytes | None = None,
    more: Iterable[tuple[bytes, bytes]] = (),
) -> Iterator[bytes]:
    """Rows (H, W, 1..4) of uint16 -> the PNG file, piece by piece. ``exif`` starts with its TIFF header, ``more`` is
    (name, data)."""
    height, width, channels = pixels.shape
    yield b"\x89PNG\r\n\x1a\n"
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPE[channels], 0, 0, 0))
    if icc:
        yield _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if exif:
        yield _chunk(b"eXIf", exif)
    for name, data in more:
        yield _chunk(name, data)
    deflate = zlib.compressobj(6)
    above = np.zeros(width * channels * 2, dtype=np.uint8)
    for start in range(0, height, _ROWS):
        rows = np.ascontiguousarray(pixels[start : start + _ROWS].astype(">u2")).view(np.uint8).reshape(-1, above.size)
        packed = deflate.compress(_filtered(rows, above, step=channels * 2).tobytes())
        if packed:
            yield _chunk(b"IDAT", packed)
        above = rows[-1]
    yield _chunk(b"IDAT", deflate.flush())
    yield _chunk(b"IEND", b"")


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Bytes (R, N) -> (R, 1 + N): each row by the better of the filters Sub (1) and Up (2), with its filter byte in front."""
    sub = rows.copy()
    sub[:, step:] -= rows[:, :-step]
    up = rows - np.concatenate([above[None], rows[:-1]])
    candidates = np.stack([sub, up])
    cost = np.abs(candidates.view(np.int8).astype(np.int16)).sum(2, dtype=np.int64)
    best = cost.argmin(0)
    chosen = candidates[best, np.arange(len(rows))]
    return np.concatenate([(best + 1).astype(np.uint8)[:, None], chosen], axis=1)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
