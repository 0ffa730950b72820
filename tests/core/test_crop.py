"""Crops: where every pixel lands, and that fine texture does not alias."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lafr_core.errors import InputError
from lafr_core.faces.crop import crop, crop_faces, place, template_crops
from lafr_core.faces.resample import resample
from lafr_core.geometry import ARCFACE_TEMPLATE, CROP_SIZE, FFHQ_TEMPLATE, similarity, transform
from lafr_core.types import Face, Matrix


def face_with(matrix: Matrix | None, image_index: int = 0) -> Face:
    return Face((0.0, 0.0, 1.0, 1.0), FFHQ_TEMPLATE, 1.0, matrix, image_index)


def similar(scale: float, degrees: float, x: float, y: float) -> Matrix:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return ((c, -s, x), (s, c, y))


def around(scale: float, degrees: float, centre: tuple[float, float]) -> Matrix:
    """The similarity that puts ``centre`` of the photo into the middle of the crop."""
    (a, b, _), (d, e, _) = similar(scale, degrees, 0, 0)
    x, y = centre
    return ((a, b, 255.5 - a * x - b * y), (d, e, 255.5 - d * x - e * y))


def test_place_takes_landmarks_to_the_template() -> None:
    landmarks = transform(similar(0.37, 25, 120, 300), FFHQ_TEMPLATE)
    placed = place(Face((0, 0, 1, 1), landmarks, 0.9))
    assert placed.matrix is not None
    assert np.allclose(transform(placed.matrix, landmarks), FFHQ_TEMPLATE, atol=1e-6)


def test_identity_crop_is_the_photo() -> None:
    photo = torch.rand(3, CROP_SIZE, CROP_SIZE)
    assert torch.allclose(crop(photo, face_with(similar(1, 0, 0, 0))), photo, atol=1e-5)


def test_shift_by_whole_pixels_moves_pixels_exactly() -> None:
    # dst = src + t: crop pixel (x, y) shows photo pixel (x - 3, y + 5).
    photo = torch.rand(3, 600, 620)
    seen = crop(photo, face_with(similar(1, 0, 3, -5)))
    assert torch.allclose(seen[:, 0:500, 3:503], photo[:, 5:505, 0:500], atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_one_bright_pixel_lands_on_its_transformed_centre(scale: float) -> None:
    photo = torch.zeros(1, 200, 300)
    photo[0, 40, 70] = 1.0  # row 40, column 70: the point (70, 40)
    seen = crop(photo, face_with(similar(scale, 0, -10.0, -5.0)))[0]
    ys, xs = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    centre = (float((seen * xs).sum() / seen.sum()), float((seen * ys).sum() / seen.sum()))
    assert centre == pytest.approx((70 * scale - 10, 40 * scale - 5), abs=0.02)


def test_half_size_crop_averages_pairs_of_pixels() -> None:
    # A step between columns 199 and 200 lies at x = 199.5, in a half-size crop (same edges) between columns 99 and 100.
    photo = torch.zeros(1, 1024, 1024)
    photo[..., 200:] = 1.0
    seen = crop(photo, face_with(((0.5, 0.0, -0.25), (0.0, 0.5, -0.25))))[0]
    assert float(seen[256, 95]) < 0.01 and float(seen[256, 104]) > 0.99
    assert float(seen[256, 99] + seen[256, 100]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("degrees", [0.0, 30.0])
@pytest.mark.parametrize("shrink", [4.0, 7.3])
def test_fine_checkerboard_in_a_big_face_turns_gray_not_moire(degrees: float, shrink: float) -> None:
    side = 4096
    board = ((torch.arange(side)[:, None] + torch.arange(side)[None]) % 2).float()[None]
    seen = crop(board, face_with(around(1 / shrink, degrees, (side / 2, side / 2))))
    inside = seen[:, 40:-40, 40:-40]
    assert float((inside - 0.5).abs().max()) < 0.02


def test_rotation_by_180_degrees_turns_the_crop_around() -> None:
    photo = torch.rand(3, 700, 800)
    upright = crop(photo, face_with(around(1.0, 0, (400.5, 300.5))))
    turned = crop(photo, face_with(around(1.0, 180, (400.5, 300.5))))
    assert torch.allclose(turned, upright.flip(-1, -2), atol=1e-3)


def test_rotation_by_90_degrees_turns_clockwise_in_the_image() -> None:
    # (x, y) -> (-y, x): what lay to the right of the centre lies below it (y points down).
    photo = torch.zeros(1, 601, 601)
    photo[0, 300, 400:404] = 1.0
    seen = crop(photo, face_with(around(1.0, 90, (300.0, 300.0))))[0]
    row, column = divmod(int(seen.argmax()), 512)
    assert abs(row - 357) <= 2 and abs(column - 255.5) <= 1


def test_face_over_the_border_repeats_the_border() -> None:
    photo = torch.full((3, 100, 120), 0.6)
    seen = crop(photo, face_with(around(4.0, 20, (0.0, 0.0))))
    assert torch.allclose(seen, torch.full_like(seen, 0.6), atol=1e-5)


def test_face_wholly_outside_still_gives_a_crop() -> None:
    photo = torch.full((3, 50, 40), 0.25)
    seen = crop(photo, face_with(around(1.0, 0, (5000.0, -900.0))))
    assert torch.allclose(seen, torch.full_like(seen, 0.25), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(1, 1), (1, 7), (10000, 20), (20, 10000), (3, 513)]) | st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.floats(0.02, 40),
    st.floats(-180, 180),
)
def test_any_photo_size_gives_a_whole_crop_in_range(size: tuple[int, int], scale: float, degrees: float) -> None:
    generator = torch.Generator().manual_seed(1)
    photo = torch.rand((3, *size), generator=generator)
    seen = crop(photo, face_with(around(scale, degrees, (size[1] / 2, size[0] / 2))))
    assert seen.shape == (3, 512, 512)
    assert bool(seen.isfinite().all()) and float(seen.min()) >= 0 and float(seen.max()) <= 1


@pytest.mark.parametrize("shrink", [1.2, 1.6, 1.9])
def test_a_little_shrinking_is_filtered_too(shrink: float) -> None:
    """Stripes finer than the crop can show lose their contrast; without the filter they come back as broad false stripes."""
    photo = (torch.arange(1200) % 2).float().expand(1, 1200, 1200)
    seen = crop(photo, face_with(around(1 / shrink, 0, (600.0, 600.0))))[:, 40:-40, 40:-40]
    assert float(seen.std()) < 0.45 * float(photo.std())  # without the filter: 0.7
    assert float(seen.mean()) == pytest.approx(0.5, abs=0.01)


def test_crop_faces_takes_each_face_from_its_own_photo() -> None:
    photos = torch.stack([torch.full((3, 60, 60), 0.2), torch.full((3, 60, 60), 0.9)])
    faces = [face_with(similar(3, 0, 0, 0), 1), face_with(similar(3, 0, 0, 0), 0)]
    crops = crop_faces(photos, faces)
    assert crops.mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.9, 0.2], abs=1e-4)
    assert crop_faces(photos, []).shape == (0, 3, 512, 512)


def test_crop_keeps_dtype_and_leaves_the_photo_alone() -> None:
    photo = torch.rand(3, 90, 80, dtype=torch.float64)
    before = photo.clone()
    assert crop(photo, face_with(similar(2, 5, 0, 0))).dtype == torch.float64
    assert torch.equal(photo, before)


def test_crop_says_what_is_missing() -> None:
    with pytest.raises(InputError, match="no matrix"):
        crop(torch.rand(3, 9, 9), face_with(None))
    with pytest.raises(InputError, match="one image"):
        crop(torch.rand(1, 3, 9, 9), face_with(similar(1, 0, 0, 0)))


def test_template_crops_put_landmarks_where_embedders_expect_them() -> None:
    for (x, y), expected in zip(FFHQ_TEMPLATE, ARCFACE_TEMPLATE, strict=True):
        crops = torch.zeros(1, 1, 512, 512)
        crops[0, 0, round(y) - 8 : round(y) + 9, round(x) - 8 : round(x) + 9] = 1.0
        seen = template_crops(crops, ARCFACE_TEMPLATE, 112)[0, 0]
        ys, xs = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
        centre = (float((seen * xs).sum() / seen.sum()), float((seen * ys).sum() / seen.sum()))
        # The two templates are faces of slightly different proportions: no similarity fits all five points exactly.
        assert math.dist(centre, expected) < 4
        fitted = transform(similarity(FFHQ_TEMPLATE, ARCFACE_TEMPLATE), [(round(x), round(y))])[0]
        assert math.dist(centre, fitted) < 0.1


def test_template_crops_are_differentiable() -> None:
    crops = torch.rand(1, 3, 512, 512, requires_grad=True)
    template_crops(crops, ARCFACE_TEMPLATE, 112).sum().backward()
    assert crops.grad is not None and float(crops.grad.abs().sum()) > 0


def test_resample_reads_destination_to_source() -> None:
    source = torch.arange(12.0).view(1, 3, 4)
    moved = resample(source, ((1.0, 0.0, 1.0), (0.0, 1.0, 2.0)), (1, 3))  # destination (x, y) shows source (x + 1, y + 2)
    assert moved[0, 0].tolist() == pytest.approx([9.0, 10.0, 11.0], abs=1e-4)
