"""What is averaged over time, and what is not."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.video.steady import calmed, resized, without_lattice


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
