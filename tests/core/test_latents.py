"""Latent spaces: numbers from the model families, exact round trips, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lafr_core.errors import InputError
from lafr_core.latent.spec import FAMILIES, family
from lafr_core.types import LatentSpec


@pytest.mark.parametrize(
    ("name", "channels", "scale", "shift"),
    [("sd", 4, 0.18215, 0.0), ("sdxl", 4, 0.13025, 0.0), ("sd3", 16, 1.5305, 0.0609), ("flux", 16, 0.3611, 0.1159)],
)
def test_the_published_numbers(name: str, channels: int, scale: float, shift: float) -> None:
    spec = family(name)
    assert (spec.channels, spec.factor, spec.scale, spec.shift) == (channels, 8, scale, shift)
    assert spec is FAMILIES[name] and spec.name == name


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_grays_tell_families_of_one_shape_apart(name: str) -> None:
    spec = family(name)
    assert len(spec.gray) == spec.channels
    for other in FAMILIES.values():
        if other is not spec and other.channels == spec.channels:
            assert (torch.tensor(spec.gray) - torch.tensor(other.gray)).norm() > 1


def test_scaled_is_raw_minus_shift_times_scale() -> None:
    spec = LatentSpec("toy", channels=1, factor=8, scale=0.5, shift=3.0)
    raw = torch.tensor([[[[3.0, 5.0]]]])
    assert spec.to_scaled(raw).tolist() == [[[[0.0, 1.0]]]]
    assert spec.to_raw(torch.tensor([[[[0.0, 1.0]]]])).tolist() == raw.tolist()


@given(st.sampled_from(sorted(FAMILIES)), st.floats(-30, 30))
def test_there_and_back(name: str, value: float) -> None:
    spec = family(name)
    raw = torch.full((1, spec.channels, 2, 2), value, dtype=torch.float64)
    assert torch.allclose(spec.to_raw(spec.to_scaled(raw)), raw, rtol=1e-12, atol=1e-12)


def test_check_passes_good_latents_through() -> None:
    good = torch.zeros(2, 4, 5, 7, dtype=torch.float16)
    assert family("sd").check(good) is good


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (
            torch.zeros(1, 16, 8, 8),
            r"z: expected \(B, 4, h, w\) for the sd latent space, got \(1, 16, 8, 8\); use a VAE of the same family",
        ),
        (torch.zeros(4, 8, 8), r"z: expected \(B, 4, h, w\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.int64), "z: expected a floating tensor, got torch.int64; convert"),
        (torch.full((1, 4, 8, 8), float("inf")), "z: contain NaN or infinite values; check the VAE's dtype"),
    ],
)
def test_check_refuses(latents: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        family("sd").check(latents, "z")


def test_unknown_family() -> None:
    with pytest.raises(InputError, match="latent family: expected one of sd, sdxl, sd3, flux, got 'sd4'"):
        family("sd4")
