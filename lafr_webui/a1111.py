"""AUTOMATIC1111's loaded checkpoint as our Vae and Denoiser.

The model is an ldm ``LatentDiffusion``: ``first_stage_model.encode`` takes [-1, 1] and gives a posterior whose raw latents
times ``scale_factor`` are what ``apply_model(x_t, t, cond)`` sees. We call those bound methods, not the networks behind
them, because ``--medvram`` and ``--lowvram`` hang their module swapping on exactly these.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lafr_core.errors import CheckpointError
from lafr_core.latent import prediction
from lafr_core.latent.spec import FAMILIES
from lafr_core.types import LatentSpec

SPEC = FAMILIES["sd"]


class A1111Vae:
    """The checkpoint's autoencoder behind :class:`lafr_core.types.Vae`."""

    def __init__(self, sd_model: Any, spec: LatentSpec = SPEC) -> None:
        self.model, self.spec = sd_model, spec

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> UNet-scaled latents: the posterior's mode, where the host's own encode draws a sample."""
        from modules import devices

        with devices.autocast():
            posterior = self.model.first_stage_model.encode((pixels * 2 - 1).to(devices.device, _vae_dtype()))
        raw = posterior.mode() if hasattr(posterior, "mode") else posterior
        return _finite(self.spec.to_scaled(raw.float())).to(pixels.device)

    def decode(self, latents: Tensor) -> Tensor:
        """UNet-scaled latents -> (B, 3, H, W) in [0, 1]."""
        from modules import devices

        with devices.autocast():
            image = self.model.first_stage_model.decode(self.spec.to_raw(latents).to(devices.device, _vae_dtype()))
        return _finite(image.float().to(latents.device) * 0.5 + 0.5).clamp(0, 1)


class A1111Denoiser:
    """The checkpoint's UNet with an empty prompt behind :class:`~lafr_webui.sampling.Denoiser`."""

    def __init__(self, sd_model: Any, spec: LatentSpec = SPEC) -> None:
        self.model, self.spec = sd_model, spec
        self.prediction: prediction.Prediction = (
            "v_prediction" if getattr(sd_model, "parameterization", "eps") == "v" else "epsilon"
        )
        self.alphas = sd_model.alphas_cumprod.detach().double().cpu()
        self.context = _empty_prompt(sd_model)

    def alpha(self, timestep: int) -> float:
        return float(self.alphas[timestep])

    def __call__(self, x_t: Tensor, timestep: int) -> Tensor:
        from modules import devices

        x = x_t.to(devices.device, getattr(devices, "dtype_unet", devices.dtype))
        t = torch.full((x.shape[0],), timestep, dtype=torch.int64, device=x.device)
        context = self.context.expand(x.shape[0], -1, -1).to(x.device)
        with devices.autocast():
            output = self.model.apply_model(x, t, {"c_crossattn": [context], "c_concat": []})
        output = output.float().to(x_t.device)
        return prediction.to_sample(output, x_t.float(), self.alpha(timestep), self.prediction)


def check(sd_model: Any) -> None:
    """Raise CheckpointError unless the model is an SD 1.x/2.x text-to-image checkpoint."""
    if sd_model is None or getattr(sd_model, "first_stage_model", None) is None:
        raise CheckpointError("checkpoint: none is loaded; load an SD 1.x/2.x checkpoint")
    scale = float(getattr(sd_model, "scale_factor", 0.0))
    if getattr(sd_model, "is_sdxl", False) or getattr(sd_model, "is_sd3", False) or abs(scale - SPEC.scale) > 1e-4:
        raise CheckpointError(
            f"checkpoint: expected SD 1.x/2.x (latent scale {SPEC.scale}), got scale {scale:g}; load another one"
        )
    channels = getattr(sd_model.model.diffusion_model, "in_channels", 4)
    if channels != SPEC.channels:
        raise CheckpointError(f"checkpoint: expected a UNet with {SPEC.channels} input channels, got {channels} (inpainting?)")


@contextlib.contextmanager
def only_lora(name: str) -> Iterator[None]:
    """While this is open, the Lora extension applies ``name`` alone ('' = none): the last generation's LoRAs stay set
    otherwise.

    Raises CheckpointError when the extension does not know ``name``.
    """
    networks = sys.modules.get("networks")  # the builtin Lora extension's module; absent when that is switched off
    loaded = getattr(networks, "loaded_networks", None)
    if networks is None or loaded is None:
        if name:
            raise CheckpointError(f"LoRA {name!r}: the webui's Lora extension is switched off; switch it on or clear the name")
        yield
        return
    before = list(loaded)
    try:
        loaded.clear()
        if name:
            networks.load_networks([name], [1.0], [1.0], [None])
            if not loaded:
                raise CheckpointError(f"LoRA {name!r}: not found; expected a file of that name in the webui's Lora folder")
        yield
    finally:
        loaded[:] = before


def _empty_prompt(sd_model: Any) -> Tensor:
    """(1, tokens, width): the text condition of an empty prompt. Versions before 1.3 do not keep it on the model."""
    from modules import devices

    kept = getattr(sd_model, "cond_stage_model_empty_prompt", None)
    if isinstance(kept, Tensor):
        return kept
    with devices.autocast():
        context: Tensor = sd_model.get_learned_conditioning([""])
    if not isinstance(context, Tensor):
        raise CheckpointError(
            f"checkpoint: expected one text tensor for an empty prompt, got {type(context).__name__}; load SD 1.x/2.x"
        )
    return context


def _vae_dtype() -> torch.dtype:
    from modules import devices

    dtype: torch.dtype = getattr(devices, "dtype_vae", torch.float32)
    return dtype


def _finite(tensor: Tensor) -> Tensor:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError("VAE: gave NaN or infinite values; start the webui with --no-half-vae")
    return tensor
