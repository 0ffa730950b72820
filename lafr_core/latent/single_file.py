"""UNet and empty prompt out of one Stable Diffusion 1.x/2.x ``.safetensors`` file, as they are handed around (fp16 too).

Names of the original code (CompVis/stable-diffusion, ``openaimodel.py``) become diffusers' module paths; the sizes follow from
the tensors, so no config and no download is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError
from .clip_text import empty_prompt
from .prediction import Prediction

UNET = "model.diffusion_model."
LEVELS = 4
LAYERS = 2
"""Residual blocks a level, one more on the way up: all SD 1.x and 2.x."""
WIDE = 1024
"""Text width of SD 2.x, whose attention heads have 64 channels each; SD 1.x has eight heads everywhere."""
V_SPREAD = 0.09
"""ComfyUI's test for v-prediction (comfy/supported_models.py, SD20): above this the norm's biases belong to SD 2.x 768-v."""
V_TENSOR = "output_blocks.11.1.transformer_blocks.0.norm1.bias"

_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "out_layers.0": "norm2", "out_layers.3": "conv2",
    "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {
    "input_blocks.0.0": "conv_in", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "out.0": "conv_norm_out", "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}  # fmt: skip


def read(path: Path, *prefixes: str) -> dict[str, Tensor]:
    """The tensors of a file whose names start with one of ``prefixes``. Raises CheckpointError when it cannot be read."""
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefixes)}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def unet_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's UNet: float32 tensors in diffusers' names, and the UNet2DConditionModel's arguments.

    Raises CheckpointError for a file without an SD 1.x/2.x UNet, naming what it is instead.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a Stable Diffusion .safetensors file, found none; check the path")
    found = {name.removeprefix(UNET): t for name, t in read(path, UNET).items()}
    if not found:
        own = read(path, "conv_in.", "down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.")
        if "conv_in.weight" not in own or "time_embedding.linear_1.weight" not in own:
            raise CheckpointError(
                f"{path}: expected an SD 1.x/2.x checkpoint or UNet (model.diffusion_model.… or conv_in.…), found neither; "
                "give the whole checkpoint, a UNet file or a diffusers folder"
            )
        return {name: t.float() for name, t in own.items()}, _config(own, path)
    if any(name.startswith("label_emb.") for name in found):
        raise CheckpointError(f"{path}: this is an SDXL checkpoint, the adapter is for SD 1.x/2.x latents; use SD 1.5 or 2.1")
    try:
        tensors = {diffusers_name(name): t.float() for name, t in found.items()}
        return tensors, _config(tensors, path)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{path}: its UNet is not of the SD 1.x/2.x kind ({error}); use SD 1.5 or 2.1") from error


def diffusers_name(name: str) -> str:
    """An original UNet tensor name (without ``model.diffusion_model.``) in diffusers' words. Raises ValueError for others."""
    module, _, kind = name.rpartition(".")
    for old, new in _ENDS.items():
        if module == old or module.startswith(f"{old}."):
            return f"{new}{_inside(module.removeprefix(old))}.{kind}"
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)(.*)", module)
    if match is None:
        raise ValueError(f"unexpected tensor {name}")
    number, part, rest = int(match[2]), int(match[3]), match[4]
    if match[1] == "input":
        level, layer = divmod(number - 1, LAYERS + 1)
        if rest == ".op":
            return f"down_blocks.{level}.downsamplers.0.conv.{kind}"
        return f"down_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}{_inside(rest)}.{kind}"
    level, layer = divmod(number, LAYERS + 1)
    if rest == ".conv":
        return f"up_blocks.{level}.upsamplers.0.conv.{kind}"
    return f"up_blocks.{level}.{('resnets', 'attentions')[part]}.{layer}{_inside(rest)}.{kind}"


def _inside(rest: str) -> str:
    """What follows a block's name: residual layers have other words, transformers the same."""
    return next((f".{new}" for old, new in _RESNET.items() if rest == f".{old}"), rest)


def _config(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    levels = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("down_blocks."))
    widths = tuple(int(tensors[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0]) for level in range(levels))
    crossed = [f"down_blocks.{level}.attentions.0.proj_in.weight" in tensors for level in range(levels)]
    first = next((level for level in range(levels) if crossed[level]), None)
    if first is None:
        raise CheckpointError(f"{path}: expected a UNet with text attention, found none; use SD 1.5 or 2.1")
    prefix = f"down_blocks.{first}.attentions.0."
    context = int(tensors[f"{prefix}transformer_blocks.0.attn2.to_k.weight"].shape[1])
    linear = tensors[f"{prefix}proj_in.weight"].ndim == 2
    heads = tuple(max(1, width // 64) for width in widths) if context == WIDE or linear else (8,) * levels
    return {
        "sample_size": 64,
        "in_channels": int(tensors["conv_in.weight"].shape[1]),
        "out_channels": int(tensors["conv_out.weight"].shape[0]),
        "block_out_channels": widths,
        "layers_per_block": LAYERS,
        "down_block_types": tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in crossed),
        "up_block_types": tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(crossed)),
        "cross_attention_dim": context,
        "attention_head_dim": heads,
        "use_linear_projection": linear,
    }


def prediction(path: Path) -> Prediction:
    """What a file's UNet predicts: v for SD 2.x 768-v, told by the spread of one norm's biases as ComfyUI does; else eps."""
    bias = read(path, f"{UNET}{V_TENSOR}").get(f"{UNET}{V_TENSOR}")
    wide = read(path, f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight")
    if bias is None or not any(t.shape[1] == WIDE for t in wide.values()):
        return "epsilon"
    return "v_prediction" if float(torch.std(bias.float(), unbiased=False)) > V_SPREAD else "epsilon"


def context(path: Path) -> Tensor | None:
    """The empty prompt's embedding by the file's own text encoder, or None where it holds none."""
    with torch.no_grad():
        return empty_prompt(read(path, "cond_stage_model.", "text_model."))
