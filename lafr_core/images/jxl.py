"""How large a JPEG XL picture says it is, from its first bytes: its Pillow plug-in decodes a file when it is opened.

ISO/IEC 18181-1 (the size header, bits from the lowest on) and 18181-2 (the container's boxes).
"""

from __future__ import annotations

from typing import BinaryIO

CODESTREAM, CONTAINER = b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"
NEEDED = 16
"""Bytes of the codestream that hold its size: the signature and at most 68 bits."""
BOXES = 1000
"""Boxes of a container that are looked at."""
RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width over height where the header names a ratio, 1 to 7."""


def size(stream: BinaryIO) -> tuple[int, int]:
    """(width, height) in pixels that a JPEG XL file claims; (0, 0) where its bytes claim none, which no decoder opens.

    The stream may stand anywhere and is left anywhere.
    """
    stream.seek(0)
    head = stream.read(len(CONTAINER))
    start = head + stream.read(NEEDED) if head.startswith(CODESTREAM) else _codestream(stream) if head == CONTAINER else b""
    return _size(start[:NEEDED]) if start.startswith(CODESTREAM) else (0, 0)


def _codestream(stream: BinaryIO) -> bytes:
    """The first bytes of the codestream in a container, from the end of its first box on; it may lie in pieces."""
    found = b""
    for _ in range(BOXES):
        here, head = stream.tell(), stream.read(16)
        length, kind, inner = int.from_bytes(head[:4], "big"), head[4:8], 8
        if length == 1:  # the length follows the kind
            length, inner = int.from_bytes(head[8:16], "big"), 16
        if len(head) < 8 or (length and length < inner):
            break
        if kind in (b"jxlc", b"jxlp"):
            skipped = inner + 4 * (kind == b"jxlp")  # a piece begins with its number
            stream.seek(here + skipped)
            found += stream.read(min(NEEDED, max(0, length - skipped)) if length else NEEDED)
            if kind == b"jxlc" or len(found) >= NEEDED:
                break
        if not length:  # to the end of the file
            break
        stream.seek(here + length)
    return found


def _size(start: bytes) -> tuple[int, int]:
    left = int.from_bytes(start[len(CODESTREAM) :], "little")

    def bits(count: int) -> int:
        nonlocal left
        value = left & ((1 << count) - 1)
        left >>= count
        return value

    eighths = bits(1)

    def side() -> int:
        return 8 * (1 + bits(5)) if eighths else 1 + bits((9, 13, 18, 30)[bits(2)])

    height = side()
    ratio = bits(3)
    if not ratio:
        return side(), height
    over, under = RATIOS[ratio - 1]
    return height * over // under, height
