"""LoRA files of diffusion UNets: names, metadata and merging. A LoRA adds ``alpha / rank * up @ down`` to a weight.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685), eq. 3; the convolution form (a rank-r
convolution followed by a 1x1 one) is kohya-ss sd-scripts'. Files on disk use kohya's names over diffusers' module paths,
``lora_unet_<path with underscores>.lora_down.weight``: the one spelling that ComfyUI, Forge and A1111 all load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError

PREFIX = "lora_unet_"
_PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_KOHYA = re.compile(rf"{PREFIX}(.+)\.(lora_down\.weight|lora_up\.weight|alpha)")


@dataclass(frozen=True)
class Lora:
    """A LoRA file in memory, kohya names."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def number(self, key: str) -> int | None:
        """The metadata value ``key`` as an integer, or None when it is missing."""
        text = self.metadata.get(key, "")
        return int(text) if text.isdecimal() else None


def peft_to_kohya(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """peft's ``<path>.lora_A.weight`` (any usual prefix) -> kohya names. ``alpha`` is LoraConfig's lora_alpha.

    peft keeps alpha in its config only; without the ``.alpha`` key hosts would assume alpha = rank. Raises CheckpointError
    for keys that are not LoRA weights.
    """
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        match = _PEFT.fullmatch(key.removeprefix("base_model.model.").removeprefix("unet."))
        if match is None:
            raise CheckpointError(f"LoRA: expected peft keys such as mid_block.….lora_A.weight, got {key!r}")
        name = PREFIX + match[1].replace(".", "_")
        out[f"{name}.lora_{'down' if match[2] == 'A' else 'up'}.weight"] = tensor.detach().contiguous()
        if match[2] == "A":
            out[f"{name}.alpha"] = torch.tensor(float(alpha))
    return out


def load_lora(path: Path) -> Lora:
    """Read a kohya-named safetensors LoRA. Raises CheckpointError when it is missing, unreadable or of another naming."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a LoRA file (.safetensors), found no file there; check the path")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); export the LoRA again") from error
    stray = [key for key in tensors if not _KOHYA.fullmatch(key)]
    if stray or not tensors:
        raise CheckpointError(
            f"{path}: expected kohya names ({PREFIX}….lora_down.weight), got {stray[0] if stray else 'no tensors'}; "
            "export it with python -m train export"
        )
    return Lora(tensors, metadata)


@torch.no_grad()
def merge(unet: nn.Module, lora: Lora, strength: float = 1.0) -> nn.Module:
    """Add the LoRA to ``unet``'s weights in place and return it. Raises CheckpointError, changing nothing, if any tensor does
    not fit.
    """
    pairs = _pairs(lora.tensors, (name for name, _ in unet.named_modules()))
    updates: list[tuple[nn.Parameter, Tensor]] = []
    for path, (down, up, scale) in pairs.items():
        weight = unet.get_submodule(path).weight
        assert isinstance(weight, nn.Parameter)
        delta = (up.flatten(1).float() @ down.flatten(1).float()) * (scale * strength)
        if delta.shape != (weight.shape[0], weight[0].numel()):
            raise CheckpointError(
                f"LoRA: {path} is {tuple(weight.shape)} in this UNet, the LoRA is for another shape ({tuple(delta.shape)}); "
                f"it was trained for {lora.metadata.get('base_model', 'another base model')}"
            )
        updates.append((weight, delta.reshape(weight.shape)))
    for weight, delta in updates:
        weight.add_(delta.to(weight))
    return unet


def _pairs(tensors: Mapping[str, Tensor], modules: Iterable[str]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Module path -> (down, up, alpha / rank)."""
    paths = {name.replace(".", "_"): name for name in modules}
    names = {match[1] for key in tensors if (match := _KOHYA.fullmatch(key))}
    out: dict[str, tuple[Tensor, Tensor, float]] = {}
    for name in sorted(names):
        if name not in paths:
            raise CheckpointError(f"LoRA: {PREFIX}{name} names no module of this UNet; it belongs to another model family")
        try:
            down, up = tensors[f"{PREFIX}{name}.lora_down.weight"], tensors[f"{PREFIX}{name}.lora_up.weight"]
        except KeyError as error:
            raise CheckpointError(f"LoRA: {error.args[0]} is missing; the file is incomplete, export it again") from error
        alpha = tensors.get(f"{PREFIX}{name}.alpha")
        out[paths[name]] = (down, up, float(alpha) / down.shape[0] if alpha is not None else 1.0)
    return out
