"""The frozen models around what a stage trains: autoencoder, adapter, Stable Diffusion UNet with its LoRA, from a config."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lafr_core.errors import CheckpointError, MissingPackageError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.prediction import Prediction, one_step
from lafr_core.latent.sd_prior import find_context, load_unet, prediction_of
from lafr_core.latent.spec import family
from lafr_core.latent.vae import KlVae, StarterVae, TinyVae, open_tiny, open_vae
from lafr_core.store import checkpoint
from lafr_core.types import Vae
from train.config import Config, PriorStage, Stage
from train.data.faces import Picture, load_picture, to_tensor
from train.engine import checkpoints
from train.precision import DTYPES

Net = TypeVar("Net", AdapterNet, PriorNet)
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("conv_in", "conv1", "conv2", "conv_shortcut", "conv_out", "downsamplers.0.conv", "upsamplers.0.conv"),
)
"""Attention projections and convolutions. The projections around the transformers stay out: with them, SD 2.1's LoRA and the
adapter together would exceed 7.5 M parameters."""


LORA_MORE = (*LORA_TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
"""With the projections around the transformers and their feed-forward layers (prior.lora_more)."""


def vae_of(config: Config, device: torch.device) -> Vae:
    """The config's autoencoder, frozen. Raises CheckpointError when its latents are of another family than the config's."""
    return named_vae(config.models.vae, config.models.family, device)


def named_vae(where: str, name: str, device: torch.device) -> Vae:
    """The autoencoder at ``where`` ("" = the starter's) of latent family ``name``; a folder may hold a TAESD sibling's files.

    Its decoder recomputes what it can in the backward pass. Raises CheckpointError when its latents are of another family.
    """
    path = Path(where)
    if where and (path / f"{family(name).tiny}_encoder.safetensors").is_file():
        vae = open_tiny(path, name, device)
    else:
        vae = open_vae(path if where else None, device)
    if vae.spec.name != name:
        raise CheckpointError(f"models.vae: expected latents of family {name!r}, got {vae.spec.name!r}")
    spare_memory(vae)
    return vae


def tuned(vae: Vae) -> Vae:
    """The same autoencoder with channels innermost in memory, in place: what convolutions are fastest on."""
    network = getattr(vae, "network", None)
    if isinstance(network, nn.Module):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return vae


def decoders_of(config: Config, vae: Vae, device: torch.device) -> list[Callable[[Tensor], Tensor] | None]:
    """What reads the latents of each kind of stored pairs: the config's autoencoder, and its second one where there is one."""
    second = named_vae(config.models.second_vae, config.models.family, device) if config.models.second_vae else None
    return [decoder_of(vae), decoder_of(second) if second is not None else None]


def decoder_of(vae: Vae) -> Callable[[Tensor], Tensor]:
    """The autoencoder's decoder without the final clamp, which would cut the gradient of every saturated pixel."""
    if isinstance(vae, StarterVae):
        return cast(Callable[[Tensor], Tensor], vae.network.decoder)
    if isinstance(vae, TinyVae):
        return lambda z: vae.network.decoder(z) * 0.5 + 0.5  # type: ignore[operator]
    if isinstance(vae, KlVae):
        return lambda z: vae.network.decode(vae.spec.to_raw(z)).sample * 0.5 + 0.5
    return vae.decode


def spare_memory(vae: Vae) -> None:
    """Let a decoder of diffusers recompute its activations in the backward pass; ours is small enough to keep them."""
    if isinstance(vae, (KlVae, TinyVae)):
        vae.network.enable_gradient_checkpointing()  # type: ignore[operator]
        # diffusers checkpoints in training mode only; its VAEs have neither dropout nor batch statistics.
        vae.network.decoder.train()  # type: ignore[operator, union-attr]


def latent_features(config: Config, device: torch.device) -> Callable[[Sequence[Picture]], Tensor]:
    """What k-centre subset selection compares: each picture's latents, averaged to 8x8 cells and flattened."""

    @torch.no_grad()
    def features(pictures: Sequence[Picture]) -> Tensor:
        vae = vae_of(config, device)
        rows, count = [], 8
        for start in range(0, len(pictures), count):
            batch = [to_tensor(load_picture(picture, config.data.size)) for picture in pictures[start : start + count]]
            z = vae.encode(torch.stack(batch).to(device))
            rows.append(nn.functional.adaptive_avg_pool2d(z, 8).flatten(1).cpu())
        return torch.cat(rows)

    return features


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn inside the ``with`` come from ``seed``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def new_adapter(config: Config, channels: int) -> AdapterNet:
    """An untrained adapter of the config's sizes, drawn from the config's seed; the global generator is left alone."""
    n = config.network
    with seeded(config.seed):
        return AdapterNet(
            family=config.models.family, channels=channels, width=n.width, coarse=n.coarse, deep=n.deep,
            code_width=n.code_width, entries=n.entries, top_k=n.top_k, depth=n.depth, grid=n.grid, deep_depth=n.deep_depth,
        )  # fmt: skip


def grown(network: Net, **least: int) -> Net:
    """The network with its depths raised to ``least`` where they are below, or itself.

    New blocks end in a layer of zeros, so it does what it did. Nothing ever shrinks.
    """
    config = cast(dict[str, Any], network.config)
    sizes = {**config, **{name: max(config[name], value) for name, value in least.items()}}
    if sizes == config:
        return network
    larger = type(network)(**sizes)
    larger.load_state_dict({**larger.state_dict(), **network.state_dict()}, strict=True)
    return larger


def first_adapter(config: Config, channels: int) -> AdapterNet:
    """The adapter a run begins with: the file of models.init, grown to the config's depths, or a new one."""
    if not config.models.init:
        return new_adapter(config, channels)
    network = checkpoint.open_network(Path(config.models.init), "adapter", AdapterNet)
    with seeded(config.seed):
        return grown(network, depth=config.network.depth, deep_depth=config.network.deep_depth)


def first_prior(config: Config, channels: int) -> PriorNet:
    """The starter prior a run begins with, likewise."""
    if not config.models.init:
        return new_prior(config, channels)
    network = checkpoint.open_network(Path(config.models.init), "prior", PriorNet)
    with seeded(config.seed):
        return grown(network, depth=config.network.prior_depth)


def rebuilt(state: Mapping[str, Any], config: Config, kind: str) -> nn.Module:
    """The adapter or prior of a training checkpoint with its averaged weights, frozen.

    Its architecture is the one the checkpoint carries; checkpoints from before they did are built by their config.
    """
    weights = averaged(state)
    sizes = state.get("network")
    network: nn.Module
    if kind == "adapter":
        stem = "extractor.stem.weight"
        network = AdapterNet(**sizes) if sizes else new_adapter(config, weights[stem].shape[1])
    else:
        network = PriorNet(**sizes) if sizes else new_prior(config, weights["stem.weight"].shape[1])
    network.load_state_dict(weights, strict=True)
    return network.eval().requires_grad_(False)


def part(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The network called ``name`` of a checkpoint that holds several, as the state of one alone (:func:`rebuilt`)."""
    own = lambda tensors: {k.removeprefix(f"{name}."): t for k, t in tensors.items() if k.startswith(f"{name}.")}
    return {"weights": own(state["weights"]), "average": own(state["average"]), "network": state["network"][name]}


def fidelity_parts(network: AdapterNet) -> tuple[nn.Module, ...]:
    """The mapping's layers that act above fidelity 0 only: both gates and the correction of the input."""
    mapping = network.mapping
    return mapping.coarse_gate, mapping.fine_gate, mapping.correction


def new_prior(config: Config, channels: int) -> PriorNet:
    """An untrained starter prior of the config's sizes, likewise."""
    n = config.network
    widths = (n.prior_widths[0], n.prior_widths[1], n.prior_widths[2])
    with seeded(config.seed):
        return PriorNet(
            family=config.models.family, channels=channels, widths=widths, depth=n.prior_depth, grid=n.grid,
            groups=n.prior_groups, attention=n.prior_attention, sharpen=n.prior_sharpen,
        )  # fmt: skip


def averaged(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's weights with the moving averages where there are any: what evaluation and export use."""
    return {**state["weights"], **state["average"]}


def left_beside(last: Path, kind: str, network: nn.Module, config: Config, stage: Stage) -> Path:
    """Write a finished network, licence and run noted in it, as KIND.safetensors beside the checkpoint ``last``."""
    notes = {"licence": "MIT", "run": config.name, "training": json.dumps({"steps": stage.steps, "seed": config.seed})}
    path = last.parent / f"{kind}.safetensors"
    checkpoint.save(path, kind, network, dict(getattr(network, "config", {})), notes)
    return path


def adapter_from(where: str | Path, stage: str = "adapter") -> AdapterNet:
    """The adapter network of a .safetensors file, or of the best ``stage`` checkpoint in a run; averaged weights, frozen."""
    path = Path(where)
    if path.suffix == ".safetensors":
        return checkpoint.open_network(path, "adapter", AdapterNet)
    path, config, state = checkpoints.open_checkpoint(where, stage)
    return cast(AdapterNet, rebuilt(state, config, "adapter"))


def adapter_for_prior(config: Config) -> AdapterNet | None:
    """The adapter in front of the prior: the given one, else this run's own; None for ``none``."""
    where = config.models.adapter
    return None if where == "none" else adapter_from(where or config.log.out)


def rows_made(z: Tensor, where: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """``z`` (B, ...) in which the rows where ``where`` (B,) is true are ``make(their numbers)``; ``z`` itself where none is."""
    rows = torch.nonzero(where)[:, 0]
    return z.index_copy(0, rows, make(rows).to(z)) if len(rows) else z


@torch.no_grad()
def aligned_latents(batch: Mapping[str, Tensor], adapter: AdapterNet | None) -> Tensor:
    """Aligned latents of whole faces: stored ones, or the adapter's; without an adapter the input's."""
    if "z_al" in batch:
        return batch["z_al"]
    fidelity = batch["fidelity"].view(-1, 1, 1, 1).to(batch["z_lq"])
    return batch["z_lq"] if adapter is None else adapter(batch["z_lq"], fidelity).latents.float()


class OneStep(nn.Module):
    """A UNet with LoRA as the one-step prior that is trained: latents (B, 4, h, w) -> restored latents."""

    def __init__(self, unet: nn.Module, context: Tensor, timestep: int, prediction: Prediction) -> None:
        super().__init__()
        self.unet = unet
        self.timestep, self.prediction = timestep, prediction
        self.register_buffer("context", context)

    def forward(self, latents: Tensor) -> Tensor:
        t = torch.full((latents.shape[0],), self.timestep, dtype=torch.int64, device=latents.device)
        context = self.context.expand(latents.shape[0], -1, -1)  # type: ignore[operator]
        network = lambda z: self.unet(z.to(latents), t, context).sample.float()
        return one_step(network, latents.float(), self.timestep, self.prediction)


def lora_prior(config: Config, device: torch.device) -> OneStep:
    """The config's UNet with a fresh LoRA of rank ``prior.rank``; only the LoRA learns.

    Frozen weights are stored in the stage's precision, the LoRA in float32. Raises CheckpointError for a UNet that does not
    fit, MissingPackageError without peft.
    """
    stage = config.prior
    where = Path(config.models.unet)
    unet = load_unet(where)
    context = find_context(where, context=Path(stage.context) if stage.context else None)
    width = cast(Any, unet).config.cross_attention_dim
    if context.shape[-1] != width:
        raise CheckpointError(
            f"prior.context: expected width {width} for this UNet, got {context.shape[-1]}; it belongs to another family"
        )
    prediction = cast(Prediction, stage.prediction or prediction_of(where))
    storage = torch.float32 if device.type == "cpu" else DTYPES[stage.precision]
    with seeded(config.seed):
        add_lora(unet.to(device, storage), stage)
    if stage.checkpointing:
        cast(Any, unet).enable_gradient_checkpointing()
    return OneStep(unet, context.to(device, storage), stage.timestep, prediction)


def add_lora(unet: nn.Module, stage: PriorStage) -> nn.Module:
    """Attach a float32 LoRA to the UNet's attention projections and convolutions, in place; everything else is frozen."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingPackageError("training a LoRA needs peft; install it with: pip install peft") from error
    unet.requires_grad_(False)
    lora = LoraConfig(
        r=stage.rank,
        lora_alpha=cast(Any, stage.alpha),
        target_modules=list(LORA_MORE if stage.lora_more else LORA_TARGETS),
        init_lora_weights="gaussian",
    )
    cast(Any, unet).add_adapter(lora, adapter_name="default")
    for parameter in unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return unet


def lora_weights(unet: nn.Module) -> dict[str, Tensor]:
    """The LoRA's own tensors by parameter name (``….lora_A.default.weight``)."""
    return {name: p.detach() for name, p in unet.named_parameters() if ".lora_" in name}
