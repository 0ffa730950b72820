"""Forge's loaded checkpoint as our Vae and Denoiser.

Forge loads and runs its models under inference mode, and merges LoRAs into the weights in place, which torch only allows
there. So host calls run under inference mode here too, and what leaves this file is cloned into an ordinary tensor.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from lafr_core.errors import CheckpointError
from lafr_core.latent.guidance import ordinary
from lafr_core.latent.spec import FAMILIES
from lafr_core.types import LatentSpec

SPEC = FAMILIES["sd"]


class ForgeVae:
    """``forge_objects.vae`` behind :class:`lafr_core.types.Vae`. Works on a clone, so the host's options stay as they are."""

    def __init__(self, vae: Any, spec: LatentSpec = SPEC) -> None:
        self.vae, self.spec = vae.clone(), spec
        # Without this the host draws a sample from the posterior: two encodes of one picture would differ.
        self.vae.patcher.model_options["model_vae_regulation"] = lambda posterior: posterior.mode()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> UNet-scaled latents, the posterior's mode."""
        with torch.inference_mode():
            raw = self.vae.encode(pixels.movedim(1, -1))
            latents = self.vae.first_stage_model.process_in(raw)
        return _finite(latents.clone().float()).to(pixels.device)

    def decode(self, latents: Tensor) -> Tensor:
        """UNet-scaled latents -> (B, 3, H, W) in [0, 1]."""
        with torch.inference_mode():
            image = self.vae.decode(self.vae.first_stage_model.process_out(latents))
        return _finite(image.clone().float().movedim(-1, 1)).to(latents.device)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """As :meth:`decode`, unclamped and differentiable: the network itself, loaded by the host, its weights made
        ordinary.
        """
        from backend import memory_management

        network, dtype = self.vae.first_stage_model, self.vae.vae_dtype
        with torch.inference_mode():
            # A backward pass keeps what the forward pass made: about three times the memory of decoding.
            needed = 3 * self.vae.memory_used_decode(latents.shape, dtype)
            memory_management.load_models_gpu([self.vae.patcher], memory_required=needed)
        ordinary(network)
        image = network.decode(network.process_out(latents).to(self.vae.device, dtype))
        return image.float().to(latents.device) * 0.5 + 0.5


class ForgeDenoiser:
    """``forge_objects.unet`` with an empty prompt behind :class:`~lafr_webui.sampling.Denoiser`."""

    def __init__(self, unet: Any, context: Tensor, spec: LatentSpec = SPEC) -> None:
        self.unet, self.context, self.spec = unet, context, spec
        self.predictor = unet.model.predictor

    def alpha(self, timestep: int) -> float:
        return 1.0 / (1.0 + self._sigma(timestep) ** 2)

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """``apply_model`` works on x0 + sigma * noise, divides by sqrt(1 + sigma^2) itself, and returns x0 for eps and v
        alike.
        """
        from backend.sampling.sampling_function import sampling_cleanup, sampling_prepare

        sigma = self._sigma(timestep)
        with torch.inference_mode():
            x = (x_t * (1.0 + sigma**2) ** 0.5).to(self.unet.load_device)
            sampling_prepare(self.unet, x)
            try:
                x0 = self.unet.model.apply_model(
                    x,
                    torch.full((x.shape[0],), sigma, device=x.device),
                    c_crossattn=self.context.expand(x.shape[0], -1, -1).to(x.device),
                    transformer_options=self.unet.model_options.get("transformer_options", {}),
                )
            finally:
                sampling_cleanup(self.unet)
        return _finite(x0.clone().float()).to(x_t.device)

    def _sigma(self, timestep: int) -> float:
        return float(self.predictor.sigma(torch.tensor([float(timestep)])))


def current_model() -> Any:
    """The checkpoint chosen in the webui, loaded when it is not yet: before the first generation Forge only holds a
    placeholder.

    Raises CheckpointError when none can be had.
    """
    from modules import sd_models

    try:
        if not sd_models.model_data.forge_loading_parameters:
            from modules_forge import main_entry

            main_entry.refresh_model_loading_parameters()
        model, _ = sd_models.forge_model_reload()
    except Exception as error:
        raise CheckpointError(f"checkpoint: Forge cannot load one ({error}); choose an SD 1.x/2.x checkpoint") from error
    return model


def check(sd_model: Any) -> None:
    """Raise CheckpointError unless the model is an SD 1.x/2.x text-to-image checkpoint."""
    objects = getattr(sd_model, "forge_objects", None)
    if objects is None:
        raise CheckpointError("checkpoint: none is loaded; load an SD 1.x/2.x checkpoint")
    channels, scale = objects.vae.latent_channels, float(objects.vae.first_stage_model.scaling_factor)
    if channels != SPEC.channels or abs(scale - SPEC.scale) > 1e-4:
        raise CheckpointError(
            f"checkpoint: expected SD 1.x/2.x ({SPEC.channels} latent channels, scale {SPEC.scale}), "
            f"got {channels} channels, scale {scale:g}; load another one"
        )
    inputs = getattr(objects.unet.model.diffusion_model, "in_channels", SPEC.channels)
    if inputs != SPEC.channels:
        raise CheckpointError(f"checkpoint: expected a UNet with {SPEC.channels} input channels, got {inputs} (inpainting?)")


def pristine(sd_model: Any) -> Any:
    """The model's objects without what the last generation put on them (LoRAs, ControlNet)."""
    return getattr(sd_model, "forge_objects_original", None) or sd_model.forge_objects


def empty_prompt(sd_model: Any) -> Tensor:
    """(1, tokens, width): the text condition of an empty prompt."""
    context = sd_model.get_learned_conditioning([""])
    if not isinstance(context, Tensor):
        raise CheckpointError(
            f"checkpoint: expected one text tensor for an empty prompt, got {type(context).__name__}; load SD 1.x/2.x"
        )
    return context


def with_lora(unet: Any, name: str) -> Any:
    """A clone of the UNet patcher with the LoRA ``name`` of the webui's Lora folder; the clone itself for ''.

    Raises CheckpointError when there is no such file or it does not fit this UNet.
    """
    if not name:
        return unet.clone()
    networks = sys.modules.get("networks")  # the builtin sd_forge_lora extension's module
    if networks is None:
        raise CheckpointError(f"LoRA {name!r}: the webui's Lora extension is switched off; switch it on or clear the name")
    if name not in networks.available_network_aliases:
        networks.list_available_networks()
    entry = networks.available_network_aliases.get(name)
    if entry is None:
        raise CheckpointError(f"LoRA {name!r}: not found; expected a file of that name in the webui's Lora folder")
    from backend.utils import load_torch_file

    tensors = load_torch_file(entry.filename, safe_load=True)
    patched, _ = networks.load_lora_for_models(unet, None, tensors, 1.0, 0.0, filename=entry.filename, online_mode=False)
    if patched is unet:  # the host only prints when keys do not match
        raise CheckpointError(f"LoRA {name!r}: does not fit the loaded checkpoint's UNet; choose one of the same family")
    return patched


def _finite(tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError("checkpoint: gave NaN or infinite values; run VAE and UNet in fp32 or bf16")
    return tensor
