"""The schedule is Stable Diffusion's, and predictions convert there and back."""

from __future__ import annotations

import pytest
import torch

from lafr_core.errors import InputError
from lafr_core.latent import prediction

KINDS: tuple[prediction.Prediction, ...] = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize(("timestep", "sigma"), [(0, 0.0292), (199, 0.5693), (399, 1.1606), (499, 1.6129), (999, 14.6146)])
def test_noise_levels_are_those_comfyui_samples_with(timestep: int, sigma: float) -> None:
    assert prediction.sigma_at(timestep) == pytest.approx(sigma, abs=6e-5)


def test_schedule_is_diffusers_scaled_linear() -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.allclose(prediction.alphas_cumprod().float(), scheduler.alphas_cumprod, atol=1e-6)


def test_both_kinds_name_the_same_clean_latent() -> None:
    """v = sqrt(alpha) noise - sqrt(1 - alpha) x0: a noised x0 comes back from either prediction."""
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(1, 4, 2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = float(prediction.alphas_cumprod()[399])
    x_t = alpha**0.5 * x0 + (1 - alpha) ** 0.5 * noise
    v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * x0
    assert torch.allclose(prediction.to_sample(noise, x_t, alpha, "epsilon"), x0, atol=1e-12)
    assert torch.allclose(prediction.to_sample(v, x_t, alpha, "v_prediction"), x0, atol=1e-12)


def test_one_step_feeds_the_latent_itself() -> None:
    seen = {}

    def unet(x_t: torch.Tensor) -> torch.Tensor:
        seen["x"] = x_t
        return 0.25 * x_t

    z = torch.arange(24, dtype=torch.float64).reshape(2, 4, 1, 3)
    alpha = float(prediction.alphas_cumprod()[399])
    out = prediction.one_step(unet, z, 399, "epsilon")
    assert seen["x"] is z
    assert torch.allclose(out, z * (1 - 0.25 * (1 - alpha) ** 0.5) / alpha**0.5)


def test_mistakes_are_named() -> None:
    z = torch.zeros(1, 4, 1, 1)
    with pytest.raises(InputError, match="timestep: expected 0 to 999, got 1000"):
        prediction.sigma_at(1000)
    with pytest.raises(InputError, match="timestep: expected 0 to 999, got -1"):
        prediction.one_step(lambda x: x, z, -1, "epsilon")
    with pytest.raises(InputError, match="prediction: expected epsilon"):
        prediction.to_sample(z, z, 0.5, "eps")  # type: ignore[arg-type]
    assert prediction.to_sample(z + 2, z, 0.5, "sample").tolist() == (z + 2).tolist()
