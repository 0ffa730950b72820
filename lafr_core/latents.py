"""Latent spaces as rows of data. Adding a model family adds a row here, never a branch elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class LatentSpec:
    """A VAE's latent space. ``scaled = (raw - shift) * scale`` is what the UNet sees; std about 1."""

    name: str
    channels: int
    factor: int
    """Pixels per latent cell along each side."""
    scale: float
    shift: float = 0.0
    tiny: str = ""
    """What the files of its TAESD sibling begin with ("" = it has none)."""

    def to_scaled(self, raw: Tensor) -> Tensor:
        """Raw VAE latents (ComfyUI LATENT, diffusers AutoencoderKL) -> UNet-scaled."""
        return (raw - self.shift) * self.scale

    def to_raw(self, scaled: Tensor) -> Tensor:
        """UNet-scaled latents -> raw VAE latents. Inverse of :meth:`to_scaled`."""
        return scaled / self.scale + self.shift

    def check(self, latents: Tensor, what: str = "latents") -> Tensor:
        """Return ``latents`` unchanged, or raise InputError unless they are (B, channels, h, w), floating and finite."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise InputError(
                f"{what}: expected (B, {self.channels}, h, w) for the {self.name} latent space, got "
                f"{tuple(latents.shape)}; use a VAE of the same family as the adapter"
            )
        if not latents.is_floating_point():
            raise InputError(f"{what}: expected a floating tensor, got {latents.dtype}; convert with .float()")
        if not bool(latents.isfinite().all()):
            raise InputError(f"{what}: contain NaN or infinite values; check the VAE's dtype (fp16 VAEs overflow: use fp32)")
        return latents


# Scale and shift as in ComfyUI comfy/latent_formats.py and the diffusers VAE configs.
FAMILIES: dict[str, LatentSpec] = {
    spec.name: spec
    for spec in (
        LatentSpec("sd", channels=4, factor=8, scale=0.18215, tiny="taesd"),
        LatentSpec("sdxl", channels=4, factor=8, scale=0.13025, tiny="taesdxl"),
        LatentSpec("sd3", channels=16, factor=8, scale=1.5305, shift=0.0609, tiny="taesd3"),
        LatentSpec("flux", channels=16, factor=8, scale=0.3611, shift=0.1159, tiny="taef1"),
    )
}


def family(name: str) -> LatentSpec:
    """The latent space called ``name``. Raises InputError listing the known ones."""
    if name not in FAMILIES:
        raise InputError(f"latent family: expected one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]
