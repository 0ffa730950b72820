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

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import MissingPackageError
from lafr_core.latent.prediction import TIMESTEPS, alphas_cumprod
from lafr_core.latent.sd_prior import CONTEXT_FILE
from train.config import Config, DiffusionStage
from train.data.pairs import StoredPairs
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
    """Noisy latents and their timestep -> the noise, or v."""

    name = "diffusion"

    def __init__(self, config: Config, cells: int, channels: int = 4) -> None:
        self.config, self.stage = config, config.diffusion
        with seeded(config.seed):
            super().__init__(new_unet(self.stage, cells, channels))
        self.alphas = alphas_cumprod().float()
        self.generator = torch.Generator()
        self.step = 0

    def begin(self, model: nn.Module, samples: Any, step: int) -> None:
        self.step = step

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        z, (t, noise) = batch["z_hq"], self.draw(batch["z_hq"], batch["index"])
        alpha = self.alphas.to(z.device)[t].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        wanted = noise if self.stage.prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * z
        context = z.new_zeros(len(z), TOKENS, self.stage.context)
        return {"denoise": F.mse_loss(model(channels_last(noisy), t, context).sample.float(), wanted)}

    def draw(self, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noise like ``z``, each sample's own by (seed, step, sample): the same after a resume and for any
        number of processes.
        """
        times, noise = [], []
        for sample in index.tolist():
            words = np.random.SeedSequence([self.config.seed, 11, self.step, sample]).generate_state(2)
            self.generator.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
            times.append(torch.randint(TIMESTEPS, (), generator=self.generator))
            noise.append(torch.randn(z.shape[1:], generator=self.generator))
        return torch.stack(times).to(z.device), torch.stack(noise).to(z.device)

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
    save_file({"context": torch.zeros(1, TOKENS, stage.context)}, str(folder / CONTEXT_FILE), metadata={"lafr_version": "1"})
    return folder


def run(config: Config) -> Path:
    """Train the denoiser and write its folder beside the checkpoints; returns the folder."""
    device = join_processes()
    samples = StoredPairs(config.data, config.seed, pixels=False, degraded=False)
    shape = samples[0]["z_hq"].shape
    task = DiffusionTask(config, int(shape[-1]), int(shape[0]))
    task.model.to(device)
    last = train(task, config.diffusion, config, samples)
    task.load_weights(averaged(checkpoints.load_state(last)))
    return save_unet(task.model, config.diffusion, last.parent / "unet")


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
