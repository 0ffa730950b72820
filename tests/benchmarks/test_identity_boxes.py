"""The boxes without a face that trust is tried on, and the figures its tables print."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import identity


def test_a_box_without_a_face_lies_off_the_face_or_shows_a_bit_of_skin() -> None:
    pixels = np.zeros((704, 704, 3), dtype=np.uint8)
    eyes_and_mouth = np.asarray([(300.0, 300.0), (400.0, 300.0), (350.0, 350.0), (310.0, 400.0), (390.0, 400.0)])
    pixels[300:400, 300:400] = 255
    for seed in range(20):
        crop = identity.no_face(pixels, eyes_and_mouth, np.random.default_rng(seed))
        assert crop.shape == (3, 512, 512)
        border = torch.cat([crop[:, 0], crop[:, -1], crop[:, :, 0], crop[:, :, -1]], dim=1)
        assert not (crop.max() > 0.9 and border.max() < 0.5)  # never the whole bright face amid the dark
        assert torch.equal(crop, identity.no_face(pixels, eyes_and_mouth, np.random.default_rng(seed)))


def test_a_box_of_a_picture_without_faces_lies_inside_it() -> None:
    pixels = np.full((90, 130, 3), 255, dtype=np.uint8)
    pixels[:, :40] = 0
    crops = [identity.anywhere(pixels, np.random.default_rng(seed)) for seed in range(12)]
    assert all(crop.shape == (3, 512, 512) and crop.min() >= 0 and crop.max() <= 1 for crop in crops)
    assert len({round(float(crop.mean()), 3) for crop in crops}) > 6


def test_rank_correlation_by_hand() -> None:
    a = np.asarray([1.0, 2.0, 3.0, 4.0])
    assert identity.rank_correlation(a, a**3) == pytest.approx(1.0)
    assert identity.rank_correlation(a, np.asarray([1.0, 3.0, 2.0, 9.0])) == pytest.approx(1 - 6 * 2 / (4 * 15))
