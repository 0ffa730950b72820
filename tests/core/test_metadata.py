"""What comes with a picture: kept in every format that holds it, named where it is lost, and the restoration recorded (L5)."""

from __future__ import annotations

import io
import json
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from PIL import ExifTags, Image, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

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
        if make is jpeg:
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
    assert run("restore", tmp_path / "two" / "a.jpg", "-o", tmp_path / "three", "--fidelity", "0.55", "--format", "tiff") == 0
    for name, fidelity in (("one/a.png", 0.35), ("two/a.jpg", 0.45), ("three/a.tif", 0.55)):
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
    noise().save(source, quality=40)
    command = ["restore", source, "-o", tmp_path / "none", "--format", "same", "--faces", "9", "--report", tmp_path / "r.json"]
    assert run(*command) == 0
    assert (tmp_path / "none" / "a.jpg").read_bytes() == source.read_bytes()
    assert warnings(tmp_path / "r.json") == ["1 found, 0 selected (Which faces)"]


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


# --- what is too long, odd, or of another kind than usual ---


def kept_in(kind: str, kept: Metadata, folder: Path, exif: bytes | None = None) -> tuple[Photo, list[str]]:
    """The photo read back from a file of ``kind``, and what was said to be lost."""
    photo = Photo(torch.full((3, 8, 8), 0.5), exif=exif, kept=kept)  # type: ignore[arg-type]
    photos.write(folder / "a", photo, kind, overwrite=True)
    return photos.read(folder / "a"), photos.losses(photo, kind)


def test_what_is_too_long_for_a_jpeg_costs_no_picture_and_is_named(tmp_path: Path) -> None:
    long = bytes(range(32, 127)) * 700
    for kept, name in (
        (Metadata(xmp=long), "XMP"), (Metadata(iptc=long), "IPTC"), (Metadata(texts={"Comment": long.decode()}), "comment"),
    ):  # fmt: skip
        read, lost = kept_in("jpg", kept, tmp_path)
        assert lost == [f"{name} lost: longer than the 64 kB that JPEG files hold"] and read.kept == Metadata()
        for kind in ("png", "tiff"):
            assert kept_in(kind, kept, tmp_path)[1] == (
                ["comment lost: TIFF files hold none"] if (kind, name) == ("tiff", "comment") else []
            )
    words = Image.Exif()
    words[270] = long.decode()
    raw = words.tobytes()[6:]
    read, lost = kept_in("jpg", Metadata(), tmp_path, raw)
    assert lost == ["EXIF lost: longer than the 64 kB that JPEG files hold"] and read.exif is None
    assert kept_in("png", Metadata(), tmp_path, raw)[0].exif == raw


@pytest.mark.parametrize("field", ["xmp", "iptc", "comment", "exif"])
def test_what_just_fits_into_a_jpeg_is_kept(field: str, tmp_path: Path) -> None:
    """Segments hold 65,533 bytes, less what tells of what kind they are."""
    room = 65_533 - {"xmp": 29, "iptc": 14 + 12, "comment": 0, "exif": 6}[field]
    for size, lost in ((room - room % 2, 0), (room + 1, 1)):
        text = b"x" * size
        if field == "exif":
            words = Image.Exif()
            words[270] = "x" * (size - 28)
            while len(words.tobytes()) - 6 > size:
                words[270] = words[270][:-1]
            read, said = kept_in("jpg", Metadata(), tmp_path, words.tobytes()[6:])
            assert len(words.tobytes()) - 6 == size and (read.exif is None) == bool(lost)
        else:
            kept = Metadata(texts={"Comment": text.decode()}) if field == "comment" else Metadata(**{field: text})  # type: ignore[arg-type]
            read, said = kept_in("jpg", kept, tmp_path)
            assert read.kept == (Metadata() if lost else kept)
        assert len(said) == lost


def test_what_is_not_lost_is_not_said_to_be(tmp_path: Path) -> None:
    seen = Photo(torch.rand(3, 8, 8), torch.rand(1, 8, 8), bits=16)  # type: ignore[arg-type]
    assert photos.losses(seen, "png") == photos.losses(seen, "tiff") == []
    assert photos.losses(seen, "webp") == ["16 bits a channel reduced to 8 for WebP; PNG and TIFF keep them"]
    assert len(photos.losses(seen, "jpg")) == 2


def test_16_bits_are_reduced_to_their_high_bytes(tmp_path: Path) -> None:
    deep = np.array([[[0x80FF, 0x0100, 0xFFFF], [0x00FF, 0x8000, 0x7F80]]], np.uint16)
    planes = torch.from_numpy(deep.transpose(2, 0, 1).astype(np.float32)) / 65535
    photos.write(tmp_path / "a.webp", Photo(planes, bits=16), quality=100)  # type: ignore[arg-type]
    assert photos.to_array(photos.read(tmp_path / "a.webp")).tolist() == [[[0x80, 1, 0xFF], [0, 0x80, 0x7F]]]


def test_texts_that_a_jpeg_does_not_hold_are_named(tmp_path: Path) -> None:
    texts = {"Title": "a", "Comment": "b", "Author": "c", "Copyright": "d", "Source": "e"}
    read, lost = kept_in("jpg", Metadata(texts=texts), tmp_path)
    assert read.kept.texts == {"Comment": "b"}
    assert lost == ["texts (Title, Author, Copyright, ...) lost: JPEG files hold a comment only"]
    assert kept_in("jpg", Metadata(texts={"Title": "a"}), tmp_path)[1] == ["texts (Title) lost: JPEG files hold a comment only"]
    assert kept_in("png", Metadata(texts=texts), tmp_path)[0].kept.texts == texts


def test_a_name_longer_than_png_allows_is_cut(tmp_path: Path) -> None:
    assert kept_in("png", Metadata(texts={"n" * 99: "text"}), tmp_path)[0].kept.texts == {"n" * 79: "text"}


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_iptc_of_an_odd_length_is_kept_exactly(kind: str, tmp_path: Path) -> None:
    odd = IPTC + b"\x1c\x02\x19\x00\x01k"
    odd = odd if len(odd) % 2 else odd + b"k"
    read, _ = kept_in(kind, Metadata(iptc=odd), tmp_path)
    assert read.kept.iptc is not None and read.kept.iptc.rstrip(b"\0") == odd
    assert kind != "png" or read.kept.iptc == odd
    assert len(metadata._photoshop(odd)) % 2 == 0  # Photoshop's resources begin at even places


def test_iptc_that_is_called_long_is_read_whole(tmp_path: Path) -> None:
    """As Photoshop and libtiff do; Pillow shows the first number only."""
    kept_in("tiff", Metadata(iptc=IPTC), tmp_path)
    data = (tmp_path / "a").read_bytes()
    entry = struct.pack("<HHI", 33723, 7, len(IPTC))
    assert data.count(entry) == 1
    (tmp_path / "a").write_bytes(data.replace(entry, struct.pack("<HHI", 33723, 4, len(IPTC) // 4)))
    assert photos.read(tmp_path / "a").kept.iptc == IPTC


@pytest.mark.parametrize("text", ["\niptc\n 4\nxyz", "\niptc\n 4\n3842494d0404", "iptc", ""])
def test_a_damaged_profile_of_png_is_passed_over(text: str, tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Raw profile type iptc", text, zip=True)
    noise().save(tmp_path / "a.png", pnginfo=chunks)
    assert photos.read(tmp_path / "a.png").kept == Metadata()


@pytest.mark.parametrize("value", [None, 300, (300,), (1, 2, 3), ("x", 2), (0, 300), (300, -1), (1e9, 300), (float("nan"), 1)])
def test_a_resolution_that_is_none(value: Any) -> None:
    assert metadata._dpi(value) is None
    assert metadata._dpi((300, 254.5)) == (300.0, 254.5)


def test_the_tags_of_a_tiff_have_the_types_that_readers_expect(tmp_path: Path) -> None:
    kept_in("tiff", Metadata(xmp=XMP, iptc=IPTC), tmp_path, b"no EXIF at all")
    with Image.open(tmp_path / "a") as image:
        types = image.tag_v2.tagtype  # type: ignore[attr-defined]
        assert (types[700], types[33723]) == (1, 7)


def test_a_comment_ends_where_it_ends(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.jpg", comment=b"on the beach\0\0")
    assert photos.read(tmp_path / "a.jpg").kept.texts == {"Comment": "on the beach"}
    assert metadata._bytes("\udcff") == b"\xff"


def test_colours_are_stored_in_full_at_high_quality_only(tmp_path: Path) -> None:
    photo = Photo(torch.rand(3, 16, 16))  # type: ignore[arg-type]
    for quality, sampling in ((90, 0), (89, 2)):
        photos.write(tmp_path / "a.jpg", photo, quality=quality, overwrite=True)
        with Image.open(tmp_path / "a.jpg") as image:
            assert JpegImagePlugin.get_sampling(image) == sampling


def test_colours_under_transparent_pixels_are_kept_by_lossless_webp(tmp_path: Path) -> None:
    pixels, alpha = torch.rand(3, 8, 8), torch.zeros(1, 8, 8)
    photos.write(tmp_path / "a.webp", Photo(pixels, alpha), quality=100)  # type: ignore[arg-type]
    photos.write(tmp_path / "a.png", Photo(pixels, alpha))  # type: ignore[arg-type]
    assert torch.equal(photos.read(tmp_path / "a.webp").stored, photos.read(tmp_path / "a.png").stored)


def test_gray_with_transparency_is_laid_on_white_as_gray(tmp_path: Path) -> None:
    alpha = torch.tensor([[[0.0, 1.0]]]).repeat_interleave(8, -1).repeat(1, 8, 1)
    photos.write(tmp_path / "a.jpg", Photo(torch.full((1, 8, 16), 0.2), alpha, gray=True))  # type: ignore[arg-type]
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.mode == "L" and image.getpixel((1, 1)) == 255 and image.getpixel((14, 1)) == 51


@pytest.mark.parametrize("kind", ["png", "jpg", "tiff"])
def test_a_gray_picture_keeps_its_gray_profile(kind: str, tmp_path: Path) -> None:
    gray = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    photos.write(tmp_path / "a", Photo(torch.full((1, 8, 8), 0.2), icc=gray, gray=True), kind)  # type: ignore[arg-type]
    assert photos.read(tmp_path / "a").icc == gray


@pytest.mark.parametrize("bits", [8, 16])
def test_when_and_where_a_photo_was_taken_comes_into_tiff_and_out_again(bits: int, tmp_path: Path) -> None:
    taken = exif()
    taken.get_ifd(ExifTags.IFD.Exif).update({0x829A: 0.5, 0x927C: b"the maker's own notes", 0xA005: {1: "R98"}})
    taken.get_ifd(ExifTags.IFD.GPSInfo).update({1: "N", 2: (52.0, 31.0, 12.5)})
    photos.write(tmp_path / "a.tif", Photo(torch.rand(3, 8, 9), exif=taken.tobytes()[6:], bits=bits))  # type: ignore[arg-type]
    for name in ("a.tif", "b.png", "c.tif", "d.jpg"):
        read = photos.read(tmp_path / name)
        assert read.stored.shape == (3, 8, 9) and read.bits == (8 if name == "d.jpg" else bits)
        kept = Image.Exif()
        kept.load(b"Exif\0\0" + (read.exif or b""))
        with Image.open(tmp_path / name) as image:
            for found in (image.getexif(), kept):
                camera, place = found.get_ifd(ExifTags.IFD.Exif), found.get_ifd(ExifTags.IFD.GPSInfo)
                assert camera[0x9003] == "1974:07:01 12:00:00" and camera[0x829A] == 0.5
                assert camera[0x927C] == b"the maker's own notes"
                assert place[1] == "N" and tuple(map(float, place[2])) == (52.0, 31.0, 12.5)
                assert found[270] == "Aunt Ada"
        after = {"a.tif": "b.png", "b.png": "c.tif", "c.tif": "d.jpg", "d.jpg": "e.png"}[name]
        photos.write(tmp_path / after, read)


def test_xmp_is_found_where_older_pillows_leave_it() -> None:
    as_text = SimpleNamespace(info={"XML:com.adobe.xmp": XMP.decode()}, format="PNG", text={})
    assert metadata.read(as_text).xmp == XMP  # type: ignore[arg-type]
    as_tag = SimpleNamespace(info={}, format="TIFF", tag_v2={700: XMP})
    assert metadata.read(as_tag).xmp == XMP  # type: ignore[arg-type]


def test_exif_that_pillow_can_read_and_not_write_is_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turned = exif()
    turned[0x0112] = 6
    noise().save(tmp_path / "a.jpg", exif=turned)

    def fail(*_: Any) -> bytes:
        raise ValueError("of another Pillow")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    read = photos.read(tmp_path / "a.jpg")
    assert read.exif is None and read.notes == ("EXIF damaged: what cannot be read of it is lost",)
    assert read.stored.shape == (3, 100, 120)
