"""Colour match: casts go, blur does not come, black-and-white and sepia stay so."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.faces.color import is_gray, luma, match_color, single_tint


def scene(seed: int = 1, cells: int = 12, side: int = 512) -> Tensor:
    """A smooth colour picture (1, 3, side, side) with luma and chroma everywhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, cells, cells), generator=generator)
    return (F.interpolate(coarse, size=side, mode="bicubic") * 0.6 + 0.2).clamp(0, 1)


def blurred(images: Tensor, radius: int) -> Tensor:
    for _ in range(3):
        images = F.pad(images, (radius,) * 4, mode="replicate")
        images = F.avg_pool2d(F.avg_pool2d(images, (1, 2 * radius + 1), stride=1), (2 * radius + 1, 1), stride=1)
    return images


def jpeg(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    pixels = (image[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer), dtype=np.float32) / 255).permute(2, 0, 1)[None]


def sepia(image: Tensor) -> Tensor:
    light = luma(image)
    return torch.cat([light * 0.95 + 0.05, light * 0.9 + 0.02, light * 0.75], dim=1)


CAST = torch.tensor([0.12, -0.03, -0.1]).view(1, 3, 1, 1)


def test_amount_zero_returns_the_very_same_tensor() -> None:
    restored = scene(1)
    assert match_color(restored, scene(2), 0.0) is restored


def test_no_faces_are_fine() -> None:
    none = torch.zeros(0, 3, 512, 512)
    assert match_color(none, none, 1.0).shape == (0, 3, 512, 512)


def test_matching_a_picture_with_itself_changes_nothing() -> None:
    picture = scene()
    assert torch.allclose(match_color(picture, picture, 1.0), picture, atol=1e-6)


def test_colour_cast_is_removed() -> None:
    picture = scene()
    cast = picture + CAST
    assert float((match_color(cast, picture, 1.0) - picture).abs().max()) < 0.01
    assert float((cast - picture).abs().mean()) > 0.08


def test_uneven_light_comes_back() -> None:
    picture = scene()
    lamp = torch.linspace(-0.12, 0.12, 512).view(1, 1, 1, 512)
    matched = match_color(picture, (picture + lamp).clamp(0, 1), 1.0)
    assert float((matched - (picture + lamp))[..., 60:-60].abs().max()) < 0.03


def test_half_the_amount_takes_half_the_difference() -> None:
    picture = scene()
    cast = picture + CAST
    full, half = match_color(cast, picture, 1.0), match_color(cast, picture, 0.5)
    assert torch.allclose(half - cast, (full - cast) / 2, atol=1e-5)


def test_detail_is_kept() -> None:
    picture = scene()
    generator = torch.Generator().manual_seed(5)
    detail = torch.randn((1, 1, 512, 512), generator=generator) * 0.03
    matched = match_color(picture + CAST + detail, picture, 1.0)
    assert float((matched - picture - detail).abs().mean()) < 0.005


def test_blurred_reference_puts_no_halo_around_a_sharp_edge() -> None:
    sharp = torch.full((1, 3, 512, 512), 0.25)
    sharp[:, 0] += 0.1
    sharp[..., 256:] += 0.5
    reference = blurred(sharp, 10)  # standard deviation about 10 pixels: a badly blurred photo
    matched = match_color(sharp, reference, 1.0)
    assert float((matched - sharp).abs().max()) < 0.02
    naive = sharp + blurred(reference, 36) - blurred(sharp, 36)
    assert float((naive - sharp).abs().max()) > 2 * float((matched - sharp).abs().max())


def test_result_stays_in_range_dtype_and_shape_and_inputs_stay_as_they_were() -> None:
    restored, reference = scene(1).double(), (scene(2) * 1.4).clamp(0, 1).double()
    copies = restored.clone(), reference.clone()
    matched = match_color(restored, reference, 1.0)
    assert matched.dtype == torch.float64 and matched.shape == restored.shape
    assert float(matched.min()) >= 0 and float(matched.max()) <= 1
    assert torch.equal(restored, copies[0]) and torch.equal(reference, copies[1])


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 1.0))
def test_any_size_of_crop(height: int, width: int, amount: float) -> None:
    generator = torch.Generator().manual_seed(height * 100 + width)
    restored, reference = (torch.rand((1, 3, height, width), generator=generator) for _ in range(2))
    matched = match_color(restored, reference, amount)
    assert matched.shape == restored.shape and bool(matched.isfinite().all())


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    gray = luma(scene(3)).expand(-1, 3, -1, -1)
    restored, references = torch.cat([scene(1), scene(2)]), torch.cat([scene(4), gray])
    together = match_color(restored, references, 1.0)
    for row in range(2):
        alone = match_color(restored[row : row + 1], references[row : row + 1], 1.0)
        assert torch.allclose(together[row], alone[0], atol=1e-6)


@pytest.mark.parametrize("amount", [0.05, 0.5, 1.0])
def test_exactly_gray_reference_gives_an_exactly_gray_result_with_restored_detail(amount: float) -> None:
    gray = luma(blurred(scene(3), 6)).expand(-1, 3, -1, -1).contiguous()
    generator = torch.Generator().manual_seed(5)
    detail = torch.randn((1, 1, 512, 512), generator=generator) * 0.03
    tinted = (gray + detail + CAST).clamp(0, 1)  # a prior that paints skin onto an old photo
    result = match_color(tinted, gray, amount)
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 1], result[:, 2])
    correlation = torch.corrcoef(torch.stack([(result - gray)[0, 0].flatten(), detail.flatten()]))[0, 1]
    assert float(correlation) > 0.97


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_gray_photo_saved_as_colour_jpeg_stays_gray(quality: int) -> None:
    gray = jpeg(luma(scene(3)).expand(-1, 3, -1, -1), quality)
    assert bool(is_gray(gray).all())
    result = match_color((gray + CAST).clamp(0, 1), gray, 1.0)
    assert float((result - luma(result)).abs().max()) < 1.5 / 255


def test_gray_photo_with_coloured_noise_stays_gray() -> None:
    generator = torch.Generator().manual_seed(5)
    noisy = (luma(scene(3)) + torch.randn((1, 3, 512, 512), generator=generator) * 0.06).clamp(0, 1)
    assert bool(is_gray(noisy).all())
    result = match_color((luma(scene(3)) + CAST).clamp(0, 1), noisy, 1.0)
    assert float((result - luma(result)).abs().mean()) < 0.01


def test_colour_photos_are_not_gray_however_pale() -> None:
    picture = scene()
    pale = luma(picture) + 0.35 * (picture - luma(picture))
    assert is_gray(torch.cat([picture, pale, luma(picture).expand(-1, 3, -1, -1)])).tolist() == [False, False, True]
    assert single_tint(pale[0]) is None


@pytest.mark.parametrize("quality", [60, 95])
def test_sepia_print_keeps_its_tint_and_takes_no_other(quality: int) -> None:
    original = scene(3)
    reference = jpeg(sepia(blurred(original, 4)), quality)
    colours = (luma(original) + 0.8 * (scene(9) - luma(scene(9)))).clamp(0, 1)
    result = match_color(colours, reference, 1.0)
    expected = sepia(luma(result).expand(-1, 3, -1, -1))
    tint = result - luma(result)
    assert float((tint - (expected - luma(expected))).abs().mean()) < 0.012
    assert not bool(is_gray(result).any())


def test_colour_beside_a_gray_face_is_kept() -> None:
    # An old picture pasted next to a new one: the face is gray, a strip of the crop is not.
    crop = luma(scene(3)).expand(-1, 3, -1, -1).clone()
    crop[..., 440:] = torch.tensor([0.8, 0.3, 0.2]).view(1, 3, 1, 1)
    result = match_color((crop + CAST).clamp(0, 1), crop, 1.0)
    face, strip = result[..., 100:400], result[..., 460:500]
    assert float((face - luma(face)).abs().max()) < 1e-5
    assert float((strip - luma(strip)).abs().max()) > 0.2


def test_luma_of_gray_is_the_gray_itself_bit_for_bit() -> None:
    values = torch.rand(1, 1, 50, 50).expand(-1, 3, -1, -1)
    assert torch.equal(luma(values), values[:, :1])
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(luma(red)) == pytest.approx(0.299)


def test_wrong_shapes_are_refused_with_both_named() -> None:
    with pytest.raises(InputError, match=r"of one shape, got \(1, 3, 8, 8\) and \(1, 3, 9, 8\)"):
        match_color(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 8), 1.0)
    with pytest.raises(InputError, match=r"is_gray: expected images \(B, 3, H, W\), got \(3, 8, 8\)"):
        is_gray(torch.zeros(3, 8, 8))
