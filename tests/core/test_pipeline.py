"""The order of the stages and its no-op invariants, with stand-in models whose effect is known exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lafr_core.errors import Cancelled, InputError, SettingsError
from lafr_core.geometry import FFHQ_TEMPLATE, box_of
from lafr_core.latent.spec import family
from lafr_core.pipeline import restore_crops, restore_faces
from lafr_core.settings import RestoreSettings
from lafr_core.types import Alignment, Face, Models, Point

SD = family("sd")


def face_at(x: float, y: float, size: float, score: float = 0.9) -> Face:
    """A frontal face whose FFHQ crop would be ``size`` pixels wide with its corner at (x, y)."""
    points: Any = tuple((x + px * size / 512, y + py * size / 512) for px, py in FFHQ_TEMPLATE)
    return Face(box=box_of(points), landmarks=points, score=score)


class FixedDetector:
    """Finds the same faces in every picture."""

    name = "fixed"

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        return [face for face in self.faces if face.score >= threshold]


class ShiftVae:
    """Exactly invertible: eight by eight pixels averaged into three channels, the fourth empty; counts its batches."""

    spec = SD

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([small, torch.zeros_like(small[:, :1])], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8, mode="nearest").clamp(0, 1)


class Scale:
    """An aligner and a prior that multiply: their order and the fidelity they get can be read off the result."""

    spec = SD

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, latents: Tensor, fidelity: float | None = None) -> Any:
        scaled = latents * self.factor
        return scaled if fidelity is None else Alignment(scaled * (1 + fidelity), torch.ones_like(latents[:, :1]))


class MeanEmbedder:
    name = "mean"

    def __call__(self, crops: Tensor) -> Tensor:
        return torch.nn.functional.normalize(crops.mean((2, 3)), dim=1)


SETTINGS = RestoreSettings(color=0.0, fidelity=0.0, feather=0.0, rotate=False, detail=1.0)


def parts(*faces: Face, **more: Any) -> Models:
    return Models(detector=FixedDetector(*faces), vae=ShiftVae(), **more)


def photo(height: int = 90, width: int = 140) -> Tensor:
    return torch.rand(1, 3, height, width) * 0.4 + 0.1


def test_no_face_returns_the_photo_bit_for_bit() -> None:
    images = photo()
    result = restore_faces(images, parts(), SETTINGS)
    assert torch.equal(result.images, images) and result.faces == () and not result.masks.any()
    assert result.images.data_ptr() != images.data_ptr()


def test_strength_zero_returns_the_photo_bit_for_bit() -> None:
    images = photo()
    result = restore_faces(images, parts(face_at(20, 10, 60)), replace(SETTINGS, strength=0.0))
    assert torch.equal(result.images, images) and len(result.faces) == 1 and not result.masks.any()


def test_only_pixels_under_the_mask_change() -> None:
    images = photo()
    before = images.clone()
    result = restore_faces(images, parts(face_at(20, 10, 60), prior=Scale(2.0)), SETTINGS)
    outside = result.masks.expand_as(images) == 0
    assert torch.equal(result.images[outside], images[outside])
    assert outside.any() and (result.images - images).abs().max() > 0.1
    assert torch.equal(images, before)


def test_the_stages_run_in_order_with_the_chosen_fidelity() -> None:
    images = torch.full((1, 3, 80, 80), 0.1)
    run = parts(face_at(10, 10, 60), aligner=Scale(2.0), prior=Scale(1.5))
    result = restore_faces(images, run, replace(SETTINGS, fidelity=0.5))
    middle = result.images[0, :, 40, 40]
    torch.testing.assert_close(middle, torch.full((3,), 0.1 * 2.0 * 1.5 * 1.5), rtol=0, atol=1e-5)


def test_detail_is_how_far_the_latents_go_to_the_prior() -> None:
    images = torch.full((1, 3, 80, 80), 0.1)
    asked: list[int] = []

    class Counting(Scale):
        def __call__(self, latents: Tensor, fidelity: float | None = None) -> Any:
            asked.append(len(latents))
            return super().__call__(latents)

    def middle(detail: float, **finish: Any) -> float:
        run = parts(face_at(10, 10, 60), aligner=Scale(2.0), **finish)
        return float(restore_faces(images, run, replace(SETTINGS, detail=detail)).images[0, 0, 40, 40])

    prior = Counting(1.5)
    assert [middle(d, prior=prior) for d in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.25, 0.3], abs=1e-5)
    assert len(asked) == 2  # at 0 it is not even asked
    sampler = lambda latents, crops: latents * 1.5
    assert [middle(d, sampler=sampler) for d in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.25, 0.3], abs=1e-5)
    assert middle(0.5) == pytest.approx(0.2, abs=1e-5)  # nothing to blend with


def test_two_faces_keep_what_belongs_to_them() -> None:
    images = torch.zeros(1, 3, 80, 160)
    images[..., :80], images[..., 80:] = 0.1, 0.3  # dark face on the left, light one on the right
    result = restore_faces(
        images, parts(face_at(90, 10, 60), face_at(10, 10, 60), prior=Scale(2.0)), replace(SETTINGS, sort="x")
    )
    assert [round(face.box[0]) for face in result.faces] == sorted(round(face.box[0]) for face in result.faces)
    torch.testing.assert_close(result.images[0, 0, 40, [40, 120]], torch.tensor([0.2, 0.6]), rtol=0, atol=1e-5)


def test_faces_of_a_batch_go_back_to_their_own_photo() -> None:
    images = torch.full((3, 3, 80, 80), 0.1)
    images[1], images[2] = 0.2, 0.3
    result = restore_faces(images, parts(face_at(10, 10, 60), prior=Scale(2.0)), SETTINGS)
    assert [face.image_index for face in result.faces] == [0, 1, 2]
    torch.testing.assert_close(result.images[:, 0, 40, 40], torch.tensor([0.2, 0.4, 0.6]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_faces_at_a_time_bound_the_batch_and_not_the_result(size: int) -> None:
    images = photo(90, 260)
    faces = [face_at(10 + 80 * i, 10, 60, score=0.9 - 0.1 * i) for i in range(3)]
    reference = restore_faces(images, parts(*faces, prior=Scale(2.0)), replace(SETTINGS, batch_size=64))
    run = parts(*faces, prior=Scale(2.0))
    result = restore_faces(images, run, replace(SETTINGS, batch_size=size))
    assert max(run.vae.batches) == size and sum(run.vae.batches) == 3  # type: ignore[attr-defined]
    torch.testing.assert_close(result.images, reference.images, rtol=0, atol=1e-6)


def test_identity_is_the_cosine_of_input_and_result() -> None:
    images = torch.zeros(1, 3, 80, 80)
    images[:, 0] = 0.4
    same = restore_faces(images, parts(face_at(10, 10, 60), embedder=MeanEmbedder()), SETTINGS)
    assert same.faces[0].change == pytest.approx(1.0, abs=1e-6)
    none = restore_faces(images, parts(face_at(10, 10, 60)), SETTINGS)
    assert none.faces[0].change is None


def test_progress_counts_faces_and_can_cancel() -> None:
    seen: list[tuple[str, int, int]] = []
    faces = [face_at(10, 10, 60), face_at(90, 10, 60)]
    restore_faces(photo(90, 170), parts(*faces), replace(SETTINGS, batch_size=1), progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "restore"] == [("restore", 1, 2), ("restore", 2, 2)]

    def cancel(stage: str, done: int, total: int) -> None:
        if stage == "restore":
            raise Cancelled("stopped by the test")

    with pytest.raises(Cancelled):
        restore_faces(photo(90, 170), parts(*faces), replace(SETTINGS, batch_size=1), progress=cancel)


def test_a_face_over_the_border_is_restored_where_it_is_visible() -> None:
    images = torch.full((1, 3, 60, 60), 0.2)
    result = restore_faces(images, parts(face_at(-25, -20, 60), prior=Scale(2.0)), SETTINGS)
    torch.testing.assert_close(result.images[0, 0, 10, 5], torch.tensor(0.4), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"expected \(B, 3, H, W\) RGB with at least one pixel, got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), r"got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide 8-bit pixels by 255"),
        (torch.full((1, 3, 8, 8), float("nan")), "contain NaN"),
    ],
)
def test_wrong_images_are_refused_in_one_sentence(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        restore_faces(images, parts(), SETTINGS)


def test_a_parse_mask_without_a_parser_is_refused_before_any_work() -> None:
    run = parts(face_at(10, 10, 60))
    with pytest.raises(SettingsError, match="expected facexlib's face parser, got none"):
        restore_faces(photo(), run, replace(SETTINGS, mask="parse"))
    assert run.vae.batches == []  # type: ignore[attr-defined]


def test_crops_and_faces_must_pair() -> None:
    points: tuple[Point, ...] = FFHQ_TEMPLATE
    with pytest.raises(InputError, match="got 2 faces and 1 crops"):
        restore_crops(torch.zeros(1, 3, 512, 512), [face_at(0, 0, 512)] * len(points[:2]), parts(), SETTINGS)
