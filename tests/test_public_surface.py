"""The dozen names that people build on: an inventory, what they take, and what they refuse."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import face_at, parts
from PIL import Image

import lafr_core
from lafr_core.errors import InputError, SettingsError
from lafr_core.types import Models

ROOT = Path(__file__).parents[1]

INVENTORY = {
    "restore": (
        "(picture, settings=None, *, models=None, device='auto', boxes=None, reference=None, reference_weight=0.75, "
        "keep=None, upscale=1, progress=ignore_progress, **options)"
    ),
    "detect": "(picture, settings=None, *, models=None, device='auto', **options)",
    "open_models": (
        "(settings=None, *, device='auto', vae=None, adapter=None, prior=None, checkpoint=None, lora=None, mode='auto', "
        "steps=None, denoise=None, detector_weights=None, embedder=None, folders=())"
    ),
    "Restoration": ("photo", "faces", "mask", "notes"),
    "RestoreSettings": (
        "detector", "threshold", "min_face", "max_face", "sort", "top_k", "faces", "rotate", "detect_side", "small_faces",
        "fidelity", "strength", "mask", "feather", "color", "grain", "identity_warning", "batch_size", "detail",
    ),
    "Face": ("box", "landmarks", "score", "matrix", "image_index", "change", "likeness", "trust", "person"),
    "Photo": ("pixels", "alpha", "icc", "exif", "bits", "gray", "notes", "kept"),
    "read": "(path, *, salvage=False, max_pixels=None)",
    "write": "(path, photo, kind=None, *, quality=95, called=None, overwrite=False)",
    "LafrError": (),
}  # fmt: skip
"""Public name -> its parameters or fields. A change here is a change for users: it goes into CHANGELOG.md too."""


def described(value: Any) -> Any:
    """What the inventory says of a public name."""
    if inspect.isclass(value):
        return tuple(f.name for f in fields(value)) if hasattr(value, "__dataclass_fields__") else ()
    words = []
    star = False
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        default = parameter.default
        shown = getattr(default, "__name__", repr(default))
        prefix = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        words.append(f"{prefix}{parameter.name}" + ("" if default is parameter.empty else f"={shown}"))
    return f"({', '.join(words)})"


def test_the_surface_is_the_inventory() -> None:
    assert list(INVENTORY) == sorted(INVENTORY, key=list(INVENTORY).index) and set(lafr_core.__all__) == set(INVENTORY)
    assert {name: described(getattr(lafr_core, name)) for name in INVENTORY} == INVENTORY
    assert set(lafr_core.__all__) <= set(dir(lafr_core))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="no attribute 'restor'; its public names: restore, detect"):
        _ = lafr_core.restor  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, lafr_core; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules), 'loaded'; lafr_core.RestoreSettings"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=100)


# --- one call: every kind of picture, one answer ---


def models_with_faces(*sides: float) -> Models:
    """Stand-ins that find one face of each side at (4, 6)."""
    return parts([face_at(4, 6, side) for side in sides])


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    """(40, 56, 3) uint8, another value at every place."""
    return np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_every_kind_of_picture_gives_the_same(pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    models = models_with_faces(30)
    kinds = (pixels, Image.fromarray(pixels), tensor, tensor[None], tmp_path / "a.png", str(tmp_path / "a.png"))
    results = [lafr_core.restore(kind, models=models, strength=0.5) for kind in kinds]
    stored, floats = [results[i] for i in (0, 1, 4, 5)], results[2:4]
    assert all(torch.equal(result.pixels, results[0].pixels) for result in stored)  # they keep their 8 bits
    assert all(float((result.pixels - results[0].pixels).abs().max()) <= 0.5001 / 255 for result in floats)
    assert torch.equal(floats[0].pixels, floats[1].pixels)
    first = results[0]
    assert len(first.faces) == 1 and first.mask.shape == (1, 40, 56) and not torch.equal(first.pixels, tensor)
    outside = (first.mask == 0).expand(3, -1, -1)
    assert outside.any() and torch.equal(first.pixels[outside], tensor[outside])
    assert first.image.size == (56, 40) and first.image.mode == "RGB"


def test_no_face_is_a_result(pixels: Any) -> None:
    result = lafr_core.restore(pixels, models=models_with_faces())
    assert result.faces == () and np.array_equal(np.asarray(result.image), pixels)
    assert lafr_core.detect(pixels, models=models_with_faces()) == ()


def test_alpha_and_gray_come_back() -> None:
    alpha = np.random.default_rng(5).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    assert lafr_core.restore(alpha, models=models_with_faces()).image.mode == "RGBA"
    gray = alpha[..., 0]
    result = lafr_core.restore(gray, models=models_with_faces())
    assert result.image.mode == "L" and np.array_equal(np.asarray(result.image), gray)


def test_faces_that_the_settings_leave_out_are_told_of(pixels: Any) -> None:
    result = lafr_core.restore(pixels, models=models_with_faces(30), faces="9")
    assert result.faces == () and result.notes == ("1 found, 0 selected (Which faces)",)


def test_the_result_is_a_copy() -> None:
    tensor = torch.rand(3, 20, 30)
    before = tensor.clone()
    result = lafr_core.restore(tensor, models=models_with_faces())
    tensor.zero_()
    assert torch.equal(result.pixels, before)


def test_a_reference_may_be_named_by_text(pixels: Any, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    models = models_with_faces(30)
    kinds = (tmp_path / "a.png", str(tmp_path / "a.png"), [str(tmp_path / "a.png")], pixels)
    results = [lafr_core.restore(pixels, models=models, reference=kind) for kind in kinds]
    assert all(result.faces[0].person == "reference" for result in results)
    assert all(torch.equal(result.pixels, results[0].pixels) for result in results)


def test_detected_faces_are_placed(pixels: Any) -> None:
    (face,) = lafr_core.detect(pixels, models=models_with_faces(30))
    assert face.matrix is not None and face.image_index == 0


def test_saving_replaces_nothing(pixels: Any, tmp_path: Path) -> None:
    result = lafr_core.restore(pixels, models=models_with_faces())
    path = result.save(tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(path)), pixels)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"out\.png: a file is there already; choose another name or pass overwrite=True"):
        result.save(path)
    assert path.read_bytes() == before
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="a file is there already"):
        result.save(tmp_path / "dangling.png")
    lafr_core.restore(255 - pixels, models=models_with_faces()).save(path, overwrite=True)
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.rand(3, 8, 8) * 255, r"expected values in \[0, 1\], got .* divide 0\.\.255 by 255"),
        (torch.rand(3, 8, 8) * 2 - 1, r"map -1\.\.1 with x \* 0\.5 \+ 0\.5"),
        (torch.full((3, 8, 8), float("nan")), "NaN or infinite"),
        (torch.zeros(8, 9, 3), r"expected \(3, H, W\).*got \(8, 9, 3\); move the channels to the front"),
        (torch.zeros(2, 3, 8, 8), "restore the pictures of a batch one by one"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "got torch.uint8; divide 8-bit pixels by 255"),
        (np.zeros((8, 9, 3), np.float32), r"expected a uint8 array, got float32; .*permute\(2, 0, 1\)"),
        (np.zeros((3, 8, 9), np.uint8), r"got \(3, 8, 9\); move the channels to the end: array.transpose\(1, 2, 0\)"),
        (np.zeros((0, 9, 3), np.uint8), r"expected \(H, W\)"),
        (np.zeros((8, 9, 2), np.uint8), r"expected \(H, W\), \(H, W, 3\) or \(H, W, 4\), got \(8, 9, 2\)$"),
        (lafr_core.Photo(torch.full((3, 8, 8), 1.5)), r"expected values in \[0, 1\]"),  # type: ignore[arg-type]
        (7, "expected a path, Pillow image, numpy array, tensor or Photo, got int"),
    ],
)
def test_the_wrong_picture_is_refused_with_its_remedy(picture: Any, message: str) -> None:
    for call in (lafr_core.restore, lafr_core.detect):
        with pytest.raises(InputError, match=message):
            call(picture, models=models_with_faces())


def test_options_are_settings() -> None:
    with pytest.raises(SettingsError, match="unknown setting 'fidelty'; did you mean 'fidelity'"):
        lafr_core.restore(np.zeros((8, 8, 3), np.uint8), models=models_with_faces(), fidelty=1)
    with pytest.raises(SettingsError, match="unknown setting 'fidelty'; did you mean 'fidelity'"):
        lafr_core.RestoreSettings(fidelty=1)  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match="got both"):
        lafr_core.restore(np.zeros((8, 8, 3), np.uint8), lafr_core.RestoreSettings(), models=models_with_faces(), fidelity=1)
