"""The loaded checkpoint of Forge and its kin (Forge Neo, reForge, Classic) as our Vae and Denoiser.

They load and run their models under inference mode, and merge LoRAs into the weights in place, which torch only allows
there. So host calls run under inference mode here too, and what leaves this file is cloned into an ordinary tensor.

All hold ``forge_objects`` with a VAE, a UNet patcher and managed memory. Forge and Neo keep their code in ``backend``, reForge
and Classic in ``ldm_patched`` and ``modules_forge``. The scale of the latents is Stable Diffusion's own in all of them
(:func:`check`), so it is applied here and not by what each calls it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from lafr_core.errors import CheckpointError
from lafr_core.latent.spec import FAMILIES
from lafr_core.types import LatentSpec

SPEC = FAMILIES["sd"]


class ForgeVae:
    """``forge_objects.vae`` behind :class:`lafr_core.types.Vae`. The host's options stay as they are."""

    def __init__(self, vae: Any, spec: LatentSpec = SPEC) -> None:
        self.vae, self.spec = vae, spec
        # Left to itself the host draws a sample from the posterior: two encodes of one picture would differ. Forge lets us say
        # so, the others take no such wish.
        self.asks = "regulation" in inspect.signature(vae.first_stage_model.encode).parameters
        if self.asks:
            self.vae = vae.clone()  # only here: reForge's clone forgets what its decode needs
            self.vae.patcher.model_options["model_vae_regulation"] = lambda posterior: posterior.mode()

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> UNet-scaled latents, the posterior's mode."""
        with torch.inference_mode():
            raw = self.vae.encode(pixels.movedim(1, -1)) if self.asks else self._mode(pixels)
            latents = self.spec.to_scaled(raw.float())
        return _finite(latents.clone()).to(pixels.device)

    def _mode(self, pixels: Tensor) -> Tensor:
        """Raw latents: the network's own two steps up to the posterior, whose mean comes first."""
        network, dtype = self.vae.first_stage_model, self.vae.vae_dtype
        needed = self.vae.memory_used_encode(pixels.shape, dtype)
        _memory_management().load_models_gpu([self.vae.patcher], memory_required=needed)
        moments = network.encoder((pixels * 2 - 1).to(self.vae.device, dtype))
        if getattr(network, "quant_conv", None) is not None:
            moments = network.quant_conv(moments)
        mean: Tensor = moments.chunk(2, dim=1)[0]
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """UNet-scaled latents -> (B, 3, H, W) in [0, 1]."""
        with torch.inference_mode():
            image = self.vae.decode(self.spec.to_raw(latents))
        return _finite(image.clone().float().movedim(-1, 1)).to(latents.device)


class ForgeDenoiser:
    """``forge_objects.unet`` with an empty prompt behind :class:`~lafr_webui.sampling.Denoiser`."""

    def __init__(self, unet: Any, context: Tensor, spec: LatentSpec = SPEC) -> None:
        self.unet, self.context, self.spec = unet, context, spec
        self.predictor = _predictor(unet.model)

    def alpha(self, timestep: int) -> float:
        return 1.0 / (1.0 + self._sigma(timestep) ** 2)

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        """``apply_model`` works on x0 + sigma * noise, divides by sqrt(1 + sigma^2) itself, and returns x0 for eps and v
        alike.
        """
        sampling, sigma = _sampling(), self._sigma(timestep)
        with torch.inference_mode():
            x = (x_t * (1.0 + sigma**2) ** 0.5).to(self.unet.load_device)
            sampling.sampling_prepare(self.unet, x)
            try:
                x0 = self.unet.model.apply_model(
                    x,
                    torch.full((x.shape[0],), sigma, device=x.device),
                    c_crossattn=self.context.expand(x.shape[0], -1, -1).to(x.device),
                    transformer_options=self.unet.model_options.get("transformer_options", {}),
                )
            finally:
                sampling.sampling_cleanup(self.unet)
        return _finite(x0.clone().float()).to(x_t.device)

    def _sigma(self, timestep: int) -> float:
        return float(self.predictor.sigma(torch.tensor([float(timestep)])))


def current_model() -> Any:
    """The checkpoint chosen in Forge or Neo, loaded when it is not yet: before the first generation they only hold a
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
    channels, scale = objects.vae.latent_channels, _scale(objects)
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
    tensors = _host("backend.utils", "ldm_patched.modules.utils").load_torch_file(entry.filename, safe_load=True)
    load = networks.load_lora_for_models
    online = {"online_mode": False} if "online_mode" in inspect.signature(load).parameters else {}
    patched, _ = load(unet, None, tensors, 1.0, 0.0, filename=entry.filename, **online)
    if patched is unet or not _patches(patched):  # the host only prints when keys do not match
        raise CheckpointError(f"LoRA {name!r}: does not fit the loaded checkpoint's UNet; choose one of the same family")
    return patched


def _scale(objects: Any) -> float:
    """What the UNet's latents are, over the VAE's: Forge keeps it on the VAE, Neo in the VAE's latent format, the others in the
    UNet's. 0.0 where it is not to be found.
    """
    network = objects.vae.first_stage_model
    config = getattr(objects.unet.model, "model_config", None)
    for held in (getattr(network, "latent_format", None), getattr(config, "latent_format", None)):
        if held is not None:
            return float(held.scale_factor)
    return float(getattr(network, "scaling_factor", 0.0))


def _predictor(model: Any) -> Any:
    """Timesteps and noise levels: KModel's in Forge and Neo, ComfyUI's in reForge and Classic."""
    return model.predictor if hasattr(model, "predictor") else model.model_sampling


def _patches(unet: Any) -> int:
    return sum(len(getattr(unet, name, ())) for name in ("lora_patches", "patches"))


def _host(forge: str, older: str) -> Any:
    """The module ``forge`` of Forge and Neo, or what reForge and Classic call it."""
    try:
        return importlib.import_module(forge)
    except ModuleNotFoundError as error:
        if not forge.startswith(error.name or "?"):
            raise
        return importlib.import_module(older)


def _memory_management() -> Any:
    return _host("backend.memory_management", "ldm_patched.modules.model_management")


def _sampling() -> Any:
    return _host("backend.sampling.sampling_function", "modules_forge.forge_sampler")


def _finite(tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError("checkpoint: gave NaN or infinite values; run VAE and UNet in fp32 or bf16")
    return tensor
