"""Masks of what a photo keeps: on the command line and in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from numpy.typing import NDArray
from PIL import Image

import lafr_core
from lafr_core.app import cli
from lafr_core.app.keep import KeepMasks
from lafr_core.errors import InputError
from lafr_core.images import photos
from lafr_core.images.keep import keep_mask
from lafr_core.images.photos import Photo

WIDTH, HEIGHT = 100, 120


def photo(path: Path) -> NDArray[np.uint8]:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def left_half(path: Path, width: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", (width, HEIGHT), 0)
    mask.paste(255, (0, 0, 50, HEIGHT))
    mask.save(path)
    return path


def run(*given: object) -> int:
    return cli.main([str(argument) for argument in given])


def pixels_of(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_mask_is_the_brightness_of_its_picture_at_the_enlarged_size() -> None:
    colours = torch.tensor([[[0.0, 0.3, 1.0]], [[0.0, 0.6, 1.0]], [[0.0, 0.9, 1.0]]])  # (3, 1, 3)
    kept = keep_mask(Photo(colours), Photo(torch.zeros(3, 1, 3)), 2)
    assert torch.allclose(kept, torch.tensor([0.0, 0.0, 0.6, 0.6, 1.0, 1.0]).expand(1, 1, 2, 6))
    with pytest.raises(InputError, match="expected the photo's 3x2 pixels, got 3x1"):
        keep_mask(Photo(colours), Photo(torch.zeros(3, 2, 3)))


def test_what_a_mask_keeps_is_bit_identical(tmp_path: Path, opened: list[Any]) -> None:
    source = photo(tmp_path / "a.png")
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "whole") == 0
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "half", "--keep-mask", left_half(tmp_path / "m.png")) == 0
    whole, half = pixels_of(tmp_path / "whole/a.png"), pixels_of(tmp_path / "half/a.png")
    assert (whole[:, :50] != source[:, :50]).any(), "the stand-in face must reach into the left half"
    assert np.array_equal(half[:, :50], source[:, :50])
    assert np.array_equal(half[:, 50:], whole[:, 50:]) and (half[:, 50:] != source[:, 50:]).any()


def test_a_folder_of_masks_goes_by_name_and_the_others_are_restored_whole(tmp_path: Path, opened: list[Any]) -> None:
    source = photo(tmp_path / "in/a.png")
    photo(tmp_path / "in/b.png")
    left_half(tmp_path / "masks/a.gif")
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "--keep-mask", tmp_path / "masks") == 0
    assert np.array_equal(pixels_of(tmp_path / "out/a.png")[:, :50], source[:, :50])
    assert (pixels_of(tmp_path / "out/b.png")[:, :50] != source[:, :50]).any()


def test_another_mask_makes_a_result_anew(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "a.png")
    given = ("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--keep-mask", left_half(tmp_path / "m.png"), "--resume")
    assert run(*given) == 0
    assert run(*given) == 0 and "done already" in capfd.readouterr().err
    Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / "m.png")
    assert run(*given) == 0 and "done already" not in capfd.readouterr().err


def test_a_mask_that_does_not_fit_is_one_sentence(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "a.png")
    left_half(tmp_path / "m.png", width=99)
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--keep-mask", tmp_path / "m.png") == 1
    assert "m.png: keep mask: expected the photo's 100x120 pixels, got 99x120" in capfd.readouterr().err
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--keep-mask", tmp_path / "none") == 2
    assert "found nothing at" in capfd.readouterr().err
    assert run("restore", tmp_path / "a.png", "-o", tmp_path / "out", "--aligned", "--keep-mask", tmp_path / "m.png") == 2


def test_python_takes_any_picture_as_the_mask(tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, :50] = 255
    kept = lafr_core.restore(source, models=parts([face_at(20, 30, 60)]), keep=mask, upscale=2)
    plain = lafr_core.restore(source, models=parts([face_at(20, 30, 60)]), upscale=2)
    assert kept.pixels.shape[-2:] == (2 * HEIGHT, 2 * WIDTH) and (kept.pixels != plain.pixels)[..., :100].any()
    assert torch.equal(kept.pixels[..., 100:], plain.pixels[..., 100:])


def test_of_two_masks_with_a_photos_name_the_first_counts_and_folders_are_none(tmp_path: Path) -> None:
    for name in ("a.webp", "a.png", "b.png"):
        left_half(tmp_path / name)
    (tmp_path / "c.png").mkdir()
    assert KeepMasks(tmp_path, photos.read).named == {"a": tmp_path / "a.png", "b": tmp_path / "b.png"}
