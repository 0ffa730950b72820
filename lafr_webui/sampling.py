"""Finishing aligned latents with a host's UNet in one step or several. Knows no host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lafr_core.types import LatentSpec

Poll = Callable[[], None]
"""Raises :class:`lafr_core.errors.Cancelled` when the user asked to stop."""


class Denoiser(Protocol):
    """A diffusion UNet with an empty prompt, seen as an estimator of the clean latent."""

    spec: LatentSpec

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """Noisy latents x_t = sqrt(alpha) x0 + sqrt(1 - alpha) noise (B, C, h, w), UNet-scaled -> the estimate of x0."""
        ...

    def alpha(self, timestep: int) -> float:
        """The cumulative product of 1 - beta at ``timestep``, in (0, 1)."""
        ...


@dataclass(frozen=True)
class OneStep:
    """One evaluation at a fixed timestep: the aligned latent itself is fed as x_t (the paper's prior)."""

    denoiser: Denoiser
    timestep: int

    def __call__(self, latents: Tensor, crops: Tensor) -> Tensor:
        return self.denoiser(latents, self.timestep)


@dataclass(frozen=True)
class FewSteps:
    """Partial denoise: noise at level ``denoise``, then deterministic DDIM down to the clean latent.

    Song et al., "Denoising Diffusion Implicit Models", 2021, eq. 12 with sigma 0.
    """

    denoiser: Denoiser
    steps: int
    denoise: float
    seed: int
    poll: Poll = lambda: None

    def __call__(self, latents: Tensor, crops: Tensor) -> Tensor:
        timesteps = self.timesteps()
        x = self.noised(latents, timesteps[0])
        for now, then in zip(timesteps, [*timesteps[1:], None], strict=True):
            self.poll()
            x0 = self.denoiser(x, now)
            x = x0 if then is None else self._towards(x0, x, now, then)
        return x

    def timesteps(self) -> list[int]:
        """Falling, without repeats, ``steps`` of them where the start leaves room; the last one ends in the clean latent."""
        start = max(1, round(self.denoise * 999))
        return sorted({max(1, round(start * (self.steps - i) / self.steps)) for i in range(self.steps)}, reverse=True)

    def noised(self, latents: Tensor, timestep: int) -> Tensor:
        """Every row gets the same noise, so a face's result does not depend on which faces share its batch."""
        generator = torch.Generator("cpu").manual_seed(self.seed)
        noise = torch.randn(latents.shape[1:], generator=generator).to(latents)
        alpha = self.denoiser.alpha(timestep)
        return alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise

    def _towards(self, x0: Tensor, x: Tensor, now: int, then: int) -> Tensor:
        alpha, next_alpha = self.denoiser.alpha(now), self.denoiser.alpha(then)
        noise = (x - alpha**0.5 * x0) / (1 - alpha) ** 0.5
        return next_alpha**0.5 * x0 + (1 - next_alpha) ** 0.5 * noise
