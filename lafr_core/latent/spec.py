"""Latent spaces as rows of data. Adding a model family adds a row here, never a branch elsewhere."""

from __future__ import annotations

from ..errors import InputError
from ..types import LatentSpec

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
