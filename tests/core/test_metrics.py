"""PSNR and SSIM against hand computation and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lafr_core.errors import InputError
from lafr_core.images.metrics import psnr, ssim


def pictures(seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ramp = torch.linspace(0, 1, 37).expand(2, 3, 29, 37)
    a = (ramp * 0.8 + 0.2 * torch.rand(2, 3, 29, 37, generator=generator)).clamp(0, 1)
    b = (a + 0.1 * torch.randn(2, 3, 29, 37, generator=generator)).clamp(0, 1)
    return a, b


def test_psnr_of_a_constant_error_is_hand_computable() -> None:
    a = torch.full((2, 3, 4, 5), 0.5)
    b = a.clone()
    b[0] += 0.1  # mse 0.01 -> 20 dB
    b[1] += 0.01  # mse 1e-4 -> 40 dB
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_identical_pictures() -> None:
    a, _ = pictures()
    assert psnr(a, a).tolist() == [math.inf, math.inf]
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_both_agree_with_scikit_image_row_by_row() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = pictures()
    for row in range(2):
        x, y = (t[row].permute(1, 2, 0).double().numpy() for t in (a, b))
        expected = metrics.structural_similarity(
            x, y, channel_axis=2, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert float(ssim(a, b)[row]) == pytest.approx(expected, abs=1e-9)
        assert float(psnr(a, b)[row]) == pytest.approx(metrics.peak_signal_noise_ratio(x, y, data_range=1.0), abs=1e-9)


def test_ssim_sees_lost_structure_that_psnr_does_not() -> None:
    """Same mean squared error: a brightness shift keeps the structure, noise destroys it."""
    a, _ = pictures()
    a = a * 0.5 + 0.2
    shifted = a + 0.1
    sign = torch.from_numpy(np.random.default_rng(0).choice([-0.1, 0.1], a.shape)).float()
    noisy = a + sign
    assert psnr(a, shifted).tolist() == pytest.approx(psnr(a, noisy).tolist(), abs=1e-4)
    assert bool((ssim(a, shifted) > ssim(a, noisy) + 0.2).all())


def test_wrong_shapes_are_named() -> None:
    a, _ = pictures()
    with pytest.raises(InputError, match=r"expected two equal batches .* got \(2, 3, 29, 37\) and \(2, 3, 29, 36\)"):
        psnr(a, a[..., :-1])
    with pytest.raises(InputError, match="at least 11x11"):
        ssim(a[..., :10], a[..., :10])
