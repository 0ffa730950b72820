"""What a Stable Diffusion UNet predicts, and how that becomes a clean latent.

Notation: ``alpha`` is the cumulative product of 1 - beta at a timestep, x_t = sqrt(alpha) x0 + sqrt(1 - alpha) noise
(Ho et al., "Denoising Diffusion Probabilistic Models", 2020, eq. 4). ``sigma`` = sqrt((1 - alpha) / alpha) is the same
noise level for x0 + sigma noise (Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
2022), the form ComfyUI and Forge sample in; the UNet itself is always fed x_t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError

Prediction = Literal["epsilon", "v_prediction", "sample"]
"""What the network's output means, named as diffusers' ``prediction_type``."""

TIMESTEPS = 1000


def alphas_cumprod(timesteps: int = TIMESTEPS, beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """(timesteps,) float64: Stable Diffusion's "scaled linear" schedule, betas linear in their square roots.

    Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022; values of the v1 config
    (``linear_start`` 0.00085, ``linear_end`` 0.012), the same for SD 1.x and 2.x.
    """
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def sigma_at(timestep: int) -> float:
    """Noise level of an SD timestep 0..999. Raises InputError outside."""
    if not 0 <= timestep < TIMESTEPS:
        raise InputError(f"timestep: expected 0 to {TIMESTEPS - 1}, got {timestep}")
    alpha = float(alphas_cumprod()[timestep])
    return float(((1.0 - alpha) / alpha) ** 0.5)


def to_sample(output: Tensor, x_t: Tensor, alpha: float, prediction: Prediction) -> Tensor:
    """Network output -> x0, same shape and dtype.

    epsilon: (x_t - sqrt(1 - alpha) eps) / sqrt(alpha), Ho et al. 2020, eq. 15.
    v_prediction: sqrt(alpha) x_t - sqrt(1 - alpha) v, Salimans and Ho, "Progressive Distillation for Fast Sampling of
    Diffusion Models", 2022, appendix D.
    """
    if prediction == "epsilon":
        return (x_t - (1.0 - alpha) ** 0.5 * output) / alpha**0.5
    if prediction == "v_prediction":
        return alpha**0.5 * x_t - (1.0 - alpha) ** 0.5 * output
    if prediction == "sample":
        return output
    raise InputError(f"prediction: expected epsilon, v_prediction or sample, got {prediction!r}")


def one_step(network: Callable[[Tensor], Tensor], latents: Tensor, timestep: int, prediction: Prediction) -> Tensor:
    """Restore in one UNet evaluation: the latent itself is fed as x_t, nothing is added and nothing scaled.

    ``network`` is the UNet at that timestep and its text: UNet-scaled latents (B, C, h, w) -> its prediction, same shape. It
    is the contract the prior's LoRA is trained for; hosts that sample in sigma form pass x = latents * sqrt(1 + sigma^2) to
    reach the same input. Raises InputError for a timestep outside 0 to 999.
    """
    if not 0 <= timestep < TIMESTEPS:
        raise InputError(f"timestep: expected 0 to {TIMESTEPS - 1}, got {timestep}")
    return to_sample(network(latents), latents, float(alphas_cumprod()[timestep]), prediction)
