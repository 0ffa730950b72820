"""How large a JPEG XL file says it is, before a decoder sees it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lafr_core.errors import ImageFileError
from lafr_core.images import formats, jxl, photos

SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
FTYP = b"\0\0\0\x14ftypjxl \0\0\0\0jxl "


def header(*fields: tuple[int, int]) -> bytes:
    """(value, bits), the lowest bit first, behind the signature of a codestream."""
    number = place = 0
    for value, bits in fields:
        number |= value << place
        place += bits
    return jxl.CODESTREAM + number.to_bytes(12, "little")


def box(kind: bytes, content: bytes, *, large: bool = False, to_end: bool = False) -> bytes:
    if large:
        return b"\0\0\0\x01" + kind + (16 + len(content)).to_bytes(8, "big") + content
    return (0 if to_end else 8 + len(content)).to_bytes(4, "big") + kind + content


SMALL = header((1, 1), (4, 5), (0, 3), (11, 5))  # 96 x 40: eighths less one


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (SMALL, (96, 40)),
        (header((1, 1), (4, 5), (5, 3)), (71, 40)),  # 16:9, rounded down
        (header((1, 1), (4, 5), (1, 3)), (40, 40)),
        (header((1, 1), (4, 5), (7, 3)), (80, 40)),
        (header((0, 1), (0, 2), (299, 9), (2, 3)), (360, 300)),  # 12:10
        (header((0, 1), (1, 2), (8190, 13), (0, 3), (0, 2), (4, 9)), (5, 8191)),
        (header((0, 1), (2, 2), (8999, 18), (0, 3), (3, 2), (2**30 - 1, 30)), (2**30, 9000)),
        (SIGNATURE + FTYP + box(b"jxlc", SMALL), (96, 40)),
        (SIGNATURE + FTYP + box(b"Exif", bytes(9)) + box(b"jxlc", SMALL, to_end=True), (96, 40)),
        (SIGNATURE + box(b"xml ", bytes(3), large=True) + box(b"jxlc", SMALL, large=True), (96, 40)),
        (SIGNATURE + box(b"jxlp", b"\0\0\0\0" + SMALL[:3]) + box(b"jxlp", b"\x80\0\0\1" + SMALL[3:]), (96, 40)),
        (SIGNATURE + FTYP, (0, 0)),
        (SIGNATURE + box(b"jxlp", b"\0") + box(b"jxlc", b"")[:6], (0, 0)),
        (SIGNATURE + b"\0\0\0\x07jxlc" + SMALL, (0, 0)),  # a box that ends before it begins
        (SIGNATURE + b"\0\0\0\0free" + box(b"jxlc", SMALL), (0, 0)),  # one that goes on to the end
        (b"\xff\x0b" + SMALL[2:], (0, 0)),
        (b"", (0, 0)),
    ],
)
def test_the_size_is_read_as_the_standard_writes_it(data: bytes, size: tuple[int, int]) -> None:
    stream = io.BytesIO(data)
    stream.seek(len(data) // 2)
    assert jxl.size(stream) == size


def test_a_box_without_end_is_given_up() -> None:
    assert jxl.size(io.BytesIO(SIGNATURE + box(b"free", b"") * (jxl.BOXES - 1) + box(b"jxlc", SMALL))) == (96, 40)
    assert jxl.size(io.BytesIO(SIGNATURE + box(b"free", b"") * jxl.BOXES + box(b"jxlc", SMALL))) == (0, 0)


@pytest.mark.parametrize("size", [(5, 3), (8, 8), (512, 288), (257, 1030), (1200, 1000), (640, 480), (33000, 3)])
@pytest.mark.parametrize("container", [False, True])
def test_the_plug_ins_own_files_say_their_size(size: tuple[int, int], container: bool, tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl", reason="pillow-jxl-plugin (lafr[formats]) is not installed")
    path = tmp_path / "a.jxl"
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, use_container=container)
    with path.open("rb") as file:
        assert (file.read(2) == jxl.CODESTREAM) != container and jxl.size(file) == size


def test_a_large_one_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_plug_in", lambda kind: None)
    monkeypatch.setattr(Image, "open", None)
    path = tmp_path / "a.jxl"
    path.write_bytes(SMALL)
    with pytest.raises(ImageFileError, match=r"too large \(96x40 pixels\); the limit is 3839 pixels"):
        photos.read(path, max_pixels=96 * 40 - 1)
    path.write_bytes(SIGNATURE + FTYP)
    with pytest.raises(ImageFileError, match=r"damaged or cut short \(a JXL picture that cannot be decoded\)"):
        photos.read(path)
