"""Autoencoders from our own file, diffusers folders or single files, all behind :class:`~lafr_core.types.Vae`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, InputError, MissingPackageError
from ..store import checkpoint
from ..store.assets import bundled
from ..types import LatentSpec, Vae
from .networks.vae import StarterVaeNet
from .spec import FAMILIES, family


class StarterVae:
    """The bundled autoencoder; its latents are UNet-scaled already."""

    def __init__(self, network: Any, spec: LatentSpec) -> None:
        self.network, self.spec = network, spec

    def encode(self, pixels: Tensor) -> Tensor:
        return self.network.encoder(_check_pixels(pixels, self.spec))

    def decode(self, latents: Tensor) -> Tensor:
        return self.network.decoder(self.spec.check(latents)).clamp(0, 1)


class TinyVae:
    """diffusers AutoencoderTiny (TAESD and its siblings): the network's own latents are UNet-scaled."""

    def __init__(self, network: Any, spec: LatentSpec) -> None:
        self.network, self.spec = network, spec

    def encode(self, pixels: Tensor) -> Tensor:
        return self.network.encoder(_check_pixels(pixels, self.spec) * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        return (self.network.decoder(self.spec.check(latents)) * 0.5 + 0.5).clamp(0, 1)


class KlVae:
    """diffusers AutoencoderKL: raw latents, scaled here. Encoding takes the posterior's mode, so it is deterministic."""

    def __init__(self, network: Any, spec: LatentSpec) -> None:
        self.network, self.spec = network, spec

    def encode(self, pixels: Tensor) -> Tensor:
        raw = self.network.encode(_check_pixels(pixels, self.spec) * 2 - 1).latent_dist.mode()
        return self.spec.to_scaled(raw)

    def decode(self, latents: Tensor) -> Tensor:
        image = self.network.decode(self.spec.to_raw(self.spec.check(latents))).sample
        return (image * 0.5 + 0.5).clamp(0, 1)


def open_vae(path: Path | None = None, device: torch.device | str = "cpu") -> Vae:
    """The autoencoder at ``path``, in eval mode, frozen, float32, on ``device``.

    None = the bundled starter VAE. A folder = a diffusers VAE folder (``config.json`` naming AutoencoderKL or
    AutoencoderTiny). A single .safetensors file = a LAFR vae file or an SD 1.x/2.x or SDXL AutoencoderKL in diffusers' or the
    original layout. Where two families share shape and layout, what the encoder makes of gray decides. Raises
    CheckpointError, MissingPackageError.
    """
    path = bundled("vae") if path is None else Path(path)
    if path.is_dir():
        return _from_folder(path, device)
    if _is_ours(path):
        network = checkpoint.open_network(path, "vae", StarterVaeNet)
        return StarterVae(network.to(device), family(str(network.config["family"])))
    return _from_single_file(path, device)


def open_tiny(folder: Path, name: str, device: torch.device | str = "cpu") -> Vae:
    """The TAESD sibling of latent family ``name`` from its author's two files, ``taesd_encoder.safetensors`` and
    ``taesd_decoder.safetensors`` (taesdxl, taesd3, taef1) in ``folder``: what ComfyUI keeps in ``models/vae_approx``.

    In eval mode, frozen, float32, on ``device``. Raises InputError for an unknown family, CheckpointError, MissingPackageError.
    """
    spec = family(name)
    network = _diffusers().AutoencoderTiny(latent_channels=spec.channels)
    # The author counts the decoder's clamp as layer 0; diffusers clamps outside its list.
    for part, offset in (("encoder", 0), ("decoder", 1)):
        path = Path(folder) / f"{spec.tiny}_{part}.safetensors"
        if not path.is_file():
            raise CheckpointError(f"{path}: expected the {spec.tiny} {part} there, found none; get both files into one folder")
        try:
            tensors = {_tiny_name(key, offset): t.float() for key, t in _read(path).items()}
            getattr(network, part).load_state_dict(tensors, strict=True)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: its tensors are not those of a {spec.tiny} {part} ({error})") from error
    return TinyVae(network.to(device).eval().requires_grad_(False), spec)


def _tiny_name(key: str, offset: int) -> str:
    """``3.conv.0.weight`` -> ``layers.2.conv.0.weight`` for an offset of 1."""
    layer, rest = key.split(".", 1)
    return f"layers.{int(layer) - offset}.{rest}"


def _from_folder(folder: Path, device: torch.device | str) -> Vae:
    config_file = folder / "config.json"
    if not config_file.is_file() and (folder / "vae" / "config.json").is_file():  # a whole pipeline folder
        folder = folder / "vae"
        config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        kind = config.get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder}: expected a diffusers VAE folder with a readable config.json ({error})") from error
    diffusers = _diffusers()
    kinds: dict[str, Callable[[Any, LatentSpec], Vae]] = {"AutoencoderKL": KlVae, "AutoencoderTiny": TinyVae}
    if kind not in kinds:
        raise CheckpointError(f"{folder}: expected AutoencoderKL or AutoencoderTiny in config.json, got {kind!r}")
    specs = _specs_of(config, folder)
    try:
        network = getattr(diffusers, kind).from_pretrained(str(folder), local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: diffusers cannot load this VAE ({error}); check that it is complete") from error
    return _recognised([kinds[kind](network.to(device, torch.float32).eval().requires_grad_(False), spec) for spec in specs])


def _from_single_file(path: Path, device: torch.device | str) -> Vae:
    """An SD 1.x/2.x or SDXL AutoencoderKL from one file: diffusers' layout, the original one, or inside a whole checkpoint."""
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a VAE folder or .safetensors file, found nothing there; check the path")
    tensors = _read(path)
    prefix = "first_stage_model."
    if any(name.startswith(prefix) for name in tensors):  # a whole checkpoint: keep its VAE only
        tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    if "decoder.conv_in.weight" not in tensors:
        raise CheckpointError(
            f"{path}: expected a LAFR vae file or an SD AutoencoderKL, got tensors such as {sorted(tensors)[:2]}"
        )
    latent_channels = tensors["decoder.conv_in.weight"].shape[1]
    if latent_channels != 4:
        raise CheckpointError(
            f"{path}: expected an SD VAE with 4 latent channels, got {latent_channels}; pass its diffusers folder"
        )
    network = _diffusers().AutoencoderKL(**_SD_VAE)
    try:
        network.load_state_dict(
            {_diffusers_name(name): _as_linear(name, t.float()) for name, t in tensors.items()}, strict=True
        )
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its tensors are not those of the SD 1.x/2.x VAE ({error})") from error
    network = network.to(device).eval().requires_grad_(False)
    return _recognised([KlVae(network, family(name)) for name in ("sd", "sdxl")])


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch it again") from error


def _diffusers_name(name: str) -> str:
    """An original (latent-diffusion) VAE tensor name in diffusers' words; diffusers names pass through.

    The original counts its up blocks from the coarse end inwards: ``up.3`` runs first, diffusers' ``up_blocks.0``.
    """
    name = re.sub(r"\.up\.(\d)\.", lambda m: f".up_blocks.{3 - int(m[1])}.", name)
    for pattern, new in _ORIGINAL_NAMES:
        name = re.sub(pattern, new, name)
    return name


def _as_linear(name: str, tensor: Tensor) -> Tensor:
    """The original's attention projections are 1x1 convolutions (C, C, 1, 1), diffusers' are linear (C, C)."""
    return tensor[..., 0, 0] if ".mid.attn_1." in name and tensor.ndim == 4 else tensor


def _is_ours(path: Path) -> bool:
    """Whether the file is LAFR's, judged by its metadata."""
    if not path.is_file():
        return False
    try:
        with safe_open(str(path), framework="pt") as file:
            return "lafr_kind" in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _specs_of(config: dict[str, Any], folder: Path) -> list[LatentSpec]:
    """The latent families that a VAE folder may be of, by channels and scale. AutoencoderTiny has no scale: two are left."""
    channels = config.get("latent_channels", 4)
    scale = config.get("scaling_factor", 0.18215)
    specs = [s for s in FAMILIES.values() if s.channels == channels and (scale == 1.0 or abs(s.scale - scale) < 1e-4)]
    if not specs:
        raise CheckpointError(
            f"{folder}: expected a VAE of one of {', '.join(FAMILIES)}, got {channels} latent channels with scaling "
            f"factor {scale}"
        )
    return specs


def _recognised(choices: Sequence[Vae]) -> Vae:
    """Of one network read as several families, the reading whose middle gray is that family's; the first where none is.

    SD and SDXL, SD3 and FLUX.1 share shapes and file layouts, but not what gray is: the families lie more than 1 apart.
    """
    if len(choices) == 1:
        return choices[0]

    @torch.no_grad()
    def error(vae: Vae) -> float:
        weight = next(vae.network.parameters())  # type: ignore[attr-defined]
        seen = vae.encode(torch.full((1, 3, 64, 64), 0.5).to(weight))[0, :, 4, 4]  # the middle: away from the border's padding
        return float((seen - torch.tensor(vae.spec.gray).to(seen)).norm())

    errors = [error(vae) for vae in choices]
    best = min(range(len(choices)), key=errors.__getitem__)
    return choices[best] if errors[best] < errors[0] / 2 else choices[0]


def _check_pixels(pixels: Tensor, spec: LatentSpec) -> Tensor:
    if pixels.ndim != 4 or pixels.shape[1] != 3 or any(side % spec.factor or not side for side in pixels.shape[-2:]):
        raise InputError(f"pixels: expected (B, 3, H, W) with H and W multiples of {spec.factor}, got {tuple(pixels.shape)}")
    return pixels


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingPackageError(
            "this VAE needs diffusers: pip install diffusers, or leave the VAE out to use the starter"
        ) from error
    return diffusers


# stabilityai and runwayml published one VAE shape for SD 1.x and 2.x.
_SD_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}

_ORIGINAL_NAMES = (
    (r"\.down\.(\d)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up_blocks\.(\d)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up_blocks\.(\d)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.q\.", ".mid_block.attentions.0.to_q."),
    (r"\.mid\.attn_1\.k\.", ".mid_block.attentions.0.to_k."),
    (r"\.mid\.attn_1\.v\.", ".mid_block.attentions.0.to_v."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
