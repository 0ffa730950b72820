"""The one-step prior made of a user's own Stable Diffusion UNet (diffusers folder) and a LAFR LoRA.

One evaluation at a fixed timestep with the empty prompt; both are constants and folded into the weights (:mod:`.folding`).
diffusers is imported where it is needed only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, MissingPackageError
from ..types import LatentSpec
from . import lora as loras
from .folding import fold_constants
from .prediction import TIMESTEPS, Prediction, alphas_cumprod, to_sample
from .spec import family

TIMESTEP = 399
"""The timestep LAFR's one step is trained at unless a LoRA's metadata says otherwise."""
CONTEXT_FILE = "empty_prompt.safetensors"
"""Stored embedding of the empty prompt, beside the UNet or the LoRA: one tensor ``context`` (1, tokens, width)."""


class SdPrior:
    """A :class:`~lafr_core.types.Prior`: UNet-scaled latents in, restored latents out, dtype of the input kept."""

    def __init__(self, unet: nn.Module, context: Tensor, *, timestep: int, prediction: Prediction, name: str) -> None:
        self.spec: LatentSpec = family("sd")
        self.name = name
        self.timestep = timestep
        self.prediction = prediction
        self.network = fold_constants(unet, timestep, context)
        self._alpha = float(alphas_cumprod()[timestep])

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) UNet-scaled -> same shape. Differentiable with respect to the latents."""
        self.spec.check(latents, "prior")
        weight = next(self.network.parameters())
        output = self.network(latents.to(weight)).to(latents)
        return to_sample(output, latents, self._alpha, self.prediction)


def open_sd_prior(
    path: Path,
    *,
    lora: Path | None = None,
    timestep: int | None = None,
    context: Path | None = None,
    prediction: Prediction | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> SdPrior:
    """The prior around a diffusers UNet folder, or a pipeline folder with ``unet/`` in it.

    ``timestep`` and ``prediction`` default to what the LoRA's metadata and the scheduler config beside the UNet say, else 399
    and epsilon. ``context`` defaults to :data:`CONTEXT_FILE` beside the LoRA or in the folder; a pipeline folder with
    tokenizer and text encoder computes it. ``dtype`` defaults to bfloat16 on CUDA and float32 elsewhere. Raises
    CheckpointError for a UNet or LoRA of another family (SDXL, inpainting, another text width) and when no context can be
    had; MissingPackageError without diffusers.
    """
    path = Path(path)
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    unet = load_unet(folder)
    width = int(unet.config.cross_attention_dim)  # type: ignore[arg-type, union-attr]
    metadata: dict[str, str] = {}
    if lora is not None:
        read = loras.load_lora(lora)
        check_family(read, width, lora)
        loras.merge(unet, read)
        metadata = read.metadata
        timestep = timestep if timestep is not None else read.number("timestep")
    timestep = TIMESTEP if timestep is None else timestep
    if not 0 <= timestep < TIMESTEPS:
        raise InputError(f"timestep: expected 0 to {TIMESTEPS - 1}, got {timestep}")
    prediction = prediction or cast("Prediction", metadata.get("prediction") or prediction_of(folder))
    embedding = find_context(path, lora=lora, context=context)
    if embedding.shape[-1] != width:
        raise CheckpointError(
            f"empty prompt: expected width {width} for this UNet, got {embedding.shape[-1]}; the file belongs to "
            "another family "
            "(SD 1.x is 768 wide, SD 2.x 1024)"
        )
    device = torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    name = f"{path.name} + {Path(lora).name}" if lora is not None else path.name
    return SdPrior(unet.to(device, dtype), embedding.to(device, dtype), timestep=timestep, prediction=prediction, name=name)


def load_unet(folder: Path) -> nn.Module:
    """A diffusers ``UNet2DConditionModel`` of SD 1.x/2.x from a local folder, float32, frozen.

    Only safetensors weights are read. Raises CheckpointError when the folder or its kind is wrong, naming what was found.
    """
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise MissingPackageError("a Stable Diffusion prior needs diffusers; install it with: pip install diffusers") from error
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder}: expected a diffusers UNet folder with config.json, found none; check the path")
    check_unet_config(_json(file), file)
    try:
        unet = UNet2DConditionModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the UNet's weights cannot be read ({error}); fetch them again as safetensors"
        ) from error
    return unet.eval().requires_grad_(False)


def check_unet_config(config: dict[str, Any], where: Path | str) -> None:
    """Raise CheckpointError unless a diffusers UNet config is of the SD 1.x/2.x kind that our adapters fit."""
    if config.get("_class_name", "UNet2DConditionModel") != "UNet2DConditionModel":
        raise CheckpointError(f"{where}: expected a UNet2DConditionModel, got {config.get('_class_name')!r}")
    if config.get("addition_embed_type") or config.get("cross_attention_dim") == 2048:
        raise CheckpointError(
            f"{where}: this is an SDXL UNet, the adapter is for SD 1.x/2.x latents; use an SD 1.5 or 2.1 UNet"
        )
    if config.get("in_channels", 4) != 4:
        raise CheckpointError(
            f"{where}: expected 4 input channels, got {config['in_channels']} (9 is an inpainting model); use the "
            "plain checkpoint"
        )


def check_family(lora: loras.Lora, width: int, where: Path) -> None:
    """Raise CheckpointError when the LoRA's metadata names a text width other than the UNet's ``width``."""
    expected = lora.number("context_dim")
    if expected is not None and expected != width:
        raise CheckpointError(
            f"{where}: trained for {lora.metadata.get('base_model', 'a UNet')} with text width {expected}, this "
            f"UNet's is {width}; "
            "use the LoRA of this family (SD 1.x is 768 wide, SD 2.x 1024)"
        )


def prediction_of(unet_folder: Path) -> Prediction:
    """What the scheduler config beside the UNet says it predicts; epsilon when there is none."""
    for folder in (unet_folder, unet_folder.parent / "scheduler"):
        file = folder / "scheduler_config.json"
        if file.is_file():
            return cast("Prediction", _json(file).get("prediction_type", "epsilon"))
    return "epsilon"


def find_context(path: Path, *, lora: Path | None = None, context: Path | None = None) -> Tensor:
    """The empty prompt's embedding (1, tokens, width): the given file, the stored one, or computed from the pipeline folder."""
    folders = ([Path(lora).parent] if lora is not None else []) + [path, path.parent]
    candidates = [Path(context)] if context is not None else [folder / CONTEXT_FILE for folder in folders]
    for file in candidates:
        if file.is_file():
            return load_context(file)
    for folder in (path, path.parent):
        if context is None and (folder / "text_encoder" / "config.json").is_file() and (folder / "tokenizer").is_dir():
            return encode_empty_prompt(folder)
    raise CheckpointError(
        f"{candidates[0]}: no empty-prompt embedding there; train.prior writes {CONTEXT_FILE} beside its LoRA, "
        "or give a pipeline folder with tokenizer/ and text_encoder/"
    )


def load_context(file: Path) -> Tensor:
    """Read a stored embedding (1, tokens, width) float32. Raises CheckpointError when it is not one."""
    try:
        tensor = load_file(str(file)).get("context")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not a readable safetensors file ({error}); compute it again") from error
    if tensor is None or tensor.ndim != 3 or tensor.shape[0] != 1:
        found = "no tensor of that name" if tensor is None else tuple(tensor.shape)
        raise CheckpointError(f"{file}: expected a tensor 'context' (1, tokens, width), got {found}")
    return tensor.float()


def encode_empty_prompt(pipeline: Path) -> Tensor:
    """The CLIP embedding of "" (1, 77, width) by a pipeline folder's own tokenizer and text encoder."""
    try:
        from transformers import CLIPTextModel, CLIPTokenizer
    except ImportError as error:
        raise MissingPackageError(
            "computing the empty prompt needs transformers; install it with: pip install transformers"
        ) from error
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(pipeline / "tokenizer"), local_files_only=True)
        encoder = CLIPTextModel.from_pretrained(str(pipeline / "text_encoder"), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{pipeline}: its tokenizer or text encoder cannot be read ({error}); give a stored {CONTEXT_FILE}"
        ) from error
    tokens = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
    with torch.no_grad():
        return encoder.eval()(tokens.input_ids)[0].float()


def _json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); fetch the model folder again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data
