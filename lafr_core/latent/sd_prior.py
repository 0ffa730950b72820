"""The prior made of a user's own Stable Diffusion UNet: a diffusers folder or one SD 1.x/2.x file, and a LAFR LoRA.

One step: one evaluation at a fixed timestep with the empty prompt; both are constants and folded into the weights
(:mod:`.folding`). Few steps: partial denoising from the aligned latent, for a UNet that was never taught to restore in one.
diffusers is imported where it is needed only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import CheckpointError, InputError, MissingPackageError
from ..types import LatentSpec
from . import lora as loras
from . import single_file
from .folding import fold_constants
from .prediction import TIMESTEPS, Prediction, alphas_cumprod, one_step, to_sample
from .spec import family

TIMESTEP = 399
"""The timestep LAFR's one step is trained at unless a LoRA's metadata says otherwise."""
MODES = ("auto", "one-step", "few-step")
STEPS, DENOISE = 6, 0.3
"""Of few-step mode: partial denoising that keeps the face, as the ComfyUI nodes do without a LoRA."""
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

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) UNet-scaled -> same shape. Differentiable with respect to the latents."""
        self.spec.check(latents, "prior")
        weight = next(self.network.parameters())
        return one_step(lambda z: self.network(z.to(weight)).to(z), latents, self.timestep, self.prediction)


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
    """The one-step prior around a diffusers UNet folder, a pipeline folder with ``unet/`` in it, or one SD file.

    ``timestep`` and ``prediction`` default to what the LoRA's metadata and the scheduler config beside the UNet say, else 399
    and epsilon. ``context`` defaults to :data:`CONTEXT_FILE` beside the LoRA or in the folder; a pipeline folder with
    tokenizer and text encoder computes it. ``dtype`` defaults to bfloat16 on CUDA and float32 elsewhere. Raises
    CheckpointError for a UNet or LoRA of another family (SDXL, inpainting, another text width) and when no context can be
    had; MissingPackageError without diffusers.
    """
    opened = _opened(Path(path), lora, context, prediction, torch.device(device), dtype)
    timestep = timestep if timestep is not None else opened.timestep
    timestep = TIMESTEP if timestep is None else timestep
    if not 0 <= timestep < TIMESTEPS:
        raise InputError(f"timestep: expected 0 to {TIMESTEPS - 1}, got {timestep}")
    return SdPrior(opened.unet, opened.context, timestep=timestep, prediction=opened.prediction, name=opened.name)


class FewStepPrior:
    """A :class:`~lafr_core.types.Prior` that noises the latents to ``denoise`` of the schedule and denoises in ``steps`` steps.

    Deterministic steps (DDIM, Song et al. 2021, arXiv 2010.02502, eta 0); the noise comes from ``seed``, the same for every
    face, so a face's result does not depend on the others.
    """

    def __init__(
        self, unet: nn.Module, context: Tensor, *, prediction: Prediction, steps: int, denoise: float, seed: int, name: str
    ) -> None:
        self.spec: LatentSpec = family("sd")
        self.network, self.context, self.prediction, self.name = unet, context, prediction, name
        self.steps, self.seed = steps, seed
        self._alphas = alphas_cumprod()
        last = round(denoise * (TIMESTEPS - 1))
        self.times = [round(last * (steps - number) / steps) for number in range(steps)]

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) UNet-scaled -> same shape."""
        self.spec.check(latents, "prior")
        weight = next(self.network.parameters())
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn((1, *latents.shape[1:]), generator=generator).to(latents)
        alpha = float(self._alphas[self.times[0]])
        z = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
        clean = latents
        for now, then in zip(self.times, [*self.times[1:], None], strict=True):
            alpha = float(self._alphas[now])
            t = torch.full((len(z),), now, dtype=torch.int64, device=z.device)
            output = self.network(z.to(weight), t, self.context.expand(len(z), -1, -1)).sample.to(latents)
            clean = to_sample(output, z, alpha, self.prediction)
            noise = (z - alpha**0.5 * clean) / (1 - alpha) ** 0.5
            if then is not None:
                alpha = float(self._alphas[then])
                z = alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise
        return clean


def open_sd_finisher(
    path: Path,
    *,
    lora: Path | None = None,
    mode: str = "auto",
    steps: int | None = None,
    denoise: float | None = None,
    seed: int = 0,
    context: Path | None = None,
    device: torch.device | str = "cpu",
) -> SdPrior | FewStepPrior:
    """A user's checkpoint as the prior, the way a command line asks for it.

    mode: ``one-step`` needs ``lora``, ``few-step`` does without; ``auto`` is one step with a LoRA and few without. steps and
    denoise are few-step's. Raises InputError for a mode that cannot give a good picture or options that it does not have, and
    as :func:`open_sd_prior`.
    """
    if mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    chosen = ("one-step" if lora is not None else "few-step") if mode == "auto" else mode
    if chosen == "one-step":
        if lora is None:
            raise InputError(
                f"{path}: one step needs the LAFR LoRA that was trained for this UNet, a plain one only blurs faces so; "
                "give --lora, or choose --mode few-step"
            )
        if steps is not None or denoise is not None:
            raise InputError("steps, denoise: one-step mode has neither; leave them out, or choose --mode few-step")
        return open_sd_prior(path, lora=lora, context=context, device=device)
    steps, denoise = STEPS if steps is None else steps, DENOISE if denoise is None else denoise
    if steps < 1 or not 0 < denoise <= 1:
        raise InputError(f"few-step mode: expected 1 or more steps and denoise in (0, 1], got {steps} and {denoise}")
    opened = _opened(Path(path), lora, context, None, torch.device(device), None)
    return FewStepPrior(
        opened.unet, opened.context, prediction=opened.prediction, steps=steps, denoise=denoise, seed=seed, name=opened.name
    )


class _Opened(NamedTuple):
    unet: nn.Module
    context: Tensor
    prediction: Prediction
    timestep: int | None
    name: str


def _opened(
    path: Path,
    lora: Path | None,
    context: Path | None,
    prediction: Prediction | None,
    device: torch.device,
    dtype: torch.dtype | None,
) -> _Opened:
    """The UNet with its LoRA merged, and what belongs to it."""
    unet = load_unet(path)
    width = int(unet.config.cross_attention_dim)  # type: ignore[arg-type, union-attr]
    metadata: dict[str, str] = {}
    timestep: int | None = None
    if lora is not None:
        read = loras.load_lora(lora)
        check_family(read, width, lora)
        loras.merge(unet, read)
        metadata, timestep = read.metadata, read.number("timestep")
    prediction = prediction or cast("Prediction", metadata.get("prediction") or prediction_of(path))
    embedding = find_context(path, lora=lora, context=context)
    if embedding.shape[-1] != width:
        raise CheckpointError(
            f"empty prompt: expected width {width} for this UNet, got {embedding.shape[-1]}; the file is of another family "
            "(SD 1.x is 768 wide, SD 2.x 1024)"
        )
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    name = f"{path.name} + {Path(lora).name}" if lora is not None else path.name
    nn.Module.to(unet, device, dtype)  # diffusers' own warns of modules to be kept in float32 even where there are none
    return _Opened(unet, embedding.to(device, dtype), prediction, timestep, name)


def load_unet(path: Path) -> nn.Module:
    """A diffusers ``UNet2DConditionModel`` of SD 1.x/2.x, float32, frozen: from a UNet or pipeline folder, or from one file.

    A file is a whole SD checkpoint or a UNet alone, fp16 too (:mod:`.single_file`). Only safetensors weights are read. Raises
    CheckpointError when the folder or its kind is wrong, naming what was found.
    """
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise MissingPackageError("a Stable Diffusion prior needs diffusers; install it with: pip install diffusers") from error
    path = Path(path)
    if path.is_file():
        tensors, config = single_file.unet_tensors(path)
        check_unet_config(config, path)
        with torch.device("meta"):
            made: Any = UNet2DConditionModel(**config)
        try:
            made.load_state_dict(tensors, strict=True, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{path}: its UNet is not of the SD 1.x/2.x kind ({error}); use SD 1.5 or 2.1") from error
        return made.eval().requires_grad_(False)
    folder = unet_folder(path)
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{folder}: expected a diffusers UNet folder with config.json or one SD .safetensors file; check the path"
        )
    check_unet_config(_json(file), file)
    try:
        unet = UNet2DConditionModel.from_pretrained(
            str(folder), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, variant=_variant(folder)
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the UNet's weights cannot be read ({error}); fetch them again as safetensors"
        ) from error
    return unet.eval().requires_grad_(False)


def unet_folder(path: Path) -> Path:
    """The UNet's own folder: a pipeline's ``unet/``, or the folder itself."""
    return path / "unet" if (path / "unet" / "config.json").is_file() else path


def _variant(folder: Path) -> str | None:
    """``fp16`` where a folder holds that variant's weights only."""
    plain, half = (folder / f"diffusion_pytorch_model{word}.safetensors" for word in ("", ".fp16"))
    return "fp16" if half.is_file() and not plain.is_file() else None


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


def prediction_of(path: Path) -> Prediction:
    """What the scheduler config beside the UNet says it predicts, or a single file's weights; epsilon when neither tells."""
    if path.is_file():
        return single_file.prediction(path)
    own = unet_folder(path)
    for folder in (own, own.parent / "scheduler"):
        file = folder / "scheduler_config.json"
        if file.is_file():
            return cast("Prediction", _json(file).get("prediction_type", "epsilon"))
    return "epsilon"


def find_context(path: Path, *, lora: Path | None = None, context: Path | None = None) -> Tensor:
    """The empty prompt's embedding (1, tokens, width): the given file, the stored one, or computed from the pipeline folder
    or by the text encoder in the single file.
    """
    folders = ([Path(lora).parent] if lora is not None else []) + [path, path.parent]
    candidates = [Path(context)] if context is not None else [folder / CONTEXT_FILE for folder in folders]
    for file in candidates:
        if file.is_file():
            return load_context(file)
    for folder in (path, path.parent):
        if context is None and (folder / "text_encoder" / "config.json").is_file() and (folder / "tokenizer").is_dir():
            return encode_empty_prompt(folder)
    if context is None and path.is_file():
        computed = single_file.context(path)
        if computed is not None:
            return computed
    raise CheckpointError(
        f"{candidates[0]}: no empty-prompt embedding there; training writes {CONTEXT_FILE} beside its LoRA, "
        "or give a whole checkpoint, or a pipeline folder with tokenizer/ and text_encoder/"
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
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); fetch the model folder again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(data).__name__}")
    return data
