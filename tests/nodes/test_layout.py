"""Layout conversions: there and back, channels told apart, mistakes named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def layout(stub_nodes: Any) -> Any:
    from lafr_stub.nodes import layout

    return layout


@pytest.fixture(scope="module")
def errors(stub_nodes: Any) -> Any:
    from lafr_stub.lafr_core import errors

    return errors


def test_rows_columns_and_channels_keep_their_places(layout: Any) -> None:
    image = torch.zeros(2, 3, 5, 3)
    image[1, 2, 4, 0] = 0.25  # second picture, last row, last column, red
    images = layout.to_images(image)
    assert images.shape == (2, 3, 3, 5)
    assert images[1, 0, 2, 4] == 0.25 and images.sum() == 0.25
    assert torch.equal(layout.to_image(images), image)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
def test_there_and_back_is_bit_identical(layout: Any, batch: int, height: int, width: int) -> None:
    image = torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(height))
    back = layout.to_image(layout.to_images(image))
    assert torch.equal(back, image) and back.is_contiguous() and back.dtype == torch.float32


def test_alpha_is_left_behind_and_put_back(layout: Any) -> None:
    image = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert layout.to_images(image).shape == (1, 3, 2, 3)
    assert torch.equal(layout.to_image(layout.to_images(image), like=image), image)


def test_one_channel_becomes_three_equal_ones(layout: Any) -> None:
    images = layout.to_images(torch.tensor([0.1, 0.9]).reshape(1, 1, 2, 1))
    assert torch.equal(images[0, :, 0], torch.tensor([[0.1, 0.9]] * 3))


def test_mask_loses_its_channel(layout: Any, errors: Any) -> None:
    assert layout.to_mask(torch.ones(2, 1, 3, 5)).shape == (2, 3, 5)
    with pytest.raises(errors.InputError, match=r"mask: expected \(B, 1, H, W\)"):
        layout.to_mask(torch.ones(2, 3, 5))


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 3, 4, 5), (0, 4, 4, 3), (1, 0, 4, 3)])
def test_what_is_no_image_is_named(layout: Any, errors: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(errors.InputError, match=r"IMAGE: expected \(B, H, W, 3\)"):
        layout.to_images(torch.zeros(shape))


def test_nan_is_named(layout: Any, errors: Any) -> None:
    with pytest.raises(errors.InputError, match="NaN"):
        layout.to_images(torch.full((1, 2, 2, 3), float("nan")))


BOX = {"x": 3, "y": 5, "width": 10, "height": 20}
CORNERS = (3.0, 5.0, 13.0, 25.0)


def test_boxes_in_every_shape_the_host_sends(layout: Any) -> None:
    assert layout.to_boxes(None, 2) is None
    assert layout.to_boxes(BOX, 1) == [[CORNERS]]
    assert layout.to_boxes([BOX, BOX], 1) == [[CORNERS, CORNERS]]
    assert layout.to_boxes([BOX, BOX], 2) == [[CORNERS, CORNERS], [CORNERS, CORNERS]]
    assert layout.to_boxes(BOX, 2) == layout.to_boxes([[BOX]], 2) == [[CORNERS], [CORNERS]]
    assert layout.to_boxes([[BOX, BOX], []], 2) == [[CORNERS, CORNERS], []]
    assert layout.to_boxes([], 1) == [[]]


def test_wrong_boxes_are_named(layout: Any, errors: Any) -> None:
    with pytest.raises(errors.InputError, match="expected boxes for 3 photos, got 2"):
        layout.to_boxes([[BOX], []], 3)
    with pytest.raises(errors.InputError, match="expected x, y, width and height"):
        layout.to_boxes({"x": 1}, 1)
    with pytest.raises(errors.InputError, match="width and height above 0, got 0 x 20"):
        layout.to_boxes({**BOX, "width": 0}, 1)


def test_faces_become_boxes_that_come_back_as_they_were(layout: Any) -> None:
    from lafr_stub.lafr_core.types import Face

    marks = ((4.0, 9.0), (9.0, 9.0), (6.0, 12.0), (4.0, 20.0), (9.0, 20.0))
    boxes = layout.from_faces([Face(CORNERS, marks, 0.9, image_index=1)], 2)
    assert boxes == [[], [{"x": 3.0, "y": 5.0, "width": 10.0, "height": 20.0, "label": "face", "score": 0.9}]]
    assert layout.to_boxes(boxes, 2) == [[], [CORNERS]]
