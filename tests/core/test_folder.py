"""A folder as people have them: no entry of it stops the rest, nothing in a picture's clothes is run (TRIALS F1-F6)."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import arguments, cli
from lafr_core.errors import CheckpointError, ImageFileError
from lafr_core.images import formats, photos
from lafr_core.video.pictures import is_animation

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([face_at(20, 30, 60)]))
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def picture(kind: str = "JPEG", seed: int = 0, **extra: Any) -> bytes:
    array = np.random.default_rng(seed).integers(0, 256, (120, 100, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **extra)
    return buffer.getvalue()


def run(*given: object) -> int:
    return cli.main([str(argument) for argument in given])


def report(path: Path) -> dict[str, dict[str, Any]]:
    return {Path(entry["input"]).name: entry for entry in json.loads(path.read_text())["inputs"]}


@pytest.mark.skipif(os.name == "nt", reason="links, pipes and PostScript as POSIX has them")
def test_a_hostile_folder_is_reported_entry_by_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.jpg").write_bytes(picture())
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    (folder / "holiday.jpg").write_bytes(POSTSCRIPT)
    for name in ("a.dng", "b.cr2", "c.psd", "d.tga", "e.svg"):
        (folder / name).write_bytes(b"whatever")
    (folder / "notes.txt").write_text("not a picture at all")
    started: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **_: started.append(a))
    assert run("restore", folder, "-o", tmp_path / "out", "--report", tmp_path / "r.json") == 1
    assert not started  # no Ghostscript
    found = report(tmp_path / "r.json")
    assert {name: entry["status"] for name, entry in found.items()} == {
        "good.jpg": "restored", "loop.jpg": "failed", "dangling.jpg": "failed", "pipe.jpg": "failed", "holiday.jpg": "failed",
        "a.dng": "unopened", "b.cr2": "unopened", "c.psd": "unopened", "d.tga": "unopened", "e.svg": "unopened",
    }  # fmt: skip
    for name, words in {
        "loop.jpg": "symbolic links", "dangling.jpg": "no file there", "pipe.jpg": "a pipe, socket or device",
        "holiday.jpg": "a page description, not a photo", "a.dng": "darktable", "b.cr2": "darktable", "c.psd": "GIMP",
        "d.tga": "ImageMagick", "e.svg": "Inkscape",
    }.items():  # fmt: skip
        assert words in found[name]["reason"], name
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["good.png"]


def test_what_is_only_listed_is_no_failure(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "good.jpg").write_bytes(picture())
    (tmp_path / "in" / "raw.nef").write_bytes(b"raw")
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert "lafr: 1 restored, 1 not opened" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["loop.jpg", "pipe.jpg", "a.dng", "holiday.jpg"])
@pytest.mark.skipif(os.name == "nt", reason="links and pipes as POSIX has them")
def test_named_by_hand_they_are_refused_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    {
        "loop.jpg": lambda: path.symlink_to(name),
        "pipe.jpg": lambda: os.mkfifo(path),
        "a.dng": lambda: path.write_bytes(b"raw"),
        "holiday.jpg": lambda: path.write_bytes(POSTSCRIPT),
    }[name]()
    with pytest.raises(ImageFileError, match=name):
        photos.read(path)
    assert run("restore", path, "-o", tmp_path / "out") == 1
    assert run("compare", path, path, "-o", tmp_path / "sheet.png") == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (POSTSCRIPT, "a page description"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "a page description"),
        (b"%PDF-1.7\n" + bytes(60), "a page description"),
        (b"8BPS\0\1" + bytes(60), "a drawing program's file"),
        (b"II\x2a\0\x10\0\0\0CR\x02\0" + bytes(60), "damaged|raw|not an image"),
        (b"\0\0\0\x18ftypcrx isom" + bytes(60), "a camera's raw file"),
        (b"gimp xcf v011" + bytes(60), "a drawing program's file"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(60), "a camera's raw file"),
        (b"IIRO\x08\0\0\0" + bytes(60), "a camera's raw file"),
        (b"IIU\0\x08\0\0\0" + bytes(60), "a camera's raw file"),
        (b"II\x1a\0\0\0HEAPCCDR" + bytes(60), "a camera's raw file"),
        (picture("TGA"), "not an image"),
        (picture("PCX"), "not an image"),
        (picture("ICO"), "not an image"),
        (b"SIMPLE  =                    T" + bytes(60), "not an image"),
    ],
)
def test_formats_are_told_by_content_whatever_the_name(data: bytes, words: str, tmp_path: Path) -> None:
    for suffix in (".jpg", ".png", ".tif"):
        (tmp_path / f"a{suffix}").write_bytes(data)
        with pytest.raises(ImageFileError, match=words):
            photos.read(tmp_path / f"a{suffix}")


def test_a_raw_file_that_is_a_tiff_outside_is_no_photo(tmp_path: Path) -> None:
    from PIL import TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[50706] = b"\1\4\0\0"
    tags.tagtype[50706] = 1
    Image.new("RGB", (16, 12)).save(tmp_path / "thumbnail.tif", tiffinfo=tags)
    with pytest.raises(ImageFileError, match="a camera's raw file"):
        photos.read(tmp_path / "thumbnail.tif")


def test_a_canon_raw_file_is_told_by_its_mark(tmp_path: Path) -> None:
    tags = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 12, 277: 1, 278: 1, 279: 1}  # one gray pixel, of which 12 is the place
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    for mark in (b"\0\0", b"CR"):
        data = b"II*\0\x10\0\0\0" + mark + b"\x02\0\x80\0\0\0" + directory
        (tmp_path / ("raw.tif" if mark == b"CR" else "plain.tif")).write_bytes(data)
    assert photos.read(tmp_path / "plain.tif").stored.flatten().tolist() == [128]
    with pytest.raises(ImageFileError, match="a camera's raw file"):
        photos.read(tmp_path / "raw.tif")


def test_a_raw_file_s_name_is_enough(tmp_path: Path) -> None:
    """Many are TIFF files inside, and what Pillow sees of them is a thumbnail."""
    (tmp_path / "a.NEF").write_bytes(picture("TIFF"))
    with pytest.raises(ImageFileError, match="a camera's raw file"):
        photos.read(tmp_path / "a.NEF")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "MPO"])
def test_every_format_on_the_list_is_read(kind: str, tmp_path: Path) -> None:
    extra = {"save_all": True, "append_images": [Image.new("RGB", (100, 120))]} if kind == "MPO" else {}
    (tmp_path / "a.jpg").write_bytes(picture(kind, **extra))
    assert photos.read(tmp_path / "a.jpg").pixels.shape == (3, 120, 100)


@pytest.mark.parametrize(("kind", "module", "suffix"), [("HEIF", "pillow_heif", "heic"), ("JXL", "pillow_jxl", "jxl")])
def test_plug_ins_are_used_where_they_are(kind: str, module: str, suffix: str, tmp_path: Path) -> None:
    plug_in = pytest.importorskip(module)
    if kind == "HEIF":
        plug_in.register_heif_opener()
    flat = Image.new("RGB", (100, 120), (200, 100, 50))
    flat.save(tmp_path / "a", kind)
    (tmp_path / f"a.{suffix}").write_bytes((tmp_path / "a").read_bytes())
    if kind == "HEIF":
        Image.OPEN.pop(kind)  # as in a process that has not met the format yet; the other registers itself at import
    read = photos.read(tmp_path / f"a.{suffix}")
    assert read.pixels.shape == (3, 120, 100) and abs(float(read.pixels[0].mean()) - 200 / 255) < 0.03
    assert run("restore", tmp_path / f"a.{suffix}", "-o", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("kind", "module", "head"), [("HEIF", "pillow_heif", b"heic"), ("AVIF", "PIL.AvifImagePlugin", b"avif")]
)
def test_a_damaged_picture_of_a_plug_in_is_called_so(kind: str, module: str, head: bytes, tmp_path: Path) -> None:
    pytest.importorskip(module)
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftyp" + head + bytes(60))
    with pytest.raises(ImageFileError, match="damaged or cut short"):
        photos.read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("HEIF", b"\0\0\0\x18ftypheic"), ("HEIF", b"\0\0\0\x18ftypheix"), ("HEIF", b"\0\0\0\x18ftypmif1"),
        ("JXL", b"\xff\x0a"), ("JXL", b"\0\0\0\x0cJXL \r\n\x87\n"), ("AVIF", b"\0\0\0\x18ftypavif"),
        ("AVIF", b"\0\0\0\x18ftypavis"),
    ],
)  # fmt: skip
def test_a_missing_plug_in_is_named(kind: str, head: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.OPEN, kind, raising=False)
    monkeypatch.setitem(sys.modules, formats.PLUG_INS[kind][0], None)
    (tmp_path / "a.jpg").write_bytes(head + bytes(60))
    with pytest.raises(ImageFileError, match=f"a {kind} picture, which needs the package {formats.PLUG_INS[kind][1]}; run pip"):
        photos.read(tmp_path / "a.jpg")


# --- files cut short (F6) ---


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_salvage_restores_what_there_is(kind: str, tmp_path: Path, capfd: Any) -> None:
    whole = picture(kind)
    source = tmp_path / "a.jpg"
    source.write_bytes(whole[: int(len(whole) * 0.7)])
    command = ["restore", source, "-o", tmp_path / "out", "--report", tmp_path / "r.json"]
    assert run(*command) == 1
    assert run(*command, "--salvage", "--resume") == 0
    (warning,) = report(tmp_path / "r.json")["a.jpg"]["warnings"]
    assert warning == "damaged or cut short: what could be decoded was kept"
    (tmp_path / "whole.jpg").write_bytes(whole)
    expected, saved = photos.read(tmp_path / "whole.jpg").pixels, photos.read(source, salvage=True).pixels
    assert (expected[:, :48] == saved[:, :48]).all()
    with pytest.raises(ImageFileError):  # the next reader is as strict as before
        photos.read(source)


def test_salvaging_what_is_no_picture_after_all_names_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[11] = 2  # the header's length: Pillow knows the format, then finds no picture
    (tmp_path / "a.png").write_bytes(data)
    for salvage in (False, True):
        with pytest.raises(ImageFileError, match=r"a\.png: "):
            photos.read(tmp_path / "a.png", salvage=salvage)


# --- the environment (F4) ---


def test_a_nul_in_an_argument_is_one_sentence(tmp_path: Path, capfd: Any) -> None:
    assert run("restore", "a\0.jpg", "-o", tmp_path) == 2
    assert "expected arguments without NUL" in capfd.readouterr().err
    (tmp_path / "c.toml").write_text('out = "a\\u0000b"\n')
    assert run("restore", "a.jpg", "--config", tmp_path / "c.toml") == 2
    assert "'--out=a\\x00b': expected arguments without NUL" in capfd.readouterr().err
    with pytest.raises(ImageFileError, match="cannot be read"):
        photos.read(Path("a\0.jpg"))


@pytest.mark.parametrize("value", ["abc", "-1", "1.5"])
def test_a_broken_world_size_is_one_sentence(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    monkeypatch.setenv("WORLD_SIZE", value)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 2
    assert f"WORLD_SIZE: expected the number of processes, got '{value}'" in capfd.readouterr().err


@pytest.mark.parametrize("value", ["", " ", "1", " 1 ", "0"])
def test_one_process_needs_no_launcher(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    monkeypatch.setenv("WORLD_SIZE", value)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 0


def test_tqdm_may_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 0


def test_a_report_that_cannot_be_written_costs_no_photo(tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(picture())
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out", "--report", tmp_path) == 2
    assert "a folder of this name is there" in capfd.readouterr().err
    write_text = Path.write_text

    def full(path: Path, *rest: Any, **more: Any) -> int:
        if path.suffix == ".part":
            raise OSError(28, "No space left on device")
        return write_text(path, *rest, **more)

    monkeypatch.setattr(Path, "write_text", full)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out", "--report", tmp_path / "r.json") == 1
    assert "r.json: the report cannot be written (No space left on device)" in capfd.readouterr().err
    assert (tmp_path / "out" / "a.png").is_file()


def test_a_full_disk_fails_the_photo_and_leaves_nothing_half(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.jpg").write_bytes(picture())
    monkeypatch.setattr(Image.Image, "save", full)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 1
    result = tmp_path / "out" / "a.png"
    assert f"{result}: cannot be written (No space left on device)" in capfd.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_told_where_a_photo_is_copied_as_it_is(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    Image.new("RGB", (20, 20)).save(tmp_path / "a.jpg")  # too small for a face
    monkeypatch.setattr(shutil, "copyfile", full)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out", "--format", "same") == 1
    assert f"{tmp_path / 'out' / 'a.jpg'}: cannot be written (No space left on device)" in capfd.readouterr().err


@pytest.mark.parametrize("config", ["[" * 100_000, "[]", "null", "3", '{"a": ' * 20_000, '{"widths": 1e999}'])
def test_a_hostile_checkpoint_is_one_sentence(config: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from lafr_core.faces.networks.embedder import StarterEmbedderNet
    from lafr_core.store import checkpoint

    path = tmp_path / "e.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"lafr_kind": "embedder", "lafr_version": "1", "lafr_config": config})
    with pytest.raises(CheckpointError, match="config"):
        checkpoint.open_network(path, "embedder", StarterEmbedderNet)


@pytest.mark.parametrize(("text", "count"), [("400M", 400_000_000), ("1000", 1000), ("2m", 2_000_000)])
def test_the_limit_on_pixels_can_be_moved(text: str, count: int, tmp_path: Path, capfd: Any) -> None:
    assert arguments.pixels(text) == count
    (tmp_path / "a.jpg").write_bytes(picture())
    expected = 1 if count < 12_000 else 0
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out", "--max-pixels", text) == expected
    assert ("too large (100x120 pixels)" in capfd.readouterr().err) == bool(expected)


def test_the_canvas_of_a_webp_is_not_made_before_its_size_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by tests/fuzz after 42,671 clips: 4 gigabytes for a file of 1,132 bytes."""
    path = tmp_path / "a.webp"
    frames = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (3, 5, 4), dtype=np.uint8)) for k in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    data = path.read_bytes()
    assert data[12:16] == b"VP8X" and photos.read(path, max_pixels=15).stored.shape[-2:] == (3, 5)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageFileError, match=r"too large \(5x3 pixels\); the limit is 14 pixels"):
        photos.read(path, max_pixels=14)
    path.write_bytes(data[:24] + bytes([63, 0, 0]) + bytes([47, 0, 251]) + data[30:])
    with pytest.raises(ImageFileError, match=r"too large \(64x16449584 pixels\); the limit is 178 megapixels"):
        photos.read(path)
    assert not is_animation(path)


@pytest.mark.parametrize("text", ["0", "-1", "1e6", "1.5M", "10000000000000", "M", "", "\u0663M", "\u00b2"])
def test_a_limit_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number of pixels such as 400M"):
        arguments.pixels(text)


def test_the_canvas_of_a_gif_is_not_made_before_its_size_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by tests/fuzz after 628,651 pictures: 341 megabytes for a file of 271 bytes."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 3, 2, 0x80, 0, 0) + bytes(6)
    clear = b"\x21\xf9\x04" + bytes([2 << 2, 0, 0, 0]) + b"\x00"  # the frame gives way to the background
    path = tmp_path / "bomb.gif"
    path.write_bytes(screen + clear + b"," + struct.pack("<HHHHB", 0, 0, 15_000, 15_000, 0) + b"\x02\x02\x44\x01\x00;")
    made: list[Any] = []
    fill = Image.core.fill
    monkeypatch.setattr(Image.core, "fill", lambda mode, size, *color: made.append(size) or fill(mode, (1, 1), *color))
    with pytest.raises(ImageFileError, match=r"too large \(the canvas of a GIF\); the limit is 178 megapixels"):
        photos.read(path)
    assert made == []
    assert Image.MAX_IMAGE_PIXELS == 89478485, "Pillow's own limit is as it was"
    with pytest.raises(ImageFileError, match="the limit is 5 pixels"):
        photos.read(path, max_pixels=5)
