"""--upscale: the photo by Lanczos, the faces pasted at the enlarged size with all that was restored."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import BlockVae, FixedDetector, face_at, parts
from PIL import Image
from torch import Tensor

import lafr_core
from lafr_core.app import arguments, cli
from lafr_core.errors import CheckpointError, InputError, MissingPackageError
from lafr_core.faces.crop import crop, enlarge, place
from lafr_core.geometry import enlarging, transform
from lafr_core.images import photos, upscaler
from lafr_core.images.enlarge import enlarge_planes, enlarged
from lafr_core.images.metrics import psnr
from lafr_core.images.photos import Photo
from lafr_core.pipeline import restore_faces, restore_stored
from lafr_core.settings import RestoreSettings
from lafr_core.types import Models

FACE = face_at(21, 34, 40)
PLAIN = RestoreSettings(color=0.0, grain=0.0, feather=0.1)


def noise(height: int = 120, width: int = 100, channels: int = 3, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def ramp(height: int = 120, width: int = 100) -> Tensor:
    """(3, H, W): rises to the right, to the bottom, and both, each differently."""
    x, y = torch.arange(width) / width, torch.arange(height)[:, None] / height
    return torch.stack([x.expand(height, -1), (1 - 0.7 * y).expand(-1, width), 0.3 * x + 0.5 * y])


class Keeping(BlockVae):
    """Gives back the crops that it was shown."""

    def encode(self, pixels: Tensor) -> Tensor:
        self.seen = pixels
        return super().encode(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        return self.seen


class Stripes(BlockVae):
    """Restores every face to stripes of 6 crop pixels: finer than a small face's own pixels, coarser than those of 4 times."""

    def decode(self, latents: Tensor) -> Tensor:
        stripes = ((torch.arange(512) // 6) % 2).float()
        return stripes.expand(len(latents), 3, 512, 512).clone()


def models(vae: Any = None, faces: Any = (FACE,)) -> Models:
    return Models(FixedDetector(faces), vae or BlockVae())


# --- the enlargement ---


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_eight_bits_are_pillows_lanczos_to_the_last_bit(factor: int, channels: int) -> None:
    array = noise(13, 21, channels)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    larger = photos.to_array(enlarged(photos.from_pil(image), factor))
    assert larger.shape == (13 * factor, 21 * factor, channels) and larger.dtype == np.uint8
    size = (21 * factor, 13 * factor)
    bands = [np.asarray(Image.fromarray(array[..., c]).resize(size, Image.Resampling.LANCZOS)) for c in range(channels)]
    assert np.array_equal(larger, np.stack(bands, -1))


def test_sixteen_bits_are_kept_whole() -> None:
    values = torch.from_numpy(np.random.default_rng(2).integers(0, 65536, (3, 9, 14)).astype(np.uint16))
    photo = Photo(values, alpha=values[:1], bits=16)  # type: ignore[arg-type]
    larger = enlarged(photo, 2)
    assert larger.stored.dtype == torch.uint16 and larger.stored.shape == (3, 18, 28) and larger.bits == 16
    exact = enlarge_planes(values.float() / 65535, 2)
    assert (larger.pixels - exact).abs().max() <= 0.51 / 65535
    assert torch.equal(larger.stored_alpha, larger.stored[:1])  # type: ignore[arg-type]
    low = larger.stored.numpy() & 255
    assert len(np.unique(low)) > 100  # no 8 bits in between
    flat = torch.full((1, 4, 5), 12345, dtype=torch.uint16)
    assert (enlarge_planes(flat, 4).numpy() == 12345).all()


@pytest.mark.parametrize("factor", [2, 4])
def test_a_point_moves_as_the_geometry_says(factor: int) -> None:
    picture = torch.zeros(1, 15, 23)
    picture[0, 6, 9] = 1  # x = 9, y = 6
    larger = enlarge_planes(picture, factor)[0]
    ((x, y),) = transform(enlarging(factor), [(9, 6)])
    weights = larger / larger.sum()
    assert abs(float((weights.sum(0) * torch.arange(23 * factor)).sum()) - x) < 1e-3
    assert abs(float((weights.sum(1) * torch.arange(15 * factor)).sum()) - y) < 1e-3
    assert (x, y) == (9.5 * factor - 0.5, 6.5 * factor - 0.5)


def test_what_cannot_be_enlarged_is_refused() -> None:
    photo = Photo(torch.zeros(3, 30, 20, dtype=torch.uint8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected 1, 2 or 4, got 3"):
        enlarged(photo, 3)
    with pytest.raises(InputError, match=r"80x120 pixels, the limit is .*--max-pixels"):
        enlarged(photo, 4, max_pixels=9599)
    assert enlarged(photo, 4, max_pixels=9600).stored.shape == (3, 120, 80) and enlarged(photo, 1) is photo


# --- the faces ---


@pytest.mark.parametrize("factor", [2, 4])
def test_an_enlarged_face_has_the_same_crop(factor: int) -> None:
    face, picture = place(FACE), ramp()
    larger = enlarge(face, factor)
    assert larger.width == factor * face.width and larger.score == face.score and enlarge(face, 1) is face
    difference = crop(enlarge_planes(picture, factor), larger) - crop(picture, face)
    assert difference[:, 100:400, 100:400].abs().max() < 1e-3  # a slip of half a pixel would be 0.005
    assert place(replace(larger, matrix=None)).matrix == tuple(
        pytest.approx(row, abs=1e-6)
        for row in larger.matrix  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("factor", [2, 4])
def test_crops_go_back_to_where_they_were_cut_out(factor: int) -> None:
    picture = ramp()
    result = lafr_core.restore(picture, PLAIN, models=models(Keeping()), upscale=factor)
    larger = enlarge_planes(picture, factor)
    assert result.pixels.shape == larger.shape and (result.mask > 0.9).sum() > 1000
    assert (result.pixels - larger).abs().max() < 1e-3


@pytest.mark.parametrize("factor", [2, 4])
def test_outside_the_masks_there_is_the_enlargement_alone(factor: int) -> None:
    photo = photos.from_pil(Image.fromarray(noise()))
    larger = enlarged(photo, factor)
    result = lafr_core.restore(photo, models=models(), upscale=factor)
    outside = (result.mask == 0).expand(3, -1, -1)
    assert outside.any() and torch.equal(result.pixels[outside], larger.pixels[outside])
    assert not torch.equal(result.pixels, larger.pixels) and result.image.size == (100 * factor, 120 * factor)
    assert result.faces[0].box == FACE.box  # told in pixels of the picture that was given
    stored = restore_stored(photo.stored, models(), RestoreSettings(), enlarged=larger.stored).images[0]
    assert stored.dtype == torch.uint8 and torch.equal(stored[outside], larger.stored[outside])
    assert torch.equal(stored, (result.pixels * 255).round().to(torch.uint8))
    for other in (lafr_core.restore(photo, models=models(), upscale=factor, strength=0.0),
                  lafr_core.restore(photo, models=models(faces=()), upscale=factor)):  # fmt: skip
        assert torch.equal(other.pixels, larger.pixels) and not other.mask.any()


def test_once_is_as_without() -> None:
    photo = photos.from_pil(Image.fromarray(noise(channels=4)))
    one = lafr_core.restore(photo, models=models(), upscale=1)
    assert torch.equal(one.pixels, lafr_core.restore(photo, models=models()).pixels)
    assert lafr_core.restore(photo, models=models(), upscale=2).image.mode == "RGBA"


def test_a_small_face_keeps_what_was_restored() -> None:
    picture = ramp()
    sharp = lafr_core.restore(picture, PLAIN, models=models(Stripes()), upscale=4)
    soft = enlarge_planes(lafr_core.restore(picture, PLAIN, models=models(Stripes())).pixels, 4)
    inside = (sharp.mask[0, :, 1:] > 0.99).expand(3, -1, -1)

    def contrast(pixels: Tensor) -> float:
        return float((pixels[..., 1:] - pixels[..., :-1]).abs()[inside].mean())

    assert contrast(sharp.pixels) > 3 * contrast(soft)


def test_a_real_small_face_is_sharper_than_the_restored_photo_enlarged(starter_weights: Path) -> None:
    from lafr_core.store import assets

    with Image.open(assets.sample("portrait")) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((140, 140), Image.Resampling.LANCZOS)
    chosen = lafr_core.open_models(device="cpu")
    result = lafr_core.restore(picture, models=chosen, upscale=4)
    assert len(result.faces) == 1 and result.faces[0].size < 100
    soft = enlarge_planes(lafr_core.restore(picture, models=chosen).pixels, 4)
    inside = (result.mask > 0.9).expand(3, -1, -1)[..., 1:]

    def contrast(pixels: Tensor) -> float:
        return float((pixels[..., 1:] - pixels[..., :-1]).square()[inside].mean())

    assert contrast(result.pixels) > 1.15 * contrast(soft)
    assert psnr(result.pixels[None], soft[None]) > 22  # the same face, in the same place


def test_another_picture_is_no_enlargement() -> None:
    images = torch.zeros(1, 3, 20, 30)
    for shape in ((1, 3, 40, 61), (1, 3, 40, 90), (1, 3, 10, 15), (2, 3, 40, 60)):
        with pytest.raises(InputError, match="enlarged: expected"):
            restore_faces(images, models(), PLAIN, enlarged=torch.zeros(shape))
    with pytest.raises(InputError, match="enlarged: expected"):
        restore_faces(images, models(), PLAIN, enlarged=torch.zeros(1, 3, 40, 60).half())
    keep = torch.zeros(1, 1, 40, 60)
    assert restore_faces(images, models(), PLAIN, enlarged=torch.zeros(1, 3, 40, 60), keep=keep).masks.shape == (1, 1, 40, 60)


# --- the command line ---


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(arguments, "open_models", lambda settings, **_: parts([FACE]))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise()).save(tmp_path / "in" / "a.png")
    Image.fromarray(noise(30, 20)).save(tmp_path / "in" / "b.jpg")  # too small to hold the face
    report = tmp_path / "r.json"

    def run(*more: object) -> int:
        given = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--report", report, "--resume", *more]
        return cli.main([str(argument) for argument in given])

    return run


def test_the_command_enlarges_and_remembers(tmp_path: Path, command: Any, capfd: Any) -> None:
    assert command() == 0
    once = (tmp_path / "out" / "a.png").read_bytes()
    assert command("--upscale", 1) == 0 and "2 were done already" in capfd.readouterr().err
    assert command("--upscale", 2) == 0 and "done already" not in capfd.readouterr().err
    with Image.open(tmp_path / "out" / "a.png") as image, Image.open(tmp_path / "out" / "b.png") as other:
        assert image.size == (200, 240) and other.size == (40, 60) and "&quot;upscale&quot;: 2" in str(image.info)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["upscale"] == 2 and [len(entry["faces"]) for entry in report["inputs"]] == [1, 0]
    assert report["inputs"][0]["faces"][0]["box"] == list(FACE.box)
    assert command("--upscale", 2) == 0 and "2 were done already" in capfd.readouterr().err
    assert command() == 0 and (tmp_path / "out" / "a.png").read_bytes() == once


def test_a_photo_without_a_face_is_enlarged_too_in_its_own_format(tmp_path: Path, command: Any) -> None:
    assert command("--upscale", 4, "--format", "same") == 0
    with Image.open(tmp_path / "out" / "b.jpg") as image:
        assert image.size == (80, 120)


def test_what_upscale_does_not_go_with_is_refused(tmp_path: Path, command: Any, capfd: Any) -> None:
    assert command("--upscale", 2, "--aligned") == 2
    assert cli.main(["restore", str(tmp_path / "c.mp4"), "-o", str(tmp_path / "o"), "--upscale", "2"]) == 2
    said = capfd.readouterr().err
    assert "face crops keep their size" in said and "expected photos with --upscale, got a clip" in said
    assert command("--upscale", 4, "--max-pixels", 100000) == 1  # 400x480 are more
    said = capfd.readouterr().err
    assert "a.png: upscale 4: the result would have 400x480 pixels" in said and "1 without a face" in said


# --- --upscaler: a network of the user's ---


def write_upscaler(path: Path, scale: int = 2, channels: int = 3) -> Path:
    """A tiny network of an architecture that spandrel knows, with random weights."""
    compact = pytest.importorskip("spandrel.architectures.Compact", reason="spandrel (lafr[upscale]) is not installed")
    torch.manual_seed(5)
    network = compact.Compact(num_in_ch=channels, num_out_ch=channels, num_feat=4, num_conv=1, upscale=scale)
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(network.state_dict(), str(path))
    else:
        torch.save({"params_ema": network.state_dict()}, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_tiles_of_an_upscaler_fit_together(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = upscaler.open_upscaler(write_upscaler(tmp_path / name), torch.device("cpu"))
    planes = torch.from_numpy(noise(70, 50).transpose(2, 0, 1).copy())
    whole = opened(planes, 2)
    assert whole.dtype == torch.uint8 and whole.shape == (3, 140, 100)
    assert not torch.equal(whole, enlarge_planes(planes, 2))
    monkeypatch.setattr(upscaler, "TILE", 16)
    monkeypatch.setattr(upscaler, "MARGIN", 8)
    assert torch.equal(opened(planes, 2), whole)  # the network's view is 7 pixels wide
    monkeypatch.setattr(upscaler, "MARGIN", 0)
    assert not torch.equal(opened(planes, 2), whole)


@pytest.mark.parametrize(("scale", "factor"), [(2, 4), (4, 2), (2, 2)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("planes", [1, 3])
def test_any_scale_and_channels_give_what_is_asked_for(
    scale: int, factor: int, channels: int, planes: int, tmp_path: Path
) -> None:
    opened = upscaler.open_upscaler(write_upscaler(tmp_path / "a.safetensors", scale, channels), torch.device("cpu"))
    deep = (torch.rand(planes, 9, 7) * 65535).round().to(torch.int32).to(torch.uint16)
    made = opened(deep, factor)
    assert made.dtype == torch.uint16 and made.shape == (planes, 9 * factor, 7 * factor)
    if (planes, channels, scale) == (3, 1, factor):  # a network of one channel sees each colour for itself
        one = opened(deep[1:2], factor)
        assert torch.equal(made[1:2], one)


def test_an_upscaler_enlarges_the_photo_and_faces_are_pasted_into_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda *_, **__: parts([]))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    file = write_upscaler(tmp_path / "net.safetensors")
    Image.fromarray(noise()).save(tmp_path / "a.png")
    given = ["restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main([*given, "--upscaler", str(file)]) == 2  # how many times?
    assert cli.main([*given, "--upscale", "2", "--upscaler", str(file)]) == 0
    made = photos.read(tmp_path / "out" / "a.png").stored
    wanted = upscaler.open_upscaler(file, torch.device("cpu"))(photos.read(tmp_path / "a.png").stored, 2)
    assert torch.equal(made, wanted)
    write_upscaler(tmp_path / "net.safetensors", 4)  # another network: done again
    assert cli.main([*given, "--upscale", "2", "--upscaler", str(file), "--resume"]) == 0
    assert not torch.equal(photos.read(tmp_path / "out" / "a.png").stored, made)


class Trap:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("/tmp/lafr-upscaler-ran-code"),))


def test_files_that_are_no_upscalers_are_sentences_and_never_run(tmp_path: Path) -> None:
    pytest.importorskip("spandrel", reason="spandrel (lafr[upscale]) is not installed")
    torch.save({"params": Trap()}, tmp_path / "trap.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    for path in sorted(tmp_path.iterdir()):
        told = "'s tensors, got other things; choose another" if path.name == "trap.pth" else " that spandrel knows"
        with pytest.raises(CheckpointError, match=f"{path.name}: expected an upscaler{told}"):
            upscaler.open_upscaler(path, torch.device("cpu"))
    assert not Path("/tmp/lafr-upscaler-ran-code").exists()


def test_without_spandrel_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(MissingPackageError, match=r'pip install "lafr\[upscale\]"'):
        upscaler.open_upscaler(tmp_path / "a.pth", torch.device("cpu"))
