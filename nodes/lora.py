"""Whether a MODEL carries a LAFR LoRA, and what is done without one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ENDS = ("diffusion_model.input_blocks.0.0.weight", "diffusion_model.out.2.weight")
"""The UNet's first and last convolution. LAFR's training puts LoRAs on attention and on every convolution, these too; the LoRAs
that people use for styles leave them alone (kohya's LoCon reaches the blocks' convolutions only)."""


@dataclass(frozen=True)
class FewSteps:
    """Partial denoising for a checkpoint that was never taught to restore in one step."""

    steps: int = 6
    denoise: float = 0.3
    sampler_name: str = "dpmpp_2m"
    scheduler: str = "karras"
    seed: int = 0


def has_lafr_lora(model: Any) -> bool:
    """Whether a LAFR LoRA lies on this MODEL, by the weights that are patched.

    A LoRA merged into the checkpoint cannot be seen: that MODEL needs the forced one-step mode.
    """
    return all(model.patches.get(key) for key in ENDS)


def without_lora(steps: int, denoise: float) -> str:
    """The sentence for a MODEL that has none."""
    return f"MODEL: no LAFR LoRA on it, so {steps} steps at denoise {denoise:.2f} instead of one step"
