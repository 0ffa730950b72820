"""The starter networks in the shape of a host MODEL and VAE.

The starter prior is no diffusion UNet: it finishes a latent in one step and knows no noise. So its MODEL is a real
ModelPatcher around a real BaseModel (LoRA loaders, guidance patches and previews treat it as any other) whose
``apply_model`` is the prior, and which only the Identity-Guided Sampler's one-step mode may call. Wired to any other
sampler it says so in one sentence: sampling it in steps would run, and give mush. The VAE is a comfy VAE whose network is
ours: every stock node can use it.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import torch
from torch import Tensor, nn

from ..lafr_core.errors import InputError
from ..lafr_core.latent.spec import family
from .host import trust_vae
from .memory import Managed, WholePatcher, modules_of, whole

ONE_STEP = "lafr_one_step"
"""Key in transformer_options by which our one-step sampler makes itself known to the starter model."""

ONE_STEP_ONLY = (
    "MODEL: the starter prior restores in one step and cannot be sampled in several; use the Identity-Guided Sampler in "
    "one-step mode, or load an SD 1.5 or 2.1 checkpoint for this sampler"
)


class StarterModel(comfy.model_base.BaseModel):  # type: ignore[misc]
    """The starter prior behind ComfyUI's denoiser interface, SD latent format."""

    def __init__(self, prior: Any) -> None:
        config = comfy.supported_models.SD15({"context_dim": 768, "in_channels": 4, "disable_unet_model_creation": True})
        config.set_inference_dtype(torch.float32, None)
        super().__init__(config, device=mm.unet_offload_device())
        self.prior = prior
        self.diffusion_model = nn.ModuleList(modules_of(prior))  # what the host moves between devices

    def apply_model(self, x: Tensor, t: Tensor, *args: Any, transformer_options: Any = None, **kwargs: Any) -> Tensor:
        """x0 of a latent in sigma form (B, 4, h, w), as the base class. Raises InputError outside our one-step sampler."""
        if not (transformer_options or {}).get(ONE_STEP):
            raise InputError(ONE_STEP_ONLY)
        return self.prior(self.model_sampling.calculate_input(t, x)).to(x)

    def get_dtype(self) -> torch.dtype:
        return torch.float32

    def get_dtype_inference(self) -> torch.dtype:  # asked by newer hosts
        return torch.float32


def starter_model(prior: Managed) -> WholePatcher:
    """A MODEL whose one step is the starter prior."""
    with torch.inference_mode(False):
        return whole(StarterModel(prior.call))


def is_starter(model: Any) -> bool:
    return isinstance(model.model, StarterModel)


class _Autoencoder(nn.Module):
    """The starter VAE as the host calls its first stage: pixels in [-1, 1], raw latents. Decoding is not clamped here."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.network = vae.network
        self.spec = family("sd")

    def encode(self, pixels: Tensor) -> Tensor:
        return self.spec.to_raw(self.network.encoder(pixels * 0.5 + 0.5))

    def decode(self, latents: Tensor, **_: Any) -> Tensor:
        return self.network.decoder(self.spec.to_scaled(latents)) * 2 - 1


class StarterHostVae(comfy.sd.VAE):  # type: ignore[misc]
    """A comfy VAE whose network is the starter autoencoder.

    The host fills in its own bookkeeping, which differs between versions, as for an untrained TAESD, whose interface ours
    shares; then the network is exchanged.
    """

    def __init__(self, vae: Managed) -> None:
        with torch.inference_mode(False):
            stand_in = comfy.taesd.taesd.TAESD(latent_channels=4).state_dict()
            super().__init__(sd=stand_in, dtype=torch.float32)
            self.first_stage_model = _Autoencoder(vae.call)
            self.patcher = whole(self.first_stage_model)
        trust_vae(self)
