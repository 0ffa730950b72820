"""What comes with a picture: kept in every format that holds it, named where it is lost, and the restoration recorded (L5)."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from lafr_core.app import arguments, cli
from lafr_core.images import metadata, photos
from lafr_core.images.metadata import Metadata
from lafr_core.images.photos import Photo

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="Ada"/></rdf:RDF></x:xmpmeta>'
)
IPTC = b"\x1c\x02\x50\x00\x03Ada\x1c\x02\x78\x00\x07Caption"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WORDS = {270: "Aunt Ada", 271: "Epson", 272: "V600", 306: "1974:07:01 12:00:00", 315: "Ada", 33432: "family"}


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([face_at(20, 30, 60)]))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def noise(mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4}[mode]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 100, channels), dtype=np.uint8))


def exif() -> Image.Exif:
    made = Image.Exif()
    for tag, value in WORDS.items():
        made[tag] = value
    made.get_ifd(ExifTags.IFD.Exif)[0x9003] = "1974:07:01 12:00:00"
    return made


def jpeg(path: Path) -> Path:
    segment = b"Photoshop 3.0\0" + metadata._photoshop(IPTC)
    extra = b"\xff\xed" + (len(segment) + 2).to_bytes(2, "big") + segment
    noise().save(path, "JPEG", exif=exif(), xmp=XMP, comment=b"on the beach", dpi=(300, 300), extra=extra, icc_profile=PROFILE)
    return path


def tiff(path: Path) -> Path:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in WORDS.items():
        tags[tag] = value
    tags[700], tags[33723] = XMP, IPTC
    tags.tagtype[700], tags.tagtype[33723] = 1, 7
    noise().save(path, "TIFF", tiffinfo=tags, dpi=(600, 600), icc_profile=PROFILE)
    return path


def run(*given: object) -> int:
    return cli.main([str(argument) for argument in given])


def warnings(report: Path) -> list[str]:
    (entry,) = json.loads(report.read_text())["inputs"]
    return list(entry["warnings"])


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("make", [jpeg, tiff])
def test_everything_that_a_format_holds_is_kept_and_the_rest_is_named(make: Any, kind: str, tmp_path: Path) -> None:
    source = make(tmp_path / ("a.jpg" if make is jpeg else "a.tif"))
    command = ["restore", source, "-o", tmp_path / "out", "--format", kind, "--report", tmp_path / "r.json", "--no-record"]
    assert run(*command) == 0
    (result,) = (tmp_path / "out").glob("a.*")
    read = photos.read(result)
    with Image.open(result) as image:
        found = image.getexif()
        assert {tag: str(found[tag]).strip("\0") for tag in WORDS} == WORDS
        assert image.info["icc_profile"] == PROFILE
        if make is jpeg and kind != "tiff":
            assert found.get_ifd(ExifTags.IFD.Exif)[0x9003] == "1974:07:01 12:00:00"
    assert read.kept.xmp == XMP
    lost = warnings(tmp_path / "r.json")
    if kind == "webp":
        names = ["IPTC", "resolution (DPI)"] + (["comment"] if make is jpeg else [])
        assert lost == [f"{name} lost: WebP files hold none" for name in names]
        return
    assert read.kept.iptc is not None and read.kept.iptc.rstrip(b"\0") == IPTC
    assert read.kept.dpi == pytest.approx((300, 300) if make is jpeg else (600, 600), abs=0.1)
    if make is jpeg and kind == "tiff":
        assert lost == ["comment lost: TIFF files hold none"]
    else:
        assert lost == []
        assert dict(read.kept.texts) == ({"Comment": "on the beach"} if make is jpeg else {})


def test_a_16_bit_png_keeps_them_too(tmp_path: Path) -> None:
    deep = Photo(torch.rand(3, 120, 100), bits=16, kept=metadata.Metadata(XMP, IPTC, (300, 300), {"Title": "gr\u00fc\u00dfe"}))
    photos.write(tmp_path / "deep.png", deep)
    read = photos.read(tmp_path / "deep.png")
    assert (
        read.bits == 16 and read.kept.xmp == XMP and read.kept.iptc == IPTC and read.kept.texts == {"Title": "gr\u00fc\u00dfe"}
    )
    assert read.kept.dpi == pytest.approx((300, 300), abs=0.1)


def test_the_restoration_is_recorded_once_beside_what_was_there(tmp_path: Path) -> None:
    assert run("restore", jpeg(tmp_path / "a.jpg"), "-o", tmp_path / "one", "--fidelity", "0.35") == 0
    assert run("restore", tmp_path / "one" / "a.png", "-o", tmp_path / "two", "--fidelity", "0.45", "--format", "jpg") == 0
    for name, fidelity in (("one/a.png", 0.35), ("two/a.jpg", 0.45)):
        with Image.open(tmp_path / name) as image:
            assert image.getexif()[0x131] == "LAFR 0.1.0" and image.getexif()[0x0B] == "LAFR 0.1.0"
        xmp = photos.read(tmp_path / name).kept.xmp
        assert xmp is not None and b'dc:creator="Ada"' in xmp
        (value,) = re.findall('lafr:Restoration="([^"]*)"', xmp.decode())
        what = json.loads(value.replace("&quot;", '"').replace("&#x27;", "'"))
        assert what["settings"]["fidelity"] == fidelity and what["faces"] == 1 and what["lafr"] == "0.1.0"


def test_a_photo_without_a_face_is_not_called_restored(tmp_path: Path) -> None:
    noise().crop((0, 0, 20, 20)).save(tmp_path / "a.png")
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out") == 0
    read = photos.read(tmp_path / "out" / "a.png")
    assert read.kept.xmp is None and read.exif is None


def test_software_that_was_there_is_kept(tmp_path: Path) -> None:
    made = Image.Exif()
    made[0x131] = "Epson Scan"
    noise().save(tmp_path / "a.jpg", exif=made)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.getexif()[0x131] == "Epson Scan; LAFR 0.1.0"


@pytest.mark.parametrize(
    ("name", "result", "format"),
    [("a.jpg", "a.jpg", "JPEG"), ("a.JPEG", "a.JPEG", "JPEG"), ("a.webp", "a.webp", "WEBP"), ("a.tif", "a.tif", "TIFF"),
     ("a.png", "a.png", "PNG"), ("a.bmp", "a.png", "PNG"), ("a.gif", "a.png", "PNG")],
)  # fmt: skip
def test_same_keeps_the_format_where_it_can_be_written(name: str, result: str, format: str, tmp_path: Path) -> None:
    noise().save(tmp_path / name)
    assert run("restore", tmp_path / name, "-o", tmp_path / "out", "--format", "same") == 0
    assert [path.name for path in (tmp_path / "out").glob("a*")] == [result]
    with Image.open(tmp_path / "out" / result) as image:
        assert image.format == format


def test_a_jpeg_without_a_face_stays_the_same_file(tmp_path: Path) -> None:
    source = tmp_path / "a.jpg"
    noise().crop((0, 0, 20, 20)).save(source, quality=40)
    assert run("restore", source, "-o", tmp_path / "out", "--format", "same") == 0
    assert (tmp_path / "out" / "a.jpg").read_bytes() == source.read_bytes()


def test_quality_counts(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png")
    sizes = []
    for quality in ("10", "90", "100"):
        out = tmp_path / quality
        assert run("restore", tmp_path / "a.png", "-o", out, "--format", "webp", "--quality", quality, "--strength", "0") == 0
        sizes.append((out / "a.webp").stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    with Image.open(tmp_path / "a.png") as before, Image.open(tmp_path / "100" / "a.webp") as after:
        assert np.array_equal(np.asarray(before), np.asarray(after.convert("RGB")))
    with pytest.raises(SystemExit):
        run("restore", tmp_path / "a.png", "-o", tmp_path / "x", "--quality", "101")


def test_what_a_format_takes_away_is_said(tmp_path: Path) -> None:
    noise("RGBA").save(tmp_path / "a.png")
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "o", "--format", "jpg", "--report", tmp_path / "r.json") == 0
    assert warnings(tmp_path / "r.json") == ["transparency laid on white: JPEG files hold none"]
    photos.write(tmp_path / "deep.png", Photo(torch.rand(3, 120, 100), bits=16))
    assert run("restore", tmp_path / "deep.png", "-o", tmp_path / "o", "--format", "webp", "--report", tmp_path / "s.json") == 0
    assert warnings(tmp_path / "s.json") == ["16 bits a channel reduced to 8 for WebP; PNG and TIFF keep them"]


def test_a_16_bit_tiff_keeps_them_too(tmp_path: Path) -> None:
    words = Image.Exif()
    words.update(WORDS)
    kept = Metadata(xmp=XMP, iptc=IPTC, dpi=(300.0, 254.5))
    photos.write(tmp_path / "a.tif", Photo(torch.rand(3, 12, 10), None, PROFILE, words.tobytes()[6:], 16, kept=kept))
    read = photos.read(tmp_path / "a.tif")
    assert read.bits == 16 and read.icc == PROFILE and read.kept == kept
    assert read.exif is not None
    again = Image.Exif()
    again.load(b"Exif\0\0" + read.exif)
    assert dict(again) == WORDS


@pytest.mark.parametrize("junk", [b"\xff" * 40, b"<rdf:RDF", b"\0"])
def test_damaged_metadata_costs_no_picture(junk: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG", xmp=junk, exif=b"Exif\0\0" + junk, comment=junk)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    for kind in ("png", "jpg", "webp", "tiff"):
        assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / kind, "--format", kind) == 0
