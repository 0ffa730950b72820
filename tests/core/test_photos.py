"""Every kind of photo file is decoded right and saved again bit for bit, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lafr_core.errors import ImageFileError
from lafr_core.images import photos, png16, tiff16
from lafr_core.images.photos import Photo
from lafr_core.store.atomic import atomic


def noise(*shape: int, top: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8 if top == 256 else np.uint16)


def png_bytes(image: Image.Image, **extra: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **extra)
    buffer.seek(0)
    return buffer


def saved_again(source: Path, target: Path) -> Image.Image:
    photos.write(target, photos.read(source))
    image = Image.open(target)
    image.load()
    return image


# --- 8 bits: every mode of PNG, bit for bit ---


def pictures() -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    palette = Image.fromarray(noise(7, 5, 3)).quantize(16)
    return {
        "1": (Image.fromarray(noise(7, 5)).convert("1"), {}),
        "L": (Image.fromarray(noise(7, 5)), {}),
        "LA": (Image.fromarray(noise(7, 5, 2)), {}),
        "L with a transparent gray": (Image.fromarray(noise(7, 5) // 16), {"transparency": 3}),
        "RGB": (Image.fromarray(noise(7, 5, 3)), {}),
        "RGB with a transparent colour": (Image.fromarray(noise(7, 5, 3) // 128), {"transparency": (0, 1, 0)}),
        "RGBA": (Image.fromarray(noise(7, 5, 4)), {}),
        "P": (palette, {}),
        "P with a transparent colour": (palette, {"transparency": 2}),
        "P with an alpha for each colour": (palette, {"transparency": bytes(range(0, 160, 10))}),
    }


@pytest.mark.parametrize("name", pictures())
def test_png_to_png_is_bit_identical(name: str, tmp_path: Path) -> None:
    image, extra = pictures()[name]
    image.save(tmp_path / "in.png", **extra)
    with Image.open(tmp_path / "in.png") as stored:
        expected = np.asarray(stored.convert("RGBA"))
    out = saved_again(tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(out.convert("RGBA")), expected)
    gray, transparent = name[0] in "1L", "A" in name or "transparent" in name or "alpha" in name
    assert out.mode == {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}[gray, transparent]


def test_pixels_alpha_and_layout_are_what_the_contract_says() -> None:
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[0, 2] = (255, 51, 0, 102)  # top right
    photo = photos.decode(png_bytes(Image.fromarray(rgba)))
    assert photo.pixels.shape == (3, 2, 3) and photo.pixels.dtype == torch.float32
    assert photo.pixels[:, 0, 2].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert photo.alpha is not None and photo.alpha.shape == (1, 2, 3)
    assert photo.alpha[0, 0, 2] == pytest.approx(0.4)
    assert photo.pixels.sum() == pytest.approx(1.2)
    assert not photo.gray and photo.bits == 8 and photo.notes == ()


@pytest.mark.parametrize("tint", [(1.0, 0.5, 0.2), (1.0, 1.0, 0.2), (1.0, 0.2, 1.0), (0.2, 1.0, 1.0)])
def test_gray_picture_that_was_given_colour_is_saved_in_colour(tint: tuple[float, ...], tmp_path: Path) -> None:
    photo = photos.decode(png_bytes(Image.fromarray(noise(4, 6))))
    assert photo.gray and torch.equal(photo.pixels[0], photo.pixels[2])
    tinted = Photo(photo.pixels * torch.tensor(tint).view(3, 1, 1), gray=True)
    photos.write(tmp_path / "a.png", tinted)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "RGB"


# --- 16 bits ---


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_kept_exactly(channels: int, tmp_path: Path) -> None:
    array = noise(9, 6, channels, top=65536)
    (tmp_path / "in.png").write_bytes(b"".join(png16.encode(array)))
    photo = photos.read(tmp_path / "in.png")
    assert photo.bits == 16 and photo.gray == (channels < 3) and (photo.alpha is not None) == (channels in (2, 4))
    photos.write(tmp_path / "out.png", photo)
    assert np.array_equal(photos.to_array(photos.read(tmp_path / "out.png")), array)


def test_16_bit_png_is_read_alike_by_another_decoder(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV (comes with facexlib) is the second opinion")
    array = noise(300, 5, 3, top=65536)  # more rows than one block of the encoder
    (tmp_path / "in.png").write_bytes(b"".join(png16.encode(array)))
    assert np.array_equal(cv2.imread(str(tmp_path / "in.png"), cv2.IMREAD_UNCHANGED)[..., ::-1], array)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_every_size_of_16_bit_png(height: int, width: int, channels: int, smooth: bool) -> None:
    array = noise(height, width, channels, top=65536)
    if smooth:  # favours the other row filter
        array = np.cumsum(array // 512, axis=1).astype(np.uint16)
    photo = photos.decode(io.BytesIO(b"".join(png16.encode(array))))
    assert np.array_equal(photos.to_array(photo), array)


def test_16_bit_png_with_a_transparent_colour() -> None:
    array = noise(4, 5, 3, top=65536)
    array[0, 0] = (*array[1, 2, :2], 7)  # the same but for its blue: another colour
    pieces = list(png16.encode(array))
    key = struct.pack(">HHH", *array[1, 2])
    chunk = struct.pack(">I", 6) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    photo = photos.decode(io.BytesIO(b"".join([*pieces[:2], chunk, *pieces[2:]])))
    assert photo.alpha is not None
    assert (photo.alpha[0] == 0).nonzero().tolist() == [[1, 2]]
    assert np.array_equal(photos.to_array(photo)[..., :3], array)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"byteorder": ">"},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_tiff_is_kept_exactly(layout: dict[str, object], channels: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = noise(21, 18, channels, top=65536)
    buffer = io.BytesIO()
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    squeezed = array[..., 0] if channels == 1 else array
    tifffile.imwrite(buffer, squeezed, photometric="minisblack" if channels == 1 else "rgb", **extra, **layout)
    buffer.seek(0)
    photo = photos.decode(buffer)
    assert photo.bits == 16
    assert np.array_equal(photos.to_array(photo), array)


def test_16_bit_tiff_where_white_is_zero_is_turned_round() -> None:
    tifffile = pytest.importorskip("tifffile")
    array = noise(5, 4, top=65536)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric="miniswhite")
    buffer.seek(0)
    assert np.array_equal(photos.to_array(photos.decode(buffer))[..., 0], 65535 - array)


def test_16_bit_tiff_in_planes_is_refused() -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, noise(3, 5, 4, top=65536), photometric="rgb", planarconfig="separate")
    buffer.seek(0)
    with pytest.raises(ImageFileError, match=r"separate colour planes.*save it as 16-bit PNG"):
        photos.decode(buffer, "scan.tif")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_tiff_is_written_exactly_and_read_alike_by_others(channels: int, tmp_path: Path) -> None:
    array = noise(700, 90, channels, top=65536)  # more than one strip
    planes = torch.from_numpy(array.transpose(2, 0, 1).astype(np.float32)) / 65535
    gray, alpha = channels < 3, planes[-1:] if channels in (2, 4) else None
    color = planes[:1].expand(3, -1, -1) if gray else planes[:3]
    photos.write(tmp_path / "a.tif", Photo(color, alpha, bits=16, gray=gray))
    again = photos.read(tmp_path / "a.tif")
    if channels == 2:  # written as colour: Pillow does not open 16-bit gray with alpha
        array = array[..., [0, 0, 0, 1]]
    assert again.bits == 16 and np.array_equal(photos.to_array(again), array)
    with pytest.importorskip("tifffile").TiffFile(tmp_path / "a.tif") as file:
        assert np.array_equal(file.asarray().reshape(array.shape), array)
        assert len(file.pages[0].dataoffsets) > 1


def test_a_16_bit_png_of_many_rows_is_kept_exactly() -> None:
    """Rows are filtered 256 at a time, each from the one above it."""
    array = np.cumsum(noise(600, 4, 3, top=65536) // 4096, axis=0).astype(np.uint16)
    photo = photos.decode(io.BytesIO(b"".join(png16.encode(array))))
    assert np.array_equal(photos.to_array(photo), array)


def test_rows_of_a_16_bit_png_take_the_filter_that_packs_better() -> None:
    across = np.array([[9, 9, 9, 9, 8, 8], [1, 1, 1, 1, 2, 2]], np.uint8)  # alike within a row
    down = np.array([[1, 200, 3, 90, 7, 40], [1, 200, 3, 90, 7, 41]], np.uint8)  # each row like the one above
    assert png16._filtered(across, np.zeros(6, np.uint8), 2).tolist() == [
        [1, 9, 9, 0, 0, 255, 255], [1, 1, 1, 0, 0, 1, 1],
    ]  # fmt: skip
    assert png16._filtered(down, down[0], 2).tolist() == [[2, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 1]]
    # -1 is a smaller difference than 100, though as a byte it is 255
    assert png16._filtered(np.array([[100, 99]], np.uint8), np.array([101, 100], np.uint8), 1).tolist() == [[2, 255, 255]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_16_bit_tiff_is_laid_out_as_its_specification_says(channels: int) -> None:
    """TIFF 6.0: tags in ascending order, offsets even (section 2), what the last channel is (18); strips of 64 kB here."""
    file = io.BytesIO()
    array = noise(9, 5000, channels, top=65536)
    more = {270: (2, "odd"), 271: (2, "an even one"), 305: (2, "LAFR 0.1.0")}
    tiff16.encode(file, array, b"profile", (300.0, 254.5), more)
    data = file.getvalue()
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    entries = [struct.unpack("<HHII", data[at : at + 12]) for at in range(start + 2, start + 2 + 12 * count, 12)]
    tags = {tag: (kind, number, value) for tag, kind, number, value in entries}
    assert [entry[0] for entry in entries] == sorted(tags) and start % 2 == 0
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 7: 1}
    behind = [value for _, kind, number, value in entries if sizes[kind] * number > 4]
    assert behind and all(value % 2 == 0 and start < value < len(data) for value in behind)
    assert tags[278][2] * channels * 2 * 5000 <= 1 << 16 or tags[278][2] == 1
    assert (338 in tags) == (channels in (2, 4)) and tags[262][2] == (1 if channels < 3 else 2)
    kind, number, value = tags[271]
    assert data[value : value + number] == b"an even one\0" and kind == 2
    top, bottom = struct.unpack("<II", data[tags[283][2] : tags[283][2] + 8])
    assert top / bottom == 254.5


def test_8_bit_tiff_in_planes_is_read(tmp_path: Path) -> None:
    tags = {256: 2, 257: 1, 259: 1, 262: 2, 277: 3, 278: 1, 284: 2}
    behind = 8 + 2 + 12 * (len(tags) + 3) + 4
    entries = {tag: (3, 1, value) for tag, value in tags.items()}
    entries |= {258: (3, 3, behind), 273: (3, 3, behind + 6), 279: (3, 3, behind + 12)}
    lines = b"".join(struct.pack("<HHII", tag, *entries[tag]) for tag in sorted(entries))
    values = struct.pack("<9H", 8, 8, 8, *(behind + 18 + 2 * k for k in range(3)), 2, 2, 2) + bytes([1, 2, 3, 4, 5, 6])
    (tmp_path / "a.tif").write_bytes(struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + lines + bytes(4) + values)
    assert photos.read(tmp_path / "a.tif").stored.tolist() == [[[1, 2]], [[3, 4]], [[5, 6]]]


def test_floats_become_the_nearest_whole_numbers() -> None:
    pixels = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.2, -0.3]).repeat(3, 1, 1)
    assert photos.to_array(Photo(pixels))[0, :, 0].tolist() == [0, 0, 1, 255, 255, 0]  # type: ignore[arg-type]
    deep = torch.tensor([0.4 / 65535, 0.6 / 65535]).repeat(3, 1, 1)
    assert photos.to_array(Photo(deep, bits=16))[0, :, 0].tolist() == [0, 1]  # type: ignore[arg-type]


def test_gray_multiplied_by_its_alpha_is_gray_with_alpha() -> None:
    photo = photos.from_pil(Image.new("LA", (4, 3), (100, 51)).convert("La"))
    assert photo.gray and photo.stored.unique().tolist() == [100]
    assert photo.stored_alpha is not None and photo.stored_alpha.unique().tolist() == [51]


def test_gray_with_alpha_of_a_16_bit_png_becomes_a_tiff_that_others_read(tmp_path: Path) -> None:
    array = noise(5, 4, 2, top=65536)
    (tmp_path / "a.png").write_bytes(b"".join(png16.encode(array)))
    photo = photos.read(tmp_path / "a.png")
    assert photo.gray and len(photo.stored) == 1
    photos.write(tmp_path / "a.tif", photo)
    assert np.array_equal(photos.to_array(photos.read(tmp_path / "a.tif")), array[..., [0, 0, 0, 1]])


def test_a_tiff_that_would_pass_4_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff16, "_LARGEST", 500)
    with pytest.raises(ImageFileError, match=r"a\.tif: cannot be written \(a TIFF file holds at most 4 GB; write PNG\)"):
        photos.write(tmp_path / "a.tif", Photo(torch.rand(3, 12, 10), bits=16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pictures_of_unknown_range_are_refused(mode: str, tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 4), 1e6, dtype=np.float32 if mode == "F" else np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match=r"a\.tif: a (floating-point|TIFF with 32-bit)"):
        photos.read(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [-1, 65536])
def test_whole_numbers_beyond_16_bits_are_refused(value: int) -> None:
    with pytest.raises(ImageFileError, match="signed whole numbers; save it with 8 or 16 unsigned bits"):
        photos.from_pil(Image.new("I", (4, 3), value))
    assert photos.from_pil(Image.new("I", (4, 3), 65535)).stored.tolist() == [[[65535] * 4] * 3]


def test_32_bits_that_would_fit_into_16_are_refused_too(tmp_path: Path) -> None:
    """A scan of 32 bits that is dark is no 16-bit picture."""
    Image.new("I", (4, 3), 7).save(tmp_path / "a.tif")
    with pytest.raises(ImageFileError, match="a TIFF with 32-bit"):
        photos.read(tmp_path / "a.tif")


def test_a_tiff_is_turned_once_by_a_pillow_that_leaves_its_tag() -> None:
    """Before version 10 Pillow turned the pixels and left the orientation as it was."""
    image = Image.new("L", (4, 3))
    image.getexif()[0x0112] = 6
    assert photos.from_pil(image).stored.shape == (1, 4, 3)
    image.format = "TIFF"
    assert photos.from_pil(image).stored.shape == (1, 3, 4)


# --- strips: nothing depends on how many rows are converted at a time ---


@pytest.mark.parametrize("name", pictures())
@pytest.mark.parametrize("orientation", [1, 5, 6, 8])
def test_strips_of_three_rows_give_the_same_photo(name: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, extra = pictures()[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = png_bytes(image, exif=exif, **extra)
    whole = photos.decode(stream)
    monkeypatch.setattr(photos, "STRIP", 3 * image.width)
    stream.seek(0)
    strips = photos.decode(stream)
    assert np.array_equal(photos.to_array(strips), photos.to_array(whole))
    assert strips.stored.is_contiguous(memory_format=torch.contiguous_format) or strips.stored.stride(0) == 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("orientation", [1, 6])
def test_strips_of_16_bits_give_the_same_photo(channels: int, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = noise(10, 6, channels, top=65536)
    monkeypatch.setattr(photos, "STRIP", 3 * 6)
    photo = photos.decode(io.BytesIO(b"".join(png16.encode(array, exif=exif.tobytes()[6:]))))
    assert np.array_equal(photos.to_array(photo), np.rot90(array, -1) if orientation == 6 else array)


def test_a_photo_is_saved_from_its_own_memory() -> None:
    array = noise(40, 30, 3)
    raster = photos.Raster(photos.from_pil(Image.fromarray(array)))
    assert raster.shape == (40, 30, 3) and raster.dtype == np.uint8
    assert raster[:].base is not None and np.shares_memory(raster[:], raster[7:9])
    assert np.array_equal(raster[7:9], array[7:9])


# --- orientation, profile, EXIF ---


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied_once(orientation: int, suffix: str, tmp_path: Path) -> None:
    image = Image.fromarray(noise(4, 7, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    image.save(tmp_path / f"in.{suffix}", exif=exif)
    expected = np.asarray(image.transpose(TURNS[orientation]) if orientation > 1 else image)
    out = saved_again(tmp_path / f"in.{suffix}", tmp_path / "out.png")
    assert np.array_equal(np.asarray(out), expected)
    assert expected.shape[:2] == ((4, 7) if orientation < 5 else (7, 4))
    assert out.getexif().get(0x0112, 1) == 1
    if suffix == "png":
        assert out.getexif()[0x010F] == "Maker"


def test_orientation_of_a_16_bit_picture(tmp_path: Path) -> None:
    array = noise(3, 5, 3, top=65536)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in.png").write_bytes(b"".join(png16.encode(array, exif=exif.tobytes()[6:])))
    photo = photos.read(tmp_path / "in.png")
    assert np.array_equal(photos.to_array(photo), np.rot90(array, -1))


@pytest.mark.parametrize("bits", [8, 16])
def test_profile_and_exif_are_embedded_again(bits: int, tmp_path: Path) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0132] = "1974:08:01 12:00:00"
    photo = Photo(torch.rand(3, 4, 5), icc=icc, exif=exif.tobytes()[6:], bits=bits)
    photos.write(tmp_path / "a.png", photo)
    again = photos.read(tmp_path / "a.png")
    assert again.icc == icc and again.bits == bits
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == icc
        assert image.getexif()[0x0132] == "1974:08:01 12:00:00"


def test_a_gray_profile_is_not_put_on_a_colour_picture(tmp_path: Path) -> None:
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    icc[16:20] = b"GRAY"
    gray = Photo(torch.full((3, 2, 2), 0.5), icc=bytes(icc), gray=True)
    photos.write(tmp_path / "gray.png", gray)
    assert Image.open(tmp_path / "gray.png").info["icc_profile"] == bytes(icc)
    photos.write(tmp_path / "colour.png", Photo(torch.rand(3, 2, 2), icc=bytes(icc), gray=True))
    assert "icc_profile" not in Image.open(tmp_path / "colour.png").info


# --- CMYK, Lab, animations ---


def test_cmyk_without_a_profile_says_that_colours_are_approximate(tmp_path: Path) -> None:
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    photo = photos.read(tmp_path / "red.jpg")
    assert photo.notes == ("CMYK without a colour profile: colours are approximate",)
    red, green, blue = photo.pixels.mean((1, 2)).tolist()
    assert red > 0.95 and green < 0.05 and blue < 0.05


RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    "icc", [bytes(16) + b"CMYK" + bytes(200), b"\1", RGB_PROFILE], ids=["broken", "none", "of other colours"]
)
def test_cmyk_with_an_unusable_profile_is_still_read(icc: bytes, tmp_path: Path) -> None:
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100, icc_profile=icc)
    photo = photos.read(tmp_path / "red.jpg")
    assert photo.notes == ("CMYK with an unusable colour profile: colours are approximate",)
    assert photo.icc is None and photo.pixels[0].mean() > 0.95


def test_lab_is_converted_to_srgb(tmp_path: Path) -> None:
    Image.new("LAB", (6, 4), (128, 128, 128)).save(tmp_path / "mid.tif")  # L = 50 %, no colour
    photo = photos.read(tmp_path / "mid.tif")
    assert photo.notes == ("LAB converted to sRGB",)
    assert photo.pixels.mean().item() == pytest.approx(119 / 255, abs=0.01)  # CIE L* 50 in sRGB


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_the_first_picture_of_an_animation_is_taken_and_said_so(suffix: str, count: int, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "lime", "blue")][:count]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], duration=50, lossless=True)
    photo = photos.read(tmp_path / f"a.{suffix}")
    assert photo.notes == (f"first of {count} pictures in the file",)
    assert photo.pixels.mean((1, 2)).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.01)


# --- refused by name ---


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, "JPEG")
    return buffer.getvalue()


def png() -> bytes:
    return png_bytes(Image.fromarray(noise(64, 64, 3))).getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"is empty \(0 bytes\); copy the file again"),
        (b"this is a shopping list", "not an image this Pillow can read; convert it"),
        (jpeg()[:900], r"damaged or cut short \(.*\); copy it again"),
        (png()[:900], r"damaged or cut short \(.*\); copy it again"),
        (png()[:30], r"damaged or cut short|not an image"),
        (b"".join(png16.encode(noise(40, 40, 3, top=65536)))[:3000], r"damaged or cut short"),
        (png()[:100] + bytes(200) + png()[300:], r"damaged or cut short"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "cut png header", "cut 16-bit png", "overwritten png"],
)
def test_bad_files_are_refused_by_name(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grandma.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageFileError, match=rf"grandma\.jpg: .*({message})") as caught:
        photos.read(path)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageFileError, match=r"nowhere\.png: expected an image file, found no file"):
        photos.read(tmp_path / "nowhere.png")
    with pytest.raises(ImageFileError, match="expected an image file, got a folder"):
        photos.read(tmp_path)

    def locked(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "locked.png").write_bytes(png())
    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(ImageFileError, match=r"locked\.png: cannot be read \(Permission denied\)"):
        photos.read(tmp_path / "locked.png")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (14_000, 13_000)], ids=["Pillow's limit", "ours"])
def test_decompression_bombs_are_refused_before_decoding(width: int, height: int, tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(png()[:8] + chunk + png()[33:])
    with pytest.raises(ImageFileError, match=r"bomb\.png: too large .*limit is 178 megapixels"):
        photos.read(tmp_path / "bomb.png")


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_picture_of_just_the_limit_is_read(kind: str, tmp_path: Path) -> None:
    Image.new("L", (5, 3)).save(tmp_path / "a", kind)
    assert photos.read(tmp_path / "a", max_pixels=15).stored.shape[-2:] == (3, 5)
    with pytest.raises(ImageFileError, match=r"too large .*limit is 14 pixels"):
        photos.read(tmp_path / "a", max_pixels=14)


# --- saving is all or nothing ---


@pytest.mark.parametrize("bits", [8, 16])
def test_an_interrupted_save_leaves_the_old_file_alone(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    monkeypatch.setattr(png16, "_filtered", interrupted)
    with pytest.raises(KeyboardInterrupt):
        photos.write(path, Photo(torch.rand(3, 4, 4), bits=bits), overwrite=True)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_refusing_file_system_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"a\.png: cannot be written \(No such file or directory\)"):
        photos.write(tmp_path / "missing" / "a.png", Photo(torch.rand(3, 4, 4)))


def test_atomic_replaces_and_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == tmp_path and temporary.name.startswith(".") and temporary.suffix == ".part"
    assert path.read_text() == "new"
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError) as told, atomic(path) as temporary:
        raise OSError(28, "No space left on device", str(temporary))
    assert told.value.filename == str(path)  # people know the file by its name


def test_pillow_image_both_ways() -> None:
    image = Image.fromarray(noise(4, 6, 4))
    assert np.array_equal(np.asarray(photos.to_pil(photos.from_pil(image))), np.asarray(image))
