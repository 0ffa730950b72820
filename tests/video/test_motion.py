"""Motion between two frames, measured on pixels: exact where it is known, silent where the frames show different things."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from fakes import face_at
from torch import Tensor
from torch.nn import functional as F

from lafr_core.types import Face
from lafr_core.video.motion import Motion, between, glimpse


def picture(seed: int = 2) -> Tensor:
    """A smooth random scene (3, 120, 140)."""
    noise = torch.randn((1, 3, 16, 18), generator=torch.Generator().manual_seed(seed))
    return (0.5 + 0.16 * F.interpolate(noise, size=(120, 140), mode="bicubic", align_corners=False)[0]).clamp(0, 1)


def moved(scene: Tensor, motion: Motion) -> Tensor:
    """The scene after everything in it has moved so."""
    height, width = scene.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij")
    back = motion.inverse()
    seen = back.turn * torch.complex(x, y) + back.shift
    grid = torch.stack([(seen.real + 0.5) * 2 / width - 1, (seen.imag + 0.5) * 2 / height - 1], -1).float()
    return F.grid_sample(scene[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0].clamp(0, 1)


FACE = face_at(38, 30, 60)
CENTRE = complex(68, 60)


def about(turn: complex, shift: complex) -> Motion:
    return Motion(turn, CENTRE + shift - turn * CENTRE)


@pytest.mark.parametrize(
    "motion",
    [
        Motion(),
        about(1, 1.7 - 2.3j),
        about(cmath.exp(0.05j), 0.6j),
        about(1.04, -0.8),
        about(0.97 * cmath.exp(-0.04j), 1.5 + 1j),
    ],
)
def test_the_motion_of_the_pixels_is_found_whatever_the_landmarks_say(motion: Motion) -> None:
    """The second frame's landmarks are some pixels off: the result does not know."""
    scene = picture()
    found = between(glimpse(scene, FACE), glimpse(moved(scene, motion) * 0.9 + 0.03, face_at(39.2, 29.1, 61)))
    assert found is not None
    for corner in (CENTRE, CENTRE + 20, CENTRE - 15j):
        assert abs(found(corner) - motion(corner)) < 0.12


def test_other_scenes_and_empty_ones_give_no_motion() -> None:
    assert between(glimpse(picture(2), FACE), glimpse(picture(9), FACE)) is None
    flat = torch.full((3, 120, 140), 0.5)
    assert between(glimpse(flat, FACE), glimpse(flat, FACE)) is None


def test_motions_compose_as_maps_do() -> None:
    a, b, point = Motion(1 + 0.2j, 3 - 1j), Motion(0.9j, 2 + 5j), 4 - 7j
    assert cmath.isclose(a.then(b)(point), b(a(point))) and cmath.isclose(a.inverse()(a(point)), point)


def test_a_face_is_seen_at_its_own_landmarks() -> None:
    """The glimpse's map takes the five points near the template's, in crop pixels."""
    small = glimpse(picture(), FACE)
    eyes = [small.to_crop(complex(*point)) for point in FACE.landmarks[:2]]
    assert isinstance(FACE, Face) and math.isclose(abs(eyes[1] - eyes[0]), 126 * 96 / 512, rel_tol=0.2)
