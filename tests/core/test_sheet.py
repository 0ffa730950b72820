"""Pictures for people: drawn faces and contact sheets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import face_at
from PIL import Image

from lafr_core.errors import InputError
from lafr_core.images.draw import draw_faces, font
from lafr_core.images.sheet import _HEAD, _MARGIN, Row, most_changed, sheet


def test_drawing_leaves_the_photo_and_its_alpha_alone() -> None:
    array = np.random.default_rng(0).integers(0, 256, (120, 160, 4), dtype=np.uint8)
    image = Image.fromarray(array)
    drawn = draw_faces(image, [face_at(20, 40, 60), face_at(90, 40, 60)])
    assert np.array_equal(np.asarray(image), array)
    assert np.array_equal(np.asarray(drawn)[..., 3], array[..., 3])
    changed = (np.asarray(drawn) != array).any(-1)
    assert changed[70, 20] and changed[70, 90] and not changed[105:].any()


def test_each_face_has_its_own_number() -> None:
    """The labels differ: what distinguishes two faces in the picture is what the ``faces`` setting takes."""
    black = Image.new("RGB", (300, 200))
    one, two = face_at(20, 100, 60), face_at(180, 100, 60)
    label = (slice(60, 100), slice(180, 300))
    first = np.asarray(draw_faces(black, [one, two]))[label]
    second = np.asarray(draw_faces(black, [one, one, two]))[label]
    assert first.any() and second.any() and not np.array_equal(first, second)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3)])
@pytest.mark.parametrize("mode", ["L", "RGB", "LA"])
def test_any_picture_can_be_drawn_on(size: tuple[int, int], mode: str) -> None:
    assert draw_faces(Image.new(mode, size), [face_at(-10, -10, 30), face_at(400, 400, 50)]).size == size


def test_font_grows_where_pillow_can() -> None:
    assert font(11) is not None


def test_most_changed_finds_the_place_x_before_y() -> None:
    before = torch.zeros(3, 100, 200)
    after = before.clone()
    after[:, 20:40, 140:160] = 1.0
    x, y = most_changed(before, after, window=20)
    assert (x, y) == (149.5, 29.5)
    assert most_changed(before, before) == (99.5, 49.5)
    x, y = most_changed(before, torch.nn.functional.interpolate(after[None], scale_factor=2)[0], window=20)
    assert (x, y) == (149.5, 29.5)  # another size is compared at the first one's


def test_a_sheet_shows_every_version_and_the_zooms_one_to_one() -> None:
    before = torch.rand(3, 100, 200)
    after = torch.rand(3, 100, 200)
    page = sheet(("before", "after"), [Row("photo", (before, after), focus=(150.0, 40.0))], tile=64)
    assert page.size == (_MARGIN + 2 * (64 + _MARGIN), _HEAD + _HEAD + 32 + 64 + 2 * _MARGIN)  # 200x100 in 64: 32 high
    array = np.asarray(page)
    top = 2 * _HEAD + 32 + _MARGIN
    for column, picture in enumerate((before, after)):
        left = _MARGIN + column * (64 + _MARGIN)
        shown = array[top : top + 64, left : left + 64]
        wanted = (picture[:, 8:72, 118:182] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert np.array_equal(shown, wanted)


def test_a_zoom_at_the_edge_and_of_a_small_picture_stays_inside() -> None:
    small = torch.zeros(3, 10, 20)
    page = sheet(("a", "b"), [Row("small", (small, small)), Row("edge", (torch.zeros(3, 90, 90),) * 2, focus=(89, 0))], tile=64)
    small_row, edge_row = 32 + 10, 64 + 64  # no line is higher than what stands in it
    assert page.size[1] == _HEAD + 2 * (_HEAD + 2 * _MARGIN) + small_row + edge_row
    assert np.asarray(page)[2 * _HEAD + 32 + _MARGIN : 2 * _HEAD + 32 + _MARGIN + 10, _MARGIN : _MARGIN + 20].max() == 0


def test_a_row_has_one_picture_for_each_title() -> None:
    with pytest.raises(InputError, match=r"sheet: expected 2 pictures \(before, after\), got 1 in 'x'"):
        sheet(("before", "after"), [Row("x", (torch.zeros(3, 4, 4),))])
