"""A small diffusion prior with Stable Diffusion's interface: a denoiser over all timesteps in SD's latent space, empty text.

    python -m train pairs     --config train/configs/diffusion_small.yaml --data.source FACES --data.pairs runs/pairs
    python -m train diffusion --config train/configs/diffusion_small.yaml --data.pairs runs/pairs

A UNet2DConditionModel of some ten million parameters learns to predict the noise (or v, Salimans and Ho 2022, arXiv
2202.00512) that was added to clean latents at a timestep drawn uniformly from SD's schedule (Ho et al. 2020, arXiv 2006.11239).
The averaged weights become a diffusers UNet folder ``unet/`` beside the checkpoints, with scheduler config and the stored empty
prompt: whatever takes a diffusers folder of SD takes it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import MissingPackageError
from lafr_core.latent.prediction import TIMESTEPS, alphas_cumprod
from lafr_core.latent.sd_prior import CONTEXT_FILE, load_unet
from lafr_core.store.checkpoint import write_tensors
from train.config import Config, DiffusionStage
from train.data import noise
from train.data.pairs import Shards, StoredPairs
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command, join_processes
from train.precision import channels_last

TOKENS = 1
"""Of the constant text."""


def new_unet(stage: DiffusionStage, cells: int, channels: int = 4) -> nn.Module:
    """An untrained UNet2DConditionModel of the stage's sizes; attention on all levels but the finest."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise MissingPackageError("the diffusion stage needs diffusers; install it with: pip install diffusers") from error
    levels = len(stage.channels)
    unet: nn.Module = UNet2DConditionModel(
        sample_size=cells,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=tuple(stage.channels),
        layers_per_block=stage.layers,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        cross_attention_dim=stage.context,
        attention_head_dim=tuple(max(1, width // 32) for width in stage.channels),
        norm_num_groups=32,
    )  # type: ignore[assignment]
    return unet


class DiffusionTask(NetworkTask):
    """Noisy latents and their timestep -> the noise, or v. models.unet names a UNet to go on from."""

    name = "diffusion"

    def __init__(self, config: Config, cells: int, channels: int = 4) -> None:
        self.config, self.stage = config, config.diffusion
        with seeded(config.seed):
            first = load_unet(Path(config.models.unet)) if config.models.unet else new_unet(self.stage, cells, channels)
        super().__init__(first.requires_grad_(True))
        self.alphas = alphas_cumprod().float()
        self.step = 0

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        self.step = step

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z, (t, added) = batch["z_hq"], self.draw(batch["z_hq"], batch["index"])
        alpha = self.alphas.to(z.device)[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * added
        wanted = added if self.stage.prediction == "epsilon" else alpha.sqrt() * added - (1 - alpha).sqrt() * z
        context = z.new_zeros(len(z), TOKENS, self.stage.context)
        return {"denoise": F.mse_loss(model(channels_last(noisy), t, context).sample.float(), wanted)}

    def draw(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noise like ``z``, each sample's own by (seed, step, sample): the same after a resume, for any
        number of processes and, up to rounding, on any device.
        """
        keys = noise.keys([self.config.seed, 11, self.step], index.to(z.device))
        return noise.below(TIMESTEPS, keys), noise.normal(keys, z.shape[1:])

    def architecture(self) -> dict[str, Any]:
        return {}


@torch.no_grad()
def denoised(unet: nn.Module, stage: DiffusionStage, noisy: Tensor, start: int, steps: int) -> Tensor:
    """Latents noised to timestep ``start`` -> clean ones in ``steps`` deterministic steps (DDIM, Song et al. 2021)."""
    alphas, z = alphas_cumprod().float(), noisy
    times = torch.linspace(start, 0, steps + 1).round().long().tolist()
    context = noisy.new_zeros(len(noisy), TOKENS, stage.context)
    for now, then in itertools.pairwise(times):
        a, b = float(alphas[now]), float(alphas[then]) if then else 1.0
        out = unet(z, torch.full((len(z),), now, device=z.device), context).sample.float()
        if stage.prediction == "epsilon":
            clean, noise = (z - (1 - a) ** 0.5 * out) / a**0.5, out
        else:
            clean, noise = a**0.5 * z - (1 - a) ** 0.5 * out, a**0.5 * out + (1 - a) ** 0.5 * z
        z = b**0.5 * clean + (1 - b) ** 0.5 * noise
    return z


def save_unet(unet: Any, stage: DiffusionStage, folder: Path) -> Path:
    """Write a diffusers UNet folder with the scheduler config and the stored empty prompt; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_pretrained(str(folder))
    scheduler = {
        "_class_name": "DDIMScheduler", "num_train_timesteps": TIMESTEPS, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "prediction_type": stage.prediction, "clip_sample": False, "steps_offset": 1,
    }  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler, indent=1), encoding="utf-8")
    write_tensors({"context": torch.zeros(1, TOKENS, stage.context)}, folder / CONTEXT_FILE, {"lafr_version": "1"})
    return folder


class Denoising:
    """Scores a denoiser on clean latents it has not learned: minus the mean squared error over fixed timesteps and noise."""

    def __init__(self, latents: Tensor, config: Config) -> None:
        self.latents, self.config = latents, config

    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        step, task.step = task.step, 0
        errors = []
        for number, part in enumerate(self.latents.to(device).split(32)):
            index = torch.arange(len(part), device=device) + 32 * number
            errors.append(task.losses(task.model, {"z_hq": part, "index": index})["denoise"] * len(part))
        task.step = step
        return {self.config.log.best: -float(torch.stack(errors).sum()) / len(self.latents)}


def run(config: Config, held_out: Shards | None = None) -> Path:
    """Train the denoiser and write its folder beside the checkpoints; returns the folder. ``held_out``: clean latents that the
    validation curve is measured on.
    """
    device = join_processes()
    samples = StoredPairs(config.data, config.seed, pixels=False, degraded=False, device=device)
    shape = samples[0]["z_hq"].shape
    task = DiffusionTask(config, int(shape[-1]), int(shape[0]))
    task.model.to(device)
    judge = Denoising(held_out.together("z_hq", device).float(), config) if held_out is not None else None
    last = train(task, config.diffusion, config, samples, None, judge)
    task.load_weights(averaged(checkpoints.load_state(last)))
    return save_unet(task.model, config.diffusion, last.parent / "unet")


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
