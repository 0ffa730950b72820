"""What comes with a picture besides its pixels: read from any format, written where the format of the result holds it."""

from __future__ import annotations

import contextlib
import html
import json
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image, PngImagePlugin, TiffImagePlugin

_ORIENTATION = 0x0112
_SOFTWARE, _PROCESSING_SOFTWARE = 0x0131, 0x000B
_SUB_IFDS = (0x8769, 0x8825)
"""The Exif and GPS directories."""
_INTEROPERABILITY = 0xA005
"""A directory in the Exif directory that says which rules its file follows: not those of a result."""
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F)
"""TIFF tags that tell of the picture and not of how it is stored: description, camera, software, time, artist, copyright ..."""
_XMP_TAG, _IPTC_TAG = 700, 33723
_XMP_TEXT = "XML:com.adobe.xmp"
_IPTC_RESOURCE = 0x0404
_LAFR = "http://ns.lafr/1.0/"
_PHOTOSHOP = b"Photoshop 3.0\0"
_SEGMENT = 65_533
"""Bytes that one segment of a JPEG holds; Pillow writes no picture with a longer one."""


@dataclass(frozen=True)
class Metadata:
    """Besides the profile and EXIF, which every format here holds."""

    xmp: bytes | None = None
    iptc: bytes | None = None
    """The IPTC-IIM records."""
    dpi: tuple[float, float] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    """Named texts; a JPEG's or GIF's comment is called Comment, as in PNG."""

    def names(self) -> list[str]:
        """What there is, in words."""
        here = {"XMP": self.xmp, "IPTC": self.iptc, "resolution (DPI)": self.dpi, "comment": self.texts}
        return [name for name, value in here.items() if value]


def read(image: Image.Image) -> Metadata:
    """What a loaded Pillow image carries. Damaged parts are passed over: the picture matters more."""
    info = image.info
    xmp = info.get("xmp") or info.get(_XMP_TEXT)
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None:
        xmp = xmp or tags.get(_XMP_TAG)
    return Metadata(xmp=_bytes(xmp), iptc=_iptc(image, tags), dpi=_dpi(info.get("dpi")), texts=_texts(image))


def exif_of(image: Image.Image) -> bytes | None:
    """The image's EXIF without its orientation, as it stands after the TIFF header; None where there is none.

    Of a TIFF, whose tags serve the storage as well, the descriptive ones.
    """
    try:
        if image.format == "TIFF":
            return _tiff_exif(image)
        raw = image.info.get("exif")
        if not raw:
            return None
        exif = image.getexif()
        if _ORIENTATION in exif:
            del exif[_ORIENTATION]
            raw = exif.tobytes()
        return bytes(raw).removeprefix(b"Exif\0\0")
    except Exception:  # Pillow cannot write every EXIF that it can read; the picture matters more
        return None


def _tiff_exif(image: Image.Image) -> bytes | None:
    source, made = image.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in source:
            made[tag] = source[tag]
    for directory in _SUB_IFDS:
        if values := source.get_ifd(directory):
            made.get_ifd(directory).update(values)
    return made.tobytes().removeprefix(b"Exif\0\0") if len(made) or any(made.get_ifd(d) for d in _SUB_IFDS) else None


def recorded(exif: bytes | None, kept: Metadata, software: str, what: Mapping[str, Any]) -> tuple[bytes | None, Metadata]:
    """EXIF and metadata that say that ``software`` has changed the picture, and how: ``what`` as JSON in XMP."""
    return _with_software(exif, software), replace(kept, xmp=_with_restoration(kept.xmp, software, what))


def _with_software(raw: bytes | None, software: str) -> bytes | None:
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damage was noted when the photo was read
            if raw:
                exif.load(b"Exif\0\0" + raw)
            before = str(exif.get(_SOFTWARE, "")).strip("\0 ")
            if software not in before:
                exif[_SOFTWARE] = f"{before}; {software}" if before else software
            exif[_PROCESSING_SOFTWARE] = software
            return exif.tobytes().removeprefix(b"Exif\0\0")
    except Exception:  # as above
        return raw


def _with_restoration(xmp: bytes | None, software: str, what: Mapping[str, Any]) -> bytes:
    value = html.escape(json.dumps(what, sort_keys=True), quote=True)
    description = (
        f'<rdf:Description rdf:about="" xmlns:lafr="{_LAFR}" lafr:Software="{html.escape(software)}" '
        f'lafr:Restoration="{value}"/>'
    ).encode()
    before = re.sub(rb'<rdf:Description rdf:about="" xmlns:lafr="[^"]*"[^>]*/>', b"", xmp or b"")
    end = before.rfind(b"</rdf:RDF>")
    if end >= 0:
        return before[:end] + description + before[end:]
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    ).encode() + description + b'</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'  # fmt: skip


# --- writing: what Pillow's savers take ---


def png_text(kept: Metadata) -> PngImagePlugin.PngInfo:
    """The text chunks of a PNG."""
    chunks = PngImagePlugin.PngInfo()
    if kept.xmp:
        chunks.add_itxt(_XMP_TEXT, kept.xmp.decode("utf-8", "replace"))
    if kept.iptc:  # ImageMagick's convention, which exiftool and others read
        block = _photoshop(kept.iptc)
        lines = re.findall("..{0,71}", block.hex())
        chunks.add_text("Raw profile type iptc", f"\niptc\n{len(block):8d}\n" + "\n".join(lines) + "\n", zip=True)
    for name, text in kept.texts.items():
        chunks.add_itxt(name[:79], text)
    return chunks


def comment(kept: Metadata) -> bytes:
    """The comment of a JPEG; b"" = none."""
    return kept.texts.get("Comment", "").encode("utf-8")


def in_jpeg(kept: Metadata, exif: bytes | None) -> tuple[Metadata, bytes | None]:
    """What of both a JPEG can hold: each must fit into one segment."""
    if len(exif or b"") + len(b"Exif\0\0") > _SEGMENT:
        exif = None
    if len(kept.xmp or b"") + len(b"http://ns.adobe.com/xap/1.0/\0") > _SEGMENT:
        kept = replace(kept, xmp=None)
    if len(_PHOTOSHOP) + len(_photoshop(kept.iptc or b"")) > _SEGMENT:
        kept = replace(kept, iptc=None)
    return (kept if len(comment(kept)) <= _SEGMENT else replace(kept, texts={})), exif


def jpeg_segments(kept: Metadata) -> bytes:
    """The application segments that Pillow does not write itself."""
    if not kept.iptc:
        return b""
    data = _PHOTOSHOP + _photoshop(kept.iptc)
    return b"\xff\xed" + struct.pack(">H", len(data) + 2) + data


def tiff_tags(kept: Metadata, exif: bytes | None) -> TiffImagePlugin.ImageFileDirectory_v2:
    """The tags of a TIFF that tell of the picture."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if exif:
        source = Image.Exif()
        with contextlib.suppress(Exception):  # damaged EXIF: as above
            source.load(b"Exif\0\0" + exif)
        for tag in (*_DESCRIPTIVE, _PROCESSING_SOFTWARE):
            if tag in source:
                tags[tag] = source[tag]
    for tag, value in ((_XMP_TAG, kept.xmp), (_IPTC_TAG, kept.iptc)):
        if value:
            tags[tag] = value
    return tags


def tiff_directories(exif: bytes | None) -> dict[int, TiffImagePlugin.ImageFileDirectory_v2]:
    """The Exif and GPS directories, which stand beside the tags of a TIFF; {} where there are none."""
    found = {}
    with contextlib.suppress(Exception):  # damaged EXIF: as above
        source = Image.Exif()
        source.load(b"Exif\0\0" + (exif or b""))
        for tag in _SUB_IFDS:
            made = TiffImagePlugin.ImageFileDirectory_v2(b"II\x2a\0\0\0\0\0", group=tag)
            for inner, value in source.get_ifd(tag).items():
                if inner != _INTEROPERABILITY:
                    made[inner] = value
            if len(made) and made.tobytes():
                found[tag] = made
    return found


def tiff_values(kept: Metadata, exif: bytes | None) -> dict[int, tuple[int, str | bytes]]:
    """The tags of :func:`tiff_tags` for :mod:`.tiff16`: texts and bytes with their types."""
    found: dict[int, tuple[int, str | bytes]] = {}
    for tag, value in tiff_tags(kept, exif).items():
        if isinstance(value, str):
            found[tag] = (2, value)
        elif isinstance(value, bytes):
            found[tag] = (7 if tag == _IPTC_TAG else 1, value)
    return found


def _photoshop(iptc: bytes) -> bytes:
    """The IPTC records as a Photoshop image resource."""
    return b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


# --- reading ---


def _iptc(image: Image.Image, tags: Any) -> bytes | None:
    try:
        resources = image.info.get("photoshop")
        if isinstance(resources, dict) and resources.get(_IPTC_RESOURCE):
            return _bytes(resources[_IPTC_RESOURCE])
        if tags is not None and _IPTC_TAG in tags:
            # Photoshop and libtiff call these bytes LONG, of which Pillow shows the first only.
            return _bytes(getattr(tags, "_tagdata", {}).get(_IPTC_TAG) or tags[_IPTC_TAG])
        text = image.info.get("Raw profile type iptc")
        if isinstance(text, str):
            block = bytes.fromhex("".join(text.split()[2:]))
            at = block.find(b"8BIM" + struct.pack(">H", _IPTC_RESOURCE))
            if at >= 0:
                (length,) = struct.unpack_from(">I", block, at + 8)
                return block[at + 12 : at + 12 + length]
    except (ValueError, TypeError, struct.error, OverflowError):
        pass
    return None


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(part) for part in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None


def _texts(image: Image.Image) -> dict[str, str]:
    found = {}
    if image.format == "PNG":
        for name, text in getattr(image, "text", {}).items():
            if name != _XMP_TEXT and not name.startswith("Raw profile type"):
                found[str(name)] = str(text)
    elif comment := _bytes(image.info.get("comment")):
        found["Comment"] = comment.decode("utf-8", "replace").strip("\0")
    return found


def _bytes(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return bytes(value) if isinstance(value, (bytes, bytearray)) and value else None
