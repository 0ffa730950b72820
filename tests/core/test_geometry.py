"""Matrices between photo and crop: directions, units and pixel centres."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lafr_core.errors import InputError
from lafr_core.geometry import FFHQ_TEMPLATE, as_matrix, box_of, compose, crop_bounds, invert, scale_of, similarity, transform
from lafr_core.types import Matrix

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def similar(scale: float, degrees: float, x: float, y: float) -> Matrix:
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return ((c, -s, x), (s, c, y))


def test_similarity_of_template_with_itself_is_the_identity() -> None:
    assert np.allclose(similarity(FFHQ_TEMPLATE, FFHQ_TEMPLATE), IDENTITY, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.floats(0.02, 50), st.floats(-180, 180), st.floats(-3000, 3000), st.floats(-3000, 3000))
def test_similarity_recovers_any_similarity(scale: float, degrees: float, x: float, y: float) -> None:
    truth = similar(scale, degrees, x, y)
    found = similarity(FFHQ_TEMPLATE, transform(truth, FFHQ_TEMPLATE))
    assert np.allclose(found, truth, rtol=1e-6, atol=1e-6 * (1 + abs(x) + abs(y)))


def test_similarity_never_mirrors() -> None:
    mirrored = [(511 - x, y) for x, y in FFHQ_TEMPLATE]
    found = np.asarray(similarity(mirrored, FFHQ_TEMPLATE))
    assert np.linalg.det(found[:, :2]) > 0


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ([(1.0, 2.0)], [(1.0, 2.0)], "at least two"),
        ([(1.0, 2.0), (3.0, 4.0)], [(1.0, 2.0)], "two equal lists"),
        ([(1.0, math.nan), (3.0, 4.0)], [(1.0, 2.0), (3.0, 4.0)], "NaN"),
        ([(5.0, 5.0)] * 5, list(FFHQ_TEMPLATE), "coincide"),
    ],
)
def test_similarity_says_what_is_wrong_with_points(source: list, target: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        similarity(source, target)


def test_transform_takes_x_first() -> None:
    # Asymmetric on purpose: swapped coordinates would give (20, 3).
    assert transform(((2.0, 0.0, 0.0), (0.0, 10.0, 0.0)), [(1.5, 2.0)]) == ((3.0, 20.0),)


def test_compose_applies_the_inner_map_first() -> None:
    double, shift = similar(2, 0, 0, 0), similar(1, 0, 10, 0)
    assert transform(compose(double, shift), [(1.0, 1.0)]) == ((22.0, 2.0),)
    assert transform(compose(shift, double), [(1.0, 1.0)]) == ((12.0, 2.0),)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.05, 20), st.floats(-180, 180), st.floats(-500, 500))
def test_invert_undoes(scale: float, degrees: float, shift: float) -> None:
    matrix = similar(scale, degrees, shift, -shift / 3)
    assert np.allclose(compose(invert(matrix), matrix), IDENTITY, atol=1e-7)
    assert scale_of(invert(matrix)) == pytest.approx(1 / scale, rel=1e-9)


def test_invert_refuses_a_singular_matrix() -> None:
    with pytest.raises(InputError, match="invertible"):
        invert(((1.0, 2.0, 0.0), (2.0, 4.0, 0.0)))


def test_as_matrix_refuses_another_shape() -> None:
    with pytest.raises(InputError, match=r"expected shape \(2, 3\), got \(3, 3\)"):
        as_matrix(np.eye(3))


def test_crop_bounds_of_the_identity_are_the_crop_itself() -> None:
    assert crop_bounds(IDENTITY, (2000, 3000), margin=0) == (0, 0, 513, 513)
    # The crop's pixel k lies on photo pixel k + 100 in x, k + 7 in y: size is (h, w), bounds are x first.
    assert crop_bounds(similar(1, 0, -100, -7), (2000, 3000), margin=0) == (99, 6, 613, 520)


def test_crop_bounds_stay_inside_the_photo() -> None:
    assert crop_bounds(similar(1, 0, 100, 50), (300, 200)) == (0, 0, 200, 300)
    x0, y0, x1, y1 = crop_bounds(similar(1, 0, 5000, 0), (300, 200))
    assert x1 <= x0 or y1 <= y0


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 20), st.floats(-180, 180), st.floats(-600, 600), st.floats(-600, 600))
def test_crop_bounds_hold_every_photo_pixel_the_crop_sees(scale: float, degrees: float, x: float, y: float) -> None:
    matrix = similar(scale, degrees, x, y)
    height, width = 83, 211
    x0, y0, x1, y1 = crop_bounds(matrix, (height, width))
    pixels = [(float(u), float(v)) for v in range(0, height, 7) for u in range(0, width, 7)]
    for (u, v), (p, q) in zip(pixels, transform(matrix, pixels), strict=True):
        if -0.5 <= p <= 511.5 and -0.5 <= q <= 511.5:
            assert x0 <= u < x1 and y0 <= v < y1


def test_box_of_points() -> None:
    assert box_of([(3.0, 9.0), (1.0, 20.0), (2.0, 10.0)]) == (1.0, 9.0, 3.0, 20.0)
