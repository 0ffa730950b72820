"""What bad input gets: decoded right or refused by name, and the rest goes on (DESIGN 4)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from PIL import Image

from lafr_core.app import arguments, cli
from lafr_core.errors import CheckpointError
from lafr_core.images import photos, png16
from lafr_core.images.photos import Photo
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.models import open_models
from lafr_core.pipeline import restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.store import checkpoint
from lafr_core.types import Face

FACE = face_at(16, 20, 48)


def noise(*shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(1).integers(0, top, shape, dtype=np.uint8 if top == 256 else np.uint16)


def rgb() -> Image.Image:
    return Image.fromarray(noise(96, 80, 3))


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(80, 96, 3)).save(path, exif=exif)


GOOD: dict[str, Callable[[Path], Any]] = {
    "gray.png": lambda path: rgb().convert("L").save(path),
    "gray and alpha.png": lambda path: Image.fromarray(noise(96, 80, 2)).save(path),
    "one bit.png": lambda path: rgb().convert("1").save(path),
    "alpha.png": lambda path: Image.fromarray(noise(96, 80, 4)).save(path),
    "palette.png": lambda path: rgb().quantize(32).save(path),
    "palette with transparency.gif": lambda path: rgb().quantize(32).save(path, transparency=3),
    "16 bit.png": lambda path: path.write_bytes(b"".join(png16.encode(noise(96, 80, 3, top=65536)))),
    "16 bit gray.png": lambda path: path.write_bytes(b"".join(png16.encode(noise(96, 80, 1, top=65536)))),
    "cmyk.jpg": lambda path: rgb().convert("CMYK").save(path),
    "exif-rotated.png": turned,
    "progressive.jpg": lambda path: rgb().save(path, progressive=True),
}


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([FACE]))


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", GOOD)
def test_every_kind_of_photo_is_restored_inside_the_mask_and_kept_outside(name: str, tmp_path: Path, models: None) -> None:
    source = tmp_path / name
    GOOD[name](source)
    before = photos.read(source)
    assert before.pixels.shape == (3, 96, 80)
    assert run("restore", source, "-o", tmp_path / "out") == 0
    after = photos.read(tmp_path / "out" / f"{source.stem}.png")
    assert (after.bits, after.gray) == (before.bits, before.gray)
    changed = (before.pixels != after.pixels).any(0)
    assert changed[44, 40] and not changed[:, -1].any() and not changed[-1].any()
    if before.alpha is None:
        assert after.alpha is None
    else:
        assert after.alpha is not None and torch.equal(before.alpha, after.alpha)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    rgb().save(buffer, kind)
    return buffer.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "zero.png": (lambda: b"", "is empty (0 bytes)"),
    "text.jpg": (lambda: b"not a photo at all", "not an image"),
    "cut.jpg": (lambda: cut(encoded("JPEG")), "damaged or cut short"),
    "cut.png": (lambda: cut(encoded("PNG")), "damaged or cut short"),
    "cut.webp": (lambda: cut(encoded("WEBP")), "webp: "),
    "cut 16 bit.png": (lambda: cut(b"".join(png16.encode(noise(96, 80, 3, top=65536)))), "damaged or cut short"),
    "photo.heic": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIF picture"),
}


def test_bad_files_are_named_and_the_rest_goes_on(tmp_path: Path, models: None, capfd: Any) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data())
    rgb().save(folder / "good.png")
    assert run("restore", folder, tmp_path / "missing.jpg", "-o", tmp_path / "out", "--report", tmp_path / "r.json") == 1
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["good.png"]
    entries = {Path(entry["input"]).name: entry for entry in json.loads((tmp_path / "r.json").read_text())["inputs"]}
    assert len(entries) == len(BAD) + 2
    lines = capfd.readouterr().err.splitlines()
    for name, (_, reason) in {**BAD, "missing.jpg": (None, "found nothing there")}.items():
        assert entries[name]["status"] == "failed" and entries[name]["faces"] == [] and entries[name]["output"] is None
        assert reason in entries[name]["reason"]
        assert sum(name in line for line in lines) == 1, "one line for each bad file"
    assert entries["good.png"]["status"] == "restored"


def test_an_unreadable_folder_is_named_and_the_rest_goes_on(
    tmp_path: Path, models: None, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    import os

    (tmp_path / "in" / "locked").mkdir(parents=True)
    rgb().save(tmp_path / "in" / "a.png")
    scandir = os.scandir

    def guarded(path: Any) -> Any:  # chmod does not keep root out, and tests often run as root
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert run("restore", tmp_path / "in", "-r", "-o", tmp_path / "out") == 1
    assert "locked: the folder cannot be read (Permission denied)" in capfd.readouterr().err
    assert (tmp_path / "out" / "a.png").is_file()


# --- shapes and faces ---


@pytest.mark.parametrize(("width", "height"), [(1, 1), (10_000, 20), (20, 10_000), (2, 3), (7, 513)])
def test_extreme_sizes_pass_through_the_real_detector(
    width: int, height: int, tmp_path: Path, random_weights: dict[str, Path], capfd: Any
) -> None:
    Image.fromarray(noise(height, width, 3)).save(tmp_path / "a.png")
    flags = [text for kind in ("vae", "adapter", "prior", "embedder") for text in (f"--{kind}", random_weights[kind])]
    flags += ["--detector-weights", random_weights["detector"], "--detector", "starter", "--device", "cpu", "--top-k", "1"]
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", *flags) == 0, capfd.readouterr().err
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (width, height)


def restored(face: Face, height: int = 120, width: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.full((1, 3, height, width), 0.25)
    result = restore_faces(images, parts([face]), RestoreSettings(color=0.0, fidelity=0.0))
    assert len(result.faces) == 1 and bool(torch.isfinite(result.images).all())
    return images, result.images


def test_no_face_passes_through_bit_identical() -> None:
    images = torch.rand(3, 3, 40, 50)
    result = restore_faces(images, parts([]), RestoreSettings())
    assert torch.equal(result.images, images) and result.faces == () and not result.masks.any()


def test_as_many_images_come_out_as_went_in() -> None:
    images = torch.rand(3, 3, 120, 100)
    result = restore_faces(images, parts([FACE]), RestoreSettings())
    assert result.images.shape == images.shape and [face.image_index for face in result.faces] == [0, 1, 2]


@pytest.mark.parametrize("side", [3.0, 8.0])
def test_a_tiny_face_changes_its_own_pixels_only(side: float) -> None:
    images, after = restored(face_at(40, 50, side))
    changed = (images != after).any(1)[0].nonzero()
    assert len(changed) > 0
    assert (changed.min(0).values >= torch.tensor([50, 40]) - 2 * side - 2).all()
    assert (changed.max(0).values <= torch.tensor([50, 40]) + 3 * side + 2).all()


@pytest.mark.parametrize(("x", "y"), [(-20, 30), (70, 30), (30, -20), (30, 90)])
def test_a_face_over_the_border_is_restored_where_it_is_visible(x: int, y: int) -> None:
    face = face_at(x, y, 50)

    class Everywhere:
        name = "everywhere"

        def __call__(self, image: torch.Tensor, threshold: float) -> list[Face]:
            return [face]

    images = torch.full((1, 3, 120, 100), 0.25)
    settings = RestoreSettings(color=0.0, fidelity=0.0)
    after = restore_faces(images, replace(parts(), detector=Everywhere()), settings).images
    row, column = min(max(y + 25, 2), 117), min(max(x + 25, 2), 97)
    assert after[0, 0, row, column] > 0.27
    assert bool(torch.isfinite(after).all()) and after.min() > 0.2  # no black border is dragged in


def test_an_upside_down_face_is_restored_in_its_place() -> None:
    upright = face_at(30, 30, 50)
    flipped: Any = tuple((110 - x, 110 - y) for x, y in upright.landmarks)
    images, after = restored(replace(upright, landmarks=flipped))
    assert after[0, 0, 55, 55] > 0.3 and torch.equal(after[0, :, :5], images[0, :, :5])


def test_real_starter_finds_an_upside_down_face(starter_weights: Path, faces_folder: Path) -> None:
    path = sorted((faces_folder / "val").iterdir())[0]
    photo = photos.read(path)
    settings = RestoreSettings(detector="starter", top_k=1)
    upside_down = photo.pixels.flip(-1, -2)[None]
    result = restore_faces(upside_down, open_models(settings, device="cpu"), settings)
    (face,) = result.faces
    assert face.landmarks[0][1] > face.landmarks[3][1]  # its eyes are below its mouth
    assert result.images.shape == upside_down.shape and not torch.equal(result.images, upside_down)


def test_a_gray_photo_stays_gray_and_its_luma_is_restored(tmp_path: Path, models: None) -> None:
    Image.fromarray(noise(96, 80)).save(tmp_path / "a.jpg", quality=95)
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 0
    before, after = photos.read(tmp_path / "a.jpg"), photos.read(tmp_path / "out" / "a.png")
    assert after.gray and not torch.equal(before.pixels, after.pixels)
    Image.fromarray(np.repeat(noise(96, 80)[..., None], 3, 2)).save(tmp_path / "rgb.png")  # gray, stored in colour
    assert run("restore", tmp_path / "rgb.png", "-o", tmp_path / "out") == 0
    after = photos.read(tmp_path / "out" / "rgb.png")
    assert torch.equal(after.pixels[0], after.pixels[1]) and torch.equal(after.pixels[0], after.pixels[2])


# --- weight files and options ---


@pytest.mark.parametrize("kind", ["vae", "adapter", "prior", "detector", "embedder"])
@pytest.mark.parametrize("fault", ["missing", "damaged", "of another kind", "not ours"])
def test_a_wrong_weight_file_is_one_sentence(
    kind: str, fault: str, tmp_path: Path, random_weights: dict[str, Path], capfd: Any
) -> None:
    rgb().save(tmp_path / "a.png")
    wrong = tmp_path / f"{kind}.safetensors"
    other = "prior" if kind != "prior" else "vae"
    if fault == "damaged":
        wrong.write_bytes(random_weights[kind].read_bytes()[:-100])
    elif fault == "of another kind":
        wrong.write_bytes(random_weights[other].read_bytes())
    elif fault == "not ours":
        from safetensors.torch import save_file

        save_file({"weight": torch.zeros(2)}, str(wrong))
    used = {**random_weights, kind: wrong}
    flags = [text for name in ("vae", "adapter", "prior", "embedder") for text in (f"--{name}", used[name])]
    flags += ["--detector-weights", used["detector"], "--detector", "starter", "--device", "cpu"]
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", *flags) == 2
    err = capfd.readouterr().err
    assert err.startswith("lafr: ") and str(wrong) in err and "Traceback" not in err
    assert not (tmp_path / "out" / "a.png").exists()


def test_parts_of_two_latent_families_are_refused(tmp_path: Path, random_weights: dict[str, Path]) -> None:
    torch.manual_seed(0)
    network = AdapterNet("flux", 16, width=8, coarse=16, deep=16, code_width=4, entries=6, depth=1, grid=64)
    checkpoint.save(tmp_path / "flux.safetensors", "adapter", network, network.config)
    with pytest.raises(
        CheckpointError, match="adapter: expected one for the VAE's sd latents, got one for flux latents; pass --adapter"
    ):
        open_models(
            RestoreSettings(detector="starter"),
            device="cpu",
            vae=random_weights["vae"],
            adapter=tmp_path / "flux.safetensors",
            prior=random_weights["prior"],
            detector_weights=random_weights["detector"],
        )


@pytest.mark.parametrize(
    ("name", "value"), [("fidelity", 1.01), ("strength", -0.1), ("threshold", 0), ("batch-size", 0), ("feather", 0.51)]
)
def test_an_option_out_of_range_is_wrong_usage(name: str, value: float, tmp_path: Path, models: None, capfd: Any) -> None:
    rgb().save(tmp_path / "a.png")
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", f"--{name}={value}") == 2
    assert f"lafr: {name.replace('-', '_')}: expected " in capfd.readouterr().err


def test_a_photo_too_large_for_its_bytes_is_refused(
    tmp_path: Path, models: None, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(photos, "MAX_PIXELS", 1000)
    photos.write(tmp_path / "a.png", Photo(torch.rand(3, 40, 40)))
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out") == 1
    assert "a.png: too large (40x40 pixels)" in capfd.readouterr().err
