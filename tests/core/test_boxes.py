"""Boxes from landmarks and back, and the one non-maximum suppression."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lafr_core.errors import InputError
from lafr_core.faces.boxes import TEMPLATE_BOX, face_box, landmarks_in, merge, overlap, suppress
from lafr_core.geometry import FFHQ_TEMPLATE
from lafr_core.types import Face


def test_the_templates_landmarks_have_the_templates_box() -> None:
    assert face_box(FFHQ_TEMPLATE) == pytest.approx(TEMPLATE_BOX, abs=1e-6)


@given(st.floats(-300, 300), st.floats(-300, 300), st.floats(0.05, 8))
def test_a_box_gives_landmarks_that_give_the_box_back(x: float, y: float, scale: float) -> None:
    x0, y0, x1, y1 = TEMPLATE_BOX
    box = (x, y, x + scale * (x1 - x0), y + scale * (y1 - y0))
    assert face_box(landmarks_in(box)) == pytest.approx(box, abs=1e-4 * (1 + scale))


def test_a_stretched_box_stretches_the_landmarks() -> None:
    x0, y0, x1, y1 = TEMPLATE_BOX
    wide = landmarks_in((0.0, 0.0, 2 * (x1 - x0), y1 - y0))
    for (x, y), (tx, ty) in zip(wide, FFHQ_TEMPLATE, strict=True):
        assert (x, y) == pytest.approx((2 * (tx - x0), ty - y0))


def test_a_face_on_its_side_has_the_templates_box_on_its_side() -> None:
    turned = [(-y, x) for x, y in FFHQ_TEMPLATE]  # a quarter turn about the origin
    x0, y0, x1, y1 = TEMPLATE_BOX
    assert face_box(turned) == pytest.approx((-y1, x0, -y0, x1), abs=1e-6)


def test_coinciding_landmarks_have_no_box() -> None:
    with pytest.raises(InputError, match="coincide"):
        face_box([(3.0, 4.0)] * 5)


def test_overlap_is_intersection_over_union() -> None:
    assert overlap((0, 0, 4, 2), (2, 0, 6, 2)) == pytest.approx(4 / 12)
    assert overlap((0, 0, 4, 2), (4, 0, 8, 2)) == 0
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 0


def test_suppression_keeps_the_best_of_overlapping_boxes_best_first() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [21, 1, 31, 11]])
    scores = torch.tensor([0.6, 0.9, 0.7, 0.95])
    assert suppress(boxes, scores).tolist() == [3, 1]


def test_a_box_inside_a_better_one_is_a_part_of_it() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100], [40, 40, 60, 60], [95, 40, 115, 60]])
    assert suppress(boxes, torch.tensor([0.9, 0.8, 0.7])).tolist() == [0, 2]  # the third only touches it


def test_suppression_of_nothing_is_nothing() -> None:
    assert suppress(torch.zeros(0, 4), torch.zeros(0)).tolist() == []
    assert merge([]) == []


def test_suppression_looks_at_the_best_only() -> None:
    boxes = torch.tensor([[20.0 * i, 0, 20 * i + 10, 10] for i in range(6)])
    assert suppress(boxes, torch.tensor([0.1, 0.6, 0.3, 0.5, 0.2, 0.4]), most=3).tolist() == [1, 3, 5]


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(1, 30), st.floats(0, 1)), min_size=1, max_size=12))
def test_no_two_kept_faces_are_duplicates(rows: list[tuple[float, float, float, float]]) -> None:
    faces = [Face((x, y, x + s, y + s), landmarks_in((x, y, x + s, y + s)), score) for x, y, s, score in rows]
    kept = merge(faces)
    assert kept[0].score == pytest.approx(max(face.score for face in faces))
    assert set(kept) <= set(faces)
    for i, a in enumerate(kept):
        assert all(overlap(a.box, b.box) <= 0.4 + 1e-5 for b in kept[i + 1 :])


def test_turned_faces_grow_their_box_smoothly() -> None:
    def at(degrees: float) -> tuple[float, float]:
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        x0, y0, x1, y1 = face_box([(c * x - s * y, s * x + c * y) for x, y in FFHQ_TEMPLATE])
        return x1 - x0, y1 - y0

    widths, heights = zip(*(at(d) for d in (0, 30, 60, 90)), strict=True)
    assert list(widths) == sorted(widths)
    assert list(heights) == sorted(heights, reverse=True)
