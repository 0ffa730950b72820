"""What is averaged over time, and what is not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.video.steady import calmed, flow_between, fuse, resized, warp, without_lattice


def scene(seed: int, side: int = 128, fine: int = 16) -> Tensor:
    noise = torch.randn((1, 3, fine, fine), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)[0]


def test_a_lattice_goes_and_everything_else_stays() -> None:
    generator = torch.Generator().manual_seed(1)
    pattern = 0.006 * torch.randn((3, 8, 8), generator=generator)
    pattern = pattern - pattern.mean((1, 2), keepdim=True)
    lattice = pattern.repeat(1, 16, 16)
    broad = 0.1 * scene(2, fine=5)
    texture = 0.01 * torch.randn((3, 128, 128), generator=generator)
    spot = torch.zeros(3, 128, 128)
    spot[:, 60:64, 60:64] = 0.3
    inside = (..., slice(24, 104), slice(24, 104))
    for other in (broad, texture, spot):
        cleaned = without_lattice((other + lattice)[None], 8)[0]
        left = (cleaned - other)[inside].square().mean().sqrt()
        assert float(left) < 0.35 * float(lattice.square().mean().sqrt())
    untouched = without_lattice(broad[None], 8)[0]
    assert float((untouched - broad)[inside].abs().max()) < 0.004


def test_changes_are_averaged_where_the_frames_agree_and_not_where_they_differ() -> None:
    clean = (0.5 + 0.1 * scene(3)).clamp(0, 1).repeat(7, 1, 1, 1)
    clean[3, :, 40:72, 40:72] = 0.05  # what only the middle frame shows
    changes = torch.zeros(7, 3, 128, 128)
    changes[3] = 0.7
    calm = calmed(changes, clean, 3, 0.7)
    assert float(calm[:, 100:110, 100:110].mean()) < 0.2 and float(calm[:, 50:62, 50:62].mean()) > 0.6
    assert torch.equal(calmed(changes, clean, 3, 0.0), changes[3]) and torch.equal(
        calmed(changes[:1], clean[:1], 0, 0.7), changes[0]
    )
    small = calmed(resized(changes, 64), clean, 3, 0.7)
    assert small.shape == (3, 64, 64) and float(small[:, 50:55, 50:55].mean()) < 0.2


def test_resizing_keeps_means_and_sizes() -> None:
    images = scene(4)[None]
    assert resized(images, 128) is images
    assert torch.allclose(resized(images, 64).mean((2, 3)), images.mean((2, 3)), atol=1e-2)
    assert resized(images, 256).shape == (1, 3, 256, 256)


def test_motion_is_followed_and_grain_is_not() -> None:
    generator = torch.Generator().manual_seed(5)
    face = (0.5 + 0.05 * scene(5, side=64, fine=12)).clamp(0, 1)[None]
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    broad = torch.exp(-(((x - 32) ** 2 + (y - 36) ** 2) / 18**2))
    true = torch.stack([0.5 * broad, -0.3 * broad])[None]
    moved = warp(face, -true)  # what stands at p in the one stands near p + true in the other

    def error(noise: float) -> float:
        grain = noise * torch.randn((2, 3, 64, 64), generator=generator)
        found = flow_between(face + grain[:1], moved + grain[1:])
        return float((found - true)[..., 12:52, 12:52].square().mean().sqrt())

    assert error(0.0) < 0.05 and error(0.01) < 0.075  # in cells; standing still would be 0.24 off


def light_over(levels: list[float]) -> list[float]:
    """The brightness that each frame of a scene comes out with, which comes in with ``levels``."""
    picture = 0.4 + 0.05 * scene(6)
    crops = torch.stack([picture + level for level in levels])
    out = [fuse(crops[max(0, k - 3) : k + 4], min(k, 3), 0.7) for k in range(len(crops))]
    return [float((frame - picture).mean()) for frame in out]


def test_light_keeps_its_course_and_does_not_tremble() -> None:
    trembling = light_over([0.004 * (-1) ** k for k in range(11)])
    assert max(abs(level) for level in trembling[3:8]) < 0.0015
    growing = [0.003 * k for k in range(11)]
    assert max(abs(a - b) for a, b in zip(light_over(growing), growing, strict=True)) < 1e-4
    switched = [0.0] * 5 + [0.05] * 6
    assert max(abs(a - b) for a, b in zip(light_over(switched), switched, strict=True)) < 1e-3


def test_eyes_and_mouth_take_less_from_frames_that_differ() -> None:
    """A small difference that passes for noise on a cheek is a lid half closed in an eye."""
    noise = 0.02 * torch.randn((7, 3, 128, 128), generator=torch.Generator().manual_seed(7))
    picture = 0.5 + 0.05 * scene(7)

    def taken(y: int, x: int) -> float:
        crops = (picture + noise).clamp(0, 1)
        spot = (slice(None), slice(y - 4, y + 4), slice(x - 6, x + 6))
        crops[3][spot] += 0.012 * torch.tensor([1.0, -1.0]).repeat(6)
        crops[3] = crops[3].clamp(0, 1)
        out = fuse(crops, 3, 0.7)
        return float((out - crops[3])[spot].abs().mean())

    eye, mouth, cheek = taken(60, 48), taken(93, 64), taken(80, 100)
    assert max(eye, mouth) < 0.8 * cheek
