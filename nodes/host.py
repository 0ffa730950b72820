"""Host objects in our protocols: a comfy VAE as :class:`Vae`, latents in and out of a LATENT."""

from __future__ import annotations

import weakref
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import torch
from torch import Tensor

from ..lafr_core.errors import CheckpointError, InputError
from ..lafr_core.latent.spec import FAMILIES, family
from ..lafr_core.types import LatentSpec
from .networks import open_starter_vae

SD = family("sd")
KINDS = {"sd": "an SD 1.x/2.x", "sdxl": "an SDXL", "sd3": "an SD3", "flux": "a FLUX.1"}
"""Families as people call them."""
CONNECT = {
    "sd": "the VAE of an SD 1.5 or 2.1 checkpoint, or LAFR Load Starter's",
    **{name: f"{kind} VAE, or another adapter from LAFR Load Adapter" for name, kind in KINDS.items() if name != "sd"},
}
"""The next step for a VAE of the wrong family."""
SAME_FAMILY_ERROR = 0.06
"""Mean pixel error above which a picture encoded by a VAE and decoded by ours shows another latent space.

On the test picture below SD's VAEs lie far under it, SDXL's far above: tests/nodes/test_host.py holds both."""


class HostVae:
    """A ComfyUI VAE behind :class:`~lafr_core.types.Vae`. The host keeps dtype, device, memory and the fallback to tiles.

    The host's encode takes the posterior's mode, so encoding is deterministic.
    """

    def __init__(self, vae: Any, spec: LatentSpec = SD) -> None:
        self.vae, self.spec = vae, spec

    def encode(self, pixels: Tensor) -> Tensor:
        return self.spec.to_scaled(self.vae.encode(pixels.movedim(1, -1)).to(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(self.spec.to_raw(latents)).movedim(-1, 1).to(latents)


def raw_latent(latents: Tensor, spec: LatentSpec = SD) -> dict[str, Tensor]:
    """UNet-scaled latents -> a LATENT: raw, float32, on the host's intermediate device."""
    return {"samples": spec.to_raw(latents.float()).to(mm.intermediate_device())}


def trust_vae(vae: Any, spec: LatentSpec = SD) -> None:
    """Spare a VAE of our own, or one seen before, the look at its latents."""
    _checked[vae.first_stage_model] = spec.name


def check_vae(vae: Any, spec: LatentSpec = SD) -> None:
    """Raise InputError unless the VAE's latents are of the family ``spec``.

    Two families share each shape: SD and SDXL, SD3 and Flux. So the first time a VAE is seen it encodes a small picture: for SD
    a test picture that our own decoder must recognise, for the others gray, which must be theirs.
    """
    channels, factor = getattr(vae, "latent_channels", None), _factor(vae)
    if (channels, factor) != (spec.channels, spec.factor):
        raise InputError(
            f"VAE: expected {KINDS[spec.name]} VAE ({spec.channels} channels, 1/{spec.factor} size), "
            f"got {channels} channels at 1/{factor}; connect {CONNECT[spec.name]}"
        )
    if _checked.get(vae.first_stage_model) == spec.name:
        return
    if not (_is_sd(vae) if spec is SD else _is_gray(vae, spec)):
        other = next(other.name for other in FAMILIES.values() if other is not spec and other.channels == spec.channels)
        raise InputError(
            f"VAE: expected {KINDS[spec.name]} VAE, got one of another latent space ({KINDS[other]} one?); "
            f"connect {CONNECT[spec.name]}"
        )
    trust_vae(vae, spec)


def check_model(model: Any) -> None:
    """Raise InputError unless the MODEL is a plain SD 1.x/2.x denoiser."""
    got = model.get_model_object("latent_format")
    if type(got) is not comfy.latent_formats.SD15:
        raise InputError(
            f"MODEL: expected an SD 1.x/2.x checkpoint, got one for {type(got).__name__} latents; "
            "load an SD 1.5 or 2.1 checkpoint"
        )
    channels = model.model.model_config.unet_config.get("in_channels", SD.channels)
    if channels != SD.channels:
        raise InputError(
            f"MODEL: expected {SD.channels} input channels, got {channels} (9 is an inpainting model); load the plain one"
        )


def check_latent(latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT, or InputError when they are not SD's."""
    samples: Tensor = latent["samples"]
    return SD.check(samples, "LATENT")


_checked: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Family of each VAE that was looked at."""


def _factor(vae: Any) -> Any:
    ratio = getattr(vae, "downscale_ratio", None)
    return ratio if isinstance(ratio, int) else getattr(vae, "spacial_compression_encode", lambda: None)()


def _is_sd(vae: Any) -> bool:
    """Whether our decoder recognises what ``vae`` encoded; True when our VAE is not at hand."""
    try:
        ours = open_starter_vae()
    except CheckpointError:
        return True
    picture = _test_picture()
    latents = HostVae(vae).encode(picture)
    ours.load()
    with torch.no_grad():
        decoded = ours.call.decode(latents.to(mm.get_torch_device())).to(picture)
    return float((decoded - picture).abs().mean()) <= SAME_FAMILY_ERROR


def _is_gray(vae: Any, spec: LatentSpec) -> bool:
    """Whether, of the families of this shape, gray is nearest to what it is in ``spec``."""
    gray = torch.full((1, 3, 64, 64), 0.5)

    def error(other: LatentSpec) -> float:
        return float((HostVae(vae, other).encode(gray)[0, :, 4, 4] - torch.tensor(other.gray)).norm())

    alike = [other for other in FAMILIES.values() if other.channels == spec.channels]
    return min(alike, key=error) is spec


def _test_picture() -> Tensor:
    """(1, 3, 128, 128): smooth and not saturated, so that any VAE of the family reproduces it, small ones too."""
    axis = torch.linspace(0, 1, 128)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return 0.5 + 0.35 * torch.stack([x - 0.5, y - 0.5, 0.5 * torch.sin(6.28 * (x + y))])[None]
