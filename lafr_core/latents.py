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
    gray: tuple[float, ...] = ()
    """The scaled latents of a flat middle gray, by which the family of an encoder is told; () = not known."""

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


# Scale and shift as in ComfyUI comfy/latent_formats.py and the diffusers VAE configs; gray as the TAESD siblings encode it.
FAMILIES: dict[str, LatentSpec] = {
    spec.name: spec
    for spec in (
        LatentSpec("sd", channels=4, factor=8, scale=0.18215, tiny="taesd", gray=(0.69, -0.47, 0.60, 0.09)),
        LatentSpec("sdxl", channels=4, factor=8, scale=0.13025, tiny="taesdxl", gray=(-0.61, 0.49, 0.54, -0.44)),
        LatentSpec(
            "sd3", channels=16, factor=8, scale=1.5305, shift=0.0609, tiny="taesd3",
            gray=(0.57, -0.46, -1.51, -0.87, 2.00, -0.61, -0.99, -1.35, -0.59, 0.55, 0.97, -0.04, 0.52, -2.03, -0.41, -0.02),
        ),
        LatentSpec(
            "flux", channels=16, factor=8, scale=0.3611, shift=0.1159, tiny="taef1",
            gray=(0.47, 0.13, -0.67, -0.32, 0.19, 1.51, -0.78, 0.63, 0.17, 0.06, -0.14, 0.50, -0.85, -1.21, -0.66, 0.41),
        ),
    )
}  # fmt: skip


def family(name: str) -> LatentSpec:
    """The latent space called ``name``. Raises InputError listing the known ones."""
    if name not in FAMILIES:
        raise InputError(f"latent family: expected one of {', '.join(FAMILIES)}, got {name!r}")
    return FAMILIES[name]
