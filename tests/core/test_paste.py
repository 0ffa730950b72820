"""Paste: only the face changes, and it changes where it should."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError, SettingsError
from lafr_core.faces.color import match_color
from lafr_core.faces.crop import crop_faces
from lafr_core.faces.grain import match_grain
from lafr_core.faces.masks import crop_mask
from lafr_core.faces.paste import paste_faces
from lafr_core.geometry import FFHQ_TEMPLATE
from lafr_core.settings import RestoreSettings
from lafr_core.types import Face, Matrix

MASKS = ("oval", "square", "parse")


class Disc:
    name = "disc"

    def __call__(self, crops: Tensor) -> Tensor:
        ys, xs = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
        return ((xs - 256) ** 2 + (ys - 280) ** 2 < 140**2).float().expand(crops.shape[0], 1, -1, -1)


def face_at(scale: float, degrees: float, centre: tuple[float, float], image_index: int = 0) -> Face:
    """A placed face whose crop is centred on ``centre`` and shows the photo enlarged ``scale`` times."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    x, y = centre
    matrix: Matrix = ((c, -s, 255.5 - c * x + s * y), (s, c, 255.5 - s * x - c * y))
    return Face((x - 1, y - 1, x + 1, y + 1), FFHQ_TEMPLATE, 1.0, matrix, image_index)


def photo(height: int, width: int, cells: int = 9, batch: int = 1) -> Tensor:
    """Smooth colours, so that resampling twice loses little."""
    generator = torch.Generator().manual_seed(height * 7 + width)
    coarse = torch.rand((batch, 3, cells, cells), generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def flat(value: float, count: int = 1) -> Tensor:
    return torch.full((count, 3, 512, 512), value)


def assert_untouched_outside(before: Tensor, after: Tensor, masks: Tensor) -> None:
    outside = (masks == 0).expand_as(before)
    assert torch.equal(before[outside], after[outside])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("degrees", [0, 30, 180])
@pytest.mark.parametrize("scale", [0.7, 1.0, 3.1])
def test_crop_then_paste_of_an_untouched_face_gives_the_photo_back(scale: float, degrees: float, mask: str) -> None:
    before = photo(700, 900)
    faces = [face_at(scale, degrees, (560.0, 300.0))]
    after, masks = paste_faces(before, faces, crop_faces(before, faces), RestoreSettings(mask=mask), parser=Disc())
    assert float((after - before).abs().max()) < 0.01
    assert float(masks.max()) == pytest.approx(1.0) and float(masks.min()) == 0.0
    assert_untouched_outside(before, after, masks)


def test_pixels_come_back_to_where_they_came_from() -> None:
    # A bright dot off the centre: any confusion of x and y, or half a pixel, moves its centroid.
    before = torch.zeros(1, 3, 300, 400)
    faces = [face_at(2.0, 20, (200.0, 150.0))]
    ys, xs = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
    dot = torch.exp(-((xs - 230) ** 2 + (ys - 120) ** 2) / 18)
    crops = crop_faces(dot.expand(1, 3, -1, -1), faces)
    after, _ = paste_faces(before, faces, crops, RestoreSettings())
    seen = after[0, 1]
    centre = (float((seen * xs).sum() / seen.sum()), float((seen * ys).sum() / seen.sum()))
    assert centre == pytest.approx((230, 120), abs=0.02)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(1, 1), (10000, 20), (20, 10000), (2, 600)]) | st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.floats(0.3, 60),
    st.floats(-180, 180),
    st.floats(-0.3, 1.3),
    st.sampled_from(MASKS),
)
def test_any_photo_keeps_what_lies_outside_the_mask(
    size: tuple[int, int], scale: float, degrees: float, where: float, mask: str
) -> None:
    before = torch.rand((1, 3, *size), generator=torch.Generator().manual_seed(3))
    faces = [face_at(scale, degrees, (where * size[1], where * size[0]))]
    after, masks = paste_faces(before, faces, flat(0.5), RestoreSettings(mask=mask), parser=Disc())
    assert after.shape == before.shape and masks.shape == (1, 1, *size)
    assert bool(after.isfinite().all()) and float(masks.min()) >= 0 and float(masks.max()) <= 1
    assert_untouched_outside(before, after, masks)
    # Where the mask is w, the result lies w of the way from the photo to the flat crop.
    assert torch.allclose(after, before + (0.5 - before) * masks, atol=1e-5)


def test_strength_zero_and_no_faces_change_no_bit() -> None:
    before = torch.rand(2, 3, 90, 80)
    faces = [face_at(6.0, 0, (40.0, 45.0))]
    for settings_, faces_, crops in (
        (RestoreSettings(strength=0.0), faces, flat(1.0)),
        (RestoreSettings(strength=0.0, mask="parse"), faces, flat(1.0)),
        (RestoreSettings(), [], flat(1.0, 0)),
    ):
        after, masks = paste_faces(before, faces_, crops, settings_)
        assert torch.equal(after, before) and float(masks.abs().max()) == 0.0
        assert after.data_ptr() != before.data_ptr()


def test_strength_scales_the_mask_and_the_change() -> None:
    before = photo(200, 200)
    faces = [face_at(2.5, 10, (100.0, 100.0))]
    full, full_mask = paste_faces(before, faces, flat(0.9), RestoreSettings())
    half, half_mask = paste_faces(before, faces, flat(0.9), RestoreSettings(strength=0.5))
    assert torch.allclose(half_mask, full_mask / 2, atol=1e-6)
    assert torch.allclose(half - before, (full - before) / 2, atol=1e-6)


def test_eight_bit_pixels_outside_the_mask_survive_a_png_round_trip(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    before = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    after, masks = paste_faces(before, [face_at(4.0, 15, (90.0, 70.0))], flat(0.5), RestoreSettings())
    Image.fromarray((after[0].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)).save(tmp_path / "out.png")
    again = np.asarray(Image.open(tmp_path / "out.png"))
    outside = (masks[0, 0] == 0).numpy()
    assert 0.3 < outside.mean() < 0.9
    assert np.array_equal(again[outside], pixels[outside])
    assert not np.array_equal(again, pixels)


def test_face_over_the_border_has_no_dark_rim() -> None:
    before = torch.full((1, 3, 120, 140), 0.7)
    faces = [face_at(3.0, 25, (4.0, 6.0))]
    after, masks = paste_faces(before, faces, crop_faces(before, faces), RestoreSettings(mask="square"))
    assert float((after - 0.7).abs().max()) < 1e-4
    assert float(masks[0, 0, 0, 0]) == pytest.approx(1.0)  # the photo's edge cuts the face; the mask does not fade there


def test_face_wholly_outside_changes_nothing() -> None:
    before = torch.rand(1, 3, 50, 60)
    after, masks = paste_faces(before, [face_at(1.0, 0, (5000.0, 20.0))], flat(1.0), RestoreSettings())
    assert torch.equal(after, before) and float(masks.max()) == 0.0


def test_small_face_is_low_pass_filtered_not_aliased() -> None:
    # One-pixel stripes in the crop, nine crop pixels to a photo pixel: the photo must see their mean, not moire.
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    before = torch.full((1, 3, 100, 100), 0.5)
    after, masks = paste_faces(before, [face_at(9.3, 7, (50.0, 50.0))], stripes, RestoreSettings(mask="square"))
    inside = (masks == 1).expand_as(after)
    assert int(inside.sum()) > 500
    assert float((after[inside] - 0.5).abs().max()) < 0.02


def test_large_face_is_enlarged_smoothly() -> None:
    # A ramp stays a ramp: nearest neighbour would give steps of 1 / 512 every three pixels.
    ramp = torch.linspace(0, 1, 512).expand(1, 3, 512, 512)
    before = torch.zeros(1, 3, 1600, 1600)
    after, _ = paste_faces(before, [face_at(1 / 3, 0, (800.0, 800.0))], ramp, RestoreSettings(mask="square"))
    rise = after[0, 0, 800, 300:1300].diff()
    assert float((rise - 1 / 511 / 3).abs().max()) < 2e-4


def test_what_is_to_be_kept_stays_and_the_rest_is_pasted_as_ever() -> None:
    before, faces = photo(80, 100, batch=2), [face_at(8, 0, (50, 40)), face_at(8, 0, (50, 40), image_index=1)]
    keep = torch.zeros(2, 1, 80, 100)
    keep[1, :, :, 50:] = 1  # the right half of the second photo only
    keep[1, :, 40, 30] = 0.25
    plain, plain_masks = paste_faces(before, faces, flat(0.5, 2), RestoreSettings())
    after, masks = paste_faces(before, faces, flat(0.5, 2), RestoreSettings(), keep=keep)
    assert torch.equal(after[0], plain[0]) and torch.equal(after[1, :, :40, :50], plain[1, :, :40, :50])
    assert torch.equal(after[1, :, :, 50:], before[1, :, :, 50:]) and bool((masks[1, :, :, 50:] == 0).all())
    assert float(masks[1, 0, 40, 30]) == pytest.approx(0.75 * float(plain_masks[1, 0, 40, 30]))
    one, _ = paste_faces(before, faces, flat(0.5, 2), RestoreSettings(), keep=torch.ones(1, 1, 80, 100))
    assert torch.equal(one, before)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (torch.zeros(2, 1, 80, 100), "1 or 1, 1, 80, 100"),
        (torch.zeros(1, 1, 64, 64), "64, 64"),
        (torch.full((1, 1, 80, 100), 2.0), "2 to 2"),
        (torch.full((1, 1, 80, 100), -0.5), "-0.5 to -0.5"),
        (torch.full((1, 1, 80, 100), math.nan), "nan to nan"),
    ],
)
def test_a_mask_that_fits_no_photo_is_refused(keep: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        paste_faces(photo(80, 100), [], flat(0.5, 0), RestoreSettings(), keep=keep)


def test_later_faces_cover_earlier_ones_and_the_mask_is_the_effective_weight() -> None:
    before = torch.zeros(1, 3, 300, 300)
    faces = [face_at(2.5, 0, (120.0, 150.0)), face_at(2.5, 0, (180.0, 150.0))]
    crops = torch.cat([flat(0.4), flat(0.8)])
    after, masks = paste_faces(before, faces, crops, RestoreSettings())
    first = paste_faces(before, faces[:1], crops[:1], RestoreSettings())
    second = paste_faces(first[0], faces[1:], crops[1:], RestoreSettings())
    assert torch.allclose(after, second[0], atol=1e-6)
    assert torch.allclose(masks, 1 - (1 - first[1]) * (1 - second[1]), atol=1e-6)
    assert float(after[0, 0, 150, 180]) == pytest.approx(0.8, abs=1e-5)
    swapped, _ = paste_faces(before, faces[::-1], crops.flip(0), RestoreSettings())
    assert float((swapped - after).abs().max()) > 0.1


def test_each_face_goes_into_its_own_photo() -> None:
    before = photo(100, 120, batch=3)
    faces = [face_at(5.0, 0, (60.0, 50.0), 2), face_at(5.0, 0, (60.0, 50.0), 0)]
    after, masks = paste_faces(before, faces, torch.cat([flat(1.0), flat(0.0)]), RestoreSettings())
    assert torch.equal(after[1], before[1]) and float(masks[1].max()) == 0.0
    assert float(after[2, 0, 50, 60]) == pytest.approx(1.0) and float(after[0, 0, 50, 60]) == pytest.approx(0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_photo_is_kept(dtype: torch.dtype) -> None:
    before = photo(100, 120).to(dtype)
    after, masks = paste_faces(before, [face_at(5.0, 0, (60.0, 50.0))], flat(0.5), RestoreSettings())
    assert after.dtype == dtype and masks.dtype == dtype
    assert_untouched_outside(before, after, masks)
    assert float(after[0, 0, 50, 60]) == pytest.approx(0.5, abs=1e-3)


def test_inputs_stay_as_they_were_and_progress_counts_faces() -> None:
    before, crops = photo(90, 90), flat(0.5, 2)
    copies = before.clone(), crops.clone()
    calls: list[tuple[str, int, int]] = []
    faces = [face_at(6.0, 0, (30.0, 45.0)), face_at(6.0, 0, (60.0, 45.0))]
    paste_faces(before, faces, crops, RestoreSettings(), progress=lambda *call: calls.append(call))
    assert torch.equal(before, copies[0]) and torch.equal(crops, copies[1])
    assert calls == [("paste", 1, 2), ("paste", 2, 2)]


def test_every_setting_of_the_paste_changes_the_picture() -> None:
    before = (photo(260, 260) + torch.randn(1, 3, 260, 260) * 0.03).clamp(0, 1)
    faces = [face_at(2.2, 12, (130.0, 130.0))]
    crops = crop_faces(before, faces)
    restored = (F.avg_pool2d(F.pad(crops, (8,) * 4, mode="replicate"), 17, stride=1) + 0.1).clamp(0, 1)

    def result(**changes: object) -> Tensor:
        chosen = RestoreSettings.from_mapping({"color": 0.3, **changes})
        out = match_grain(match_color(restored, crops, chosen.color), crops, chosen.grain)
        return paste_faces(before, faces, out, chosen, parser=Disc())[0]

    base = result()
    for change in ({"mask": "square"}, {"mask": "parse"}, {"feather": 0.3}, {"color": 0.9}, {"grain": 0.7}, {"strength": 0.6}):
        assert float((result(**change) - base).abs().mean()) > 5e-4, change


def test_effective_mask_is_the_crop_mask_seen_from_the_photo() -> None:
    before = torch.zeros(1, 3, 512, 512)
    identity = Face((0, 0, 1, 1), FFHQ_TEMPLATE, 1.0, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))
    for mask in ("oval", "square"):
        chosen = RestoreSettings(mask=mask, feather=0.2)
        _, masks = paste_faces(before, [identity], flat(1.0), chosen)
        assert torch.allclose(masks, crop_mask(chosen), atol=1e-4)


def test_cost_of_a_face_does_not_depend_on_the_photo() -> None:
    """The work per further face in a big photo is the work in a small one: no whole-photo pass per face."""
    small, large = torch.zeros(1, 3, 300, 300), torch.zeros(1, 3, 3000, 4000)
    face = face_at(3.0, 10, (150.0, 150.0))

    def per_face(image: Tensor) -> float:
        def seconds(count: int) -> float:
            best = math.inf
            for _ in range(3):
                start = time.process_time()
                paste_faces(image, [face] * count, flat(0.5, count), RestoreSettings())
                best = min(best, time.process_time() - start)
            return best

        return (seconds(9) - seconds(1)) / 8

    # A pass over the big photo would cost 130 times as much as one over the small; allow for noise.
    assert per_face(large) < 4 * per_face(small) + 0.01


def test_what_does_not_fit_together_is_refused_with_a_sentence() -> None:
    before, face = torch.zeros(1, 3, 40, 40), face_at(9.0, 0, (20.0, 20.0))
    with pytest.raises(InputError, match=r"one crop a face, \(1, 3, 512, 512\), got \(2, 3, 512, 512\)"):
        paste_faces(before, [face], flat(0.5, 2), RestoreSettings())
    with pytest.raises(InputError, match="NaN"):
        paste_faces(before, [face], flat(math.nan), RestoreSettings())
    with pytest.raises(InputError, match="face 0 has no matrix"):
        paste_faces(before, [Face((0, 0, 1, 1), FFHQ_TEMPLATE, 1.0)], flat(0.5), RestoreSettings())
    with pytest.raises(InputError, match="belongs to image 3, got a batch of 1"):
        paste_faces(before, [face_at(9.0, 0, (20.0, 20.0), 3)], flat(0.5), RestoreSettings())
    with pytest.raises(InputError, match="belongs to image -1, got a batch of 1"):
        paste_faces(before, [face_at(9.0, 0, (20.0, 20.0), -1)], flat(0.5), RestoreSettings())
    with pytest.raises(InputError, match="expected float images"):
        paste_faces(before.to(torch.uint8), [face], flat(0.5), RestoreSettings())
    with pytest.raises(SettingsError, match="choose mask 'oval'"):
        paste_faces(before, [face], flat(0.5), RestoreSettings(mask="parse"))
