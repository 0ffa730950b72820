"""Every choice about which faces are restored, seen with a detector that finds drawn marks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import face_at
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops
from torch import Tensor

from lafr_core.errors import Cancelled, InputError
from lafr_core.faces.boxes import landmarks_in
from lafr_core.faces.crop import crop, place
from lafr_core.faces.detect import (
    choice_note,
    detect_faces,
    detection_sides,
    find_faces,
    left_out,
    moved,
    ordered,
    resized,
    select,
    turned,
)
from lafr_core.settings import RestoreSettings
from lafr_core.types import Box, Face


class MarkDetector:
    """Finds upright marks (see :func:`draw`) at least 8 pixels high, and remembers the sizes of the images it was shown."""

    name = "marks"

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.thresholds: list[float] = []

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        self.shown.append((image.shape[-2], image.shape[-1]))
        self.thresholds.append(threshold)
        found = []
        for region in regionprops(label((image[0] > 0.5).numpy())):
            y0, x0, y1, x1 = region.bbox
            patch = image[:, y0:y1, x0:x1]
            half = (y1 - y0) // 2
            upright = bool(patch[2, :half].mean() > patch[2, half:].mean() + 0.3) if half else False
            score = round(float(patch[1].median()), 2)
            if upright and y1 - y0 >= 8 and score >= threshold:
                box = (x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5)  # pixel edges
                found.append(Face(box, landmarks_in(box), score))
        return sorted(found, key=lambda face: -face.score)


def draw(size: tuple[int, int], *marks: tuple[int, int, int, float]) -> Tensor:
    """A black image (3, h, w) with marks (x, y, side, score): squares whose upper half is blue as well."""
    image = torch.zeros(3, *size)
    for x, y, side, score in marks:
        image[0, y : y + side, x : x + side] = 1
        image[1, y : y + side, x : x + side] = score
        image[2, y : y + side // 2, x : x + side] = 1
    return image


PHOTO = draw((100, 200), (10, 60, 20, 0.9), (60, 5, 40, 0.6), (150, 70, 12, 0.8))
"""Left to right: small and surest at the bottom; large and unsure at the top; tiny at the bottom right."""


def bounds(image: Tensor) -> Box:
    """Pixel edges of the only mark in the image."""
    (y0, x0), (y1, x1) = (torch.nonzero(image[0] > 0.5).aminmax(dim=0)[k].tolist() for k in (0, 1))
    return x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5


def lefts(faces: list[Face]) -> list[float]:
    return [round(face.box[0] + 0.5) for face in faces]


def find(image: Tensor, boxes: list[Box] | None = None, **options: object) -> list[Face]:
    return detect_faces(image[None], MarkDetector(), RestoreSettings(**options), boxes=None if boxes is None else [boxes])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [60, 10, 150]),
        ({"sort": "x"}, [10, 60, 150]),
        ({"sort": "y"}, [60, 10, 150]),
        ({"sort": "score"}, [10, 150, 60]),
        ({"sort": "centre"}, [60, 150, 10]),
        ({"threshold": 0.7}, [10, 150]),
        ({"min_face": 15}, [60, 10]),
        ({"min_face": 20}, [60, 10]),
        ({"max_face": 20}, [10, 150]),
        ({"min_face": 13, "max_face": 39}, [10]),
        ({"top_k": 1}, [60]),
        ({"top_k": 2, "sort": "x"}, [10, 60]),
        ({"faces": "0,2"}, [60, 150]),
        ({"faces": "2, 0"}, [60, 150]),
        ({"faces": "1", "sort": "score"}, [150]),
        ({"faces": "7"}, []),
        ({"faces": "0,2", "top_k": 2}, [60]),
    ],
)
def test_options_choose_and_order_faces(options: dict[str, object], expected: list[int]) -> None:
    assert lefts(find(PHOTO, **options)) == expected


def test_a_found_face_keeps_its_place_exactly() -> None:
    (face,) = find(PHOTO, top_k=1)
    assert face.box == (59.5, 4.5, 99.5, 44.5)
    assert face.landmarks == landmarks_in(face.box)
    assert (face.image_index, face.matrix, face.change) == (0, None, None)


def test_faces_of_a_batch_come_row_by_row() -> None:
    images = torch.stack([draw((60, 90), (50, 10, 20, 0.9)), draw((60, 90)), draw((60, 90), (5, 5, 10, 0.9), (40, 5, 30, 0.9))])
    steps: list[tuple[str, int, int]] = []
    faces = detect_faces(images, MarkDetector(), RestoreSettings(), progress=lambda *step: steps.append(step))
    assert [(face.image_index, round(face.box[0] + 0.5)) for face in faces] == [(0, 50), (2, 40), (2, 5)]
    assert steps == [("detect", 1, 3), ("detect", 2, 3), ("detect", 3, 3)]


def test_progress_can_stop_it() -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled, match="stopped"):
        detect_faces(PHOTO[None], MarkDetector(), RestoreSettings(), progress=stop)


def test_the_photo_is_left_as_it_was() -> None:
    before = PHOTO.clone()
    find(PHOTO, detect_side=128)
    assert torch.equal(PHOTO, before)


# --- scale -----------------------------------------------------------------------------------------------------------


def test_a_big_photo_is_shrunk_for_detection_and_faces_are_mapped_back() -> None:
    detector = MarkDetector()
    image = draw((600, 900), (300, 120, 150, 0.9))
    (face,) = detect_faces(image[None], detector, RestoreSettings(detect_side=256, small_faces=False))
    assert detector.shown == [(171, 256)]
    assert face.box == pytest.approx((299.5, 119.5, 449.5, 269.5), abs=4)  # a detection pixel is 3.5 photo pixels


def test_a_photo_no_bigger_than_the_detection_side_is_looked_at_once_as_it_is() -> None:
    detector = MarkDetector()
    detect_faces(PHOTO[None], detector, RestoreSettings(detect_side=256))
    assert detector.shown == [(100, 200)]


def test_small_faces_are_found_by_the_second_scale_only() -> None:
    image = draw((512, 512), (40, 40, 20, 0.9), (200, 200, 200, 0.8))  # 20 px are 5 at side 128 and 10 at side 256
    assert lefts(find(image, detect_side=128, small_faces=False)) == pytest.approx([200], abs=3)
    assert lefts(find(image, detect_side=128, small_faces=True)) == pytest.approx([200, 40], abs=3)


def test_a_face_found_at_both_scales_is_one_face() -> None:
    detector = MarkDetector()
    image = draw((512, 512), (200, 200, 200, 0.8))
    assert len(detect_faces(image[None], detector, RestoreSettings(detect_side=128))) == 1
    assert detector.shown == [(128, 128), (256, 256)]


@pytest.mark.parametrize(
    ("size", "small", "sides"),
    [
        ((100, 300), True, [300]),
        ((100, 1024), True, [1024]),
        ((100, 1500), True, [1024, 1500]),
        ((9000, 10), True, [1024, 2048]),
    ],
)
def test_detection_sides(size: tuple[int, int], small: bool, sides: list[int]) -> None:
    assert detection_sides(size, RestoreSettings(small_faces=small)) == sides
    assert detection_sides(size, RestoreSettings(small_faces=False)) == sides[:1]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_resizing_fits_any_size_and_its_matrix_maps_corners_to_corners(height: int, width: int, side: int) -> None:
    image = torch.zeros(3, height, width)
    small, matrix = resized(image, side)
    h, w = small.shape[-2:]
    assert max(h, w) == side and min(h, w) >= 1
    edges = moved(Face((-0.5, -0.5, w - 0.5, h - 0.5), landmarks_in((0, 0, 1, 1)), 1.0), matrix).box
    assert edges == pytest.approx((-0.5, -0.5, width - 0.5, height - 0.5), abs=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (20, 10000), (10000, 20)])
def test_odd_sizes_are_no_error(size: tuple[int, int]) -> None:
    assert find(torch.zeros(3, *size)) == []


# --- turns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_photo_is_found_only_when_turning_is_allowed(turns: int) -> None:
    image = torch.rot90(draw((80, 120), (20, 10, 30, 0.9)), turns, (-2, -1))
    assert find(image, rotate=False) == []
    (face,) = find(image)
    assert face.box == pytest.approx(bounds(image), abs=1e-6)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_crop_of_a_turned_face_is_upright(turns: int) -> None:
    upright = draw((80, 120), (20, 10, 30, 0.9))
    reference = crop(upright, place(find(upright)[0]))
    image = torch.rot90(upright, turns, (-2, -1))
    (face,) = find(image)
    assert torch.allclose(crop(image, place(face)), reference, atol=2e-3)


def test_turning_is_tried_only_when_nothing_was_found_upright() -> None:
    detector = MarkDetector()
    detect_faces(PHOTO[None], detector, RestoreSettings())
    assert len(detector.shown) == 1
    detector = MarkDetector()
    detect_faces(torch.zeros(1, 3, 50, 70), detector, RestoreSettings())
    assert detector.shown == [(50, 70), (70, 50), (50, 70), (70, 50)]


def test_a_face_filtered_away_does_not_start_the_turning() -> None:
    detector = MarkDetector()
    assert detect_faces(PHOTO[None], detector, RestoreSettings(min_face=90)) == []
    assert len(detector.shown) == 1


@given(st.integers(1, 3), st.integers(30, 60), st.integers(30, 60), st.integers(0, 10), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_turned_faces_map_back_for_any_size(turns: int, height: int, width: int, x: int, y: int) -> None:
    mark = draw((height, width), (x, y, 12, 0.9))
    shown = torch.rot90(mark, -turns, (-2, -1))  # turning it by `turns` shows the mark upright
    (face,) = turned(shown, turns, lambda image: MarkDetector()(image, 0.5))
    assert face.box == pytest.approx(bounds(shown), abs=1e-6)


# --- hand-given boxes ------------------------------------------------------------------------------------------------


def test_a_hand_given_box_takes_the_landmarks_found_inside_it() -> None:
    box = (55.0, 2.0, 104.0, 49.0)
    (face,) = find(PHOTO, boxes=[box])
    assert face.box == box
    assert face.score == 1.0
    expected = landmarks_in((59.5, 4.5, 99.5, 44.5))
    for point, want in zip(face.landmarks, expected, strict=True):
        assert point == pytest.approx(want, abs=1)


def test_a_box_that_covers_no_face_is_told_of_and_not_restored() -> None:
    empty, right = (110.0, 10.0, 140.0, 50.0), (55.0, 2.0, 104.0, 49.0)
    found = find_faces(PHOTO[None].repeat(2, 1, 1, 1), MarkDetector(), RestoreSettings(), boxes=[[right], [empty, right]])
    assert [(face.image_index, face.box) for face in found.faces] == [(0, right), (1, right)]
    assert found.faceless == ((1, empty),)
    assert found.counts == (1, 1)


def test_two_boxes_around_one_face_are_one_face() -> None:
    """A detector without suppression gives such boxes; the first counts. Two faces side by side stay two."""
    tight, wide, other = (59.0, 4.0, 101.0, 46.0), (50.0, 0.0, 108.0, 55.0), (9.0, 59.0, 31.0, 81.0)
    assert [face.box for face in find(PHOTO, boxes=[tight, wide])] == [tight]
    assert [face.box for face in find(PHOTO, boxes=[wide, other, tight])] == [wide, other]
    assert find_faces(PHOTO[None], MarkDetector(), RestoreSettings(), boxes=[[tight, wide, other]]).counts == (2,)


def test_the_box_that_a_browser_sends_by_itself_restores_nothing() -> None:
    """ComfyUI 0.33 sends {0, 0, 512, 512} for a box nobody drew: no face, however many small ones lie in it."""
    assert find(PHOTO, boxes=[(0.0, 0.0, 512.0, 512.0)]) == []


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, ""),
        ({"faces": "9"}, "3 found, 0 selected (Which faces)"),
        ({"faces": "0"}, "3 found, 1 selected (Which faces)"),
        ({"top_k": 1, "min_face": 3}, "3 found, 1 selected (Smallest face / At most)"),
        ({"min_face": 1000}, "3 found, 0 selected (Smallest face)"),
    ],
)
def test_what_the_settings_left_out_is_said_in_their_words(options: dict[str, Any], note: str) -> None:
    settings = RestoreSettings(**options)
    found = find_faces(PHOTO[None], MarkDetector(), settings)
    assert choice_note(found.counts[0], len(found.faces), settings) == note
    assert choice_note(0, 0, settings) == ""


def test_a_hand_given_box_finds_an_unsure_face_that_the_search_would_drop() -> None:
    image = draw((100, 100), (30, 30, 30, 0.3))
    assert find(image) == []
    (face,) = find(image, boxes=[(28.0, 28.0, 62.0, 62.0)])
    assert face.landmarks[0] == pytest.approx(landmarks_in((29.5, 29.5, 59.5, 59.5))[0], abs=1)


def test_a_hand_given_box_around_an_upside_down_face_turns_only_when_allowed() -> None:
    image = torch.rot90(draw((100, 100), (30, 40, 30, 0.9)), 2, (-2, -1))
    box = (38.0, 28.0, 72.0, 62.0)
    (face,) = find(image, boxes=[box])
    assert face.landmarks[0][1] > face.landmarks[3][1]  # the eyes lie below the mouth
    assert find(image, boxes=[box], rotate=False) == []


def test_hand_given_boxes_are_ordered_and_filtered_like_found_faces() -> None:
    boxes = [(9.0, 59.0, 31.0, 81.0), (59.0, 4.0, 101.0, 46.0)]
    assert [face.box for face in find(PHOTO, boxes=boxes)] == [boxes[1], boxes[0]]
    assert [face.box for face in find(PHOTO, boxes=boxes, sort="x")] == boxes
    assert [face.box for face in find(PHOTO, boxes=boxes, max_face=30)] == boxes[:1]
    assert find(PHOTO, boxes=[]) == []


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5.0, 5.0, 5.0, 9.0), "x0 < x1"),
        ((9.0, 5.0, 5.0, 9.0), "x0 < x1"),
        ((300.0, 5.0, 320.0, 9.0), "touches the photo of 200x100"),
        ((-20.0, 5.0, -1.0, 9.0), "touches the photo"),
        ((0.0, float("nan"), 5.0, 9.0), "finite"),
        ((0.0, 1.0, 5.0), "four"),
    ],
)
def test_a_box_that_is_none_is_refused(box: Box, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find(PHOTO, boxes=[box])


def test_boxes_must_be_given_for_every_photo() -> None:
    with pytest.raises(InputError, match=r"one list of boxes a photo \(1\), got 2"):
        detect_faces(PHOTO[None], MarkDetector(), RestoreSettings(), boxes=[[], []])


def test_images_must_be_a_batch() -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        detect_faces(PHOTO, MarkDetector(), RestoreSettings())


def test_a_hand_given_box_may_reach_over_the_border() -> None:
    face = (85.0, 45.0, 115.0, 75.0)
    (found,) = find(draw((100, 100), (80, 40, 40, 0.9)), boxes=[(70.0, 35.0, 110.0, 85.0)])
    assert found.box == (70.0, 35.0, 110.0, 85.0)
    assert find(PHOTO, boxes=[(190.0, 90.0, 260.0, 170.0), face]) == []


# --- details ---------------------------------------------------------------------------------------------------------


class FixedDetector:
    """Finds the same faces in every image."""

    name = "fixed"

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def __call__(self, image: Tensor, threshold: float) -> list[Face]:
        return self.faces


def test_landmarks_no_crop_can_be_made_from_are_dropped() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    point = (3.0, 3.0)
    coincide = Face(box, (point, point, point, point, point), 0.9)
    broken = Face((20.0, 0.0, 30.0, 10.0), ((float("nan"), 0.0), *landmarks_in(box)[1:]), 0.9)  # type: ignore[arg-type]
    good = Face((40.0, 0.0, 50.0, 10.0), landmarks_in((40.0, 0.0, 50.0, 10.0)), 0.8)
    assert detect_faces(torch.zeros(1, 3, 20, 60), FixedDetector(coincide, broken, good), RestoreSettings()) == [good]


def test_a_detector_that_ignores_the_threshold_is_held_to_it() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    face = Face(box, landmarks_in(box), 0.4)
    images = torch.zeros(1, 3, 20, 20)
    assert detect_faces(images, FixedDetector(face), RestoreSettings(rotate=False)) == []
    assert detect_faces(images, FixedDetector(face), RestoreSettings(rotate=False, threshold=0.4)) == [face]


def test_equal_faces_stay_from_top_to_bottom() -> None:
    faces = [
        Face((x, y, x + 9.0, y + 9.0), landmarks_in((x, y, x + 9.0, y + 9.0)), 0.5)
        for x, y in ((30.0, 40.0), (9.0, 5.0), (1.0, 40.0))
    ]
    for sort in ("area", "score"):
        assert [face.box[:2] for face in ordered(faces, (100, 100), sort)] == [(9.0, 5.0), (1.0, 40.0), (30.0, 40.0)]


def test_selecting_from_nothing_is_nothing() -> None:
    assert select([], (10, 10), RestoreSettings(top_k=3, faces="0")) == []


def test_what_was_left_out_is_told_of_each_photo_for_itself() -> None:
    first, second = face_at(1, 2, 60), replace(face_at(3, 4, 60), image_index=1)
    boxes = [(0, (1.0, 2.0, 3.0, 4.0)), (1, (5.5, 6.0, 7.0, 1234567.0))]
    chosen = RestoreSettings(top_k=1, min_face=5)
    told = [left_out([first, second], [3, 1], boxes, row, chosen) for row in (0, 1)]
    assert told == [
        ("3 found, 1 selected (Smallest face / At most)", "box 1, 2, 3, 4: no face in it, left alone"),
        ("box 5.5, 6, 7, 1.23457e+06: no face in it, left alone",),
    ]
    assert left_out([first], [], [], 0, chosen) == left_out([], [0], [], 0, chosen) == ()
