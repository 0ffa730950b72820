"""Tiny things the training tests share: an autoencoder, a run's settings, a diffusers UNet folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from kill_test import settings, tiny_vae
from safetensors.torch import save_file
from torch import nn

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.store import checkpoint

__all__ = ["CONTEXT_WIDTH", "UNET", "adapter_at", "faces_at", "settings", "tiny_unet", "tiny_vae", "unet_folder"]

CONTEXT_WIDTH = 24
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": CONTEXT_WIDTH,
    "attention_head_dim": (2, 4),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def tiny_unet(**changes: Any) -> nn.Module:
    """A diffusers UNet of some ten thousand parameters whose every output depends on time and text."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        unet = UNet2DConditionModel(**{**UNET, **changes})
        for parameter in unet.parameters():
            nn.init.normal_(parameter, std=0.08)
    return unet.eval().requires_grad_(False)


def unet_folder(folder: Path, prediction: str = "epsilon", **changes: Any) -> Path:
    """A UNet folder as diffusers saves it, with a scheduler config and a stored context of seven tokens."""
    unet = tiny_unet(**changes)
    unet.save_pretrained(str(folder))  # type: ignore[operator]
    (folder / "scheduler_config.json").write_text(f'{{"prediction_type": "{prediction}"}}')
    context = torch.randn(1, 7, CONTEXT_WIDTH, generator=torch.Generator().manual_seed(6))
    save_file({"context": context}, str(folder / "empty_prompt.safetensors"))
    return folder


def adapter_at(folder: Path) -> Path:
    """``adapter.safetensors`` in ``folder``: a tiny adapter that changes what it is given. Seeds the global generator."""
    torch.manual_seed(0)
    small = AdapterNet(width=8, coarse=16, deep=16, code_width=16, entries=16, depth=1, grid=8)
    nn.init.normal_(small.mapping.correction.weight, std=0.1)
    path = folder / "adapter.safetensors"
    checkpoint.save(path, "adapter", small, small.config)
    return path


def faces_at(folder: Path, count: int, size: int = 64) -> Path:
    """``count`` drawn faces as PNG files in ``folder`` and a folder below it."""
    import numpy as np
    from PIL import Image

    from train.data.drawn import draw_face

    for number in range(count):
        file = folder / ("inner" if number % 2 else ".") / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((draw_face(number, size) * 255).astype(np.uint8)).save(file)
    return folder
