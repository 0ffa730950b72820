"""The adapter's confidence map: how far its latents are from the sharp face's, learned where the truth is known.

    python -m train pairs      --config train/configs/starter_confidence.yaml --data.source FACES --data.pairs runs/aligned
    python -m train confidence --config train/configs/starter_confidence.yaml --data.pairs runs/aligned

The expected error b of every cell is learned as the scale of a Laplace distribution, -log p = log b + e / b (Kendall and Gal,
"What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", 2017, section 3.1), whose best b is the mean of
e. Stored pairs that hold no aligned latents are aligned on the way. The last step's averaged weights become
``confidence.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.confidence import ConfidenceNet
from train.config import Config
from train.data.pairs import StoredPairs
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import adapter_for_prior, aligned_latents, averaged, left_beside, seeded
from train.engine.run import command, join_processes

SPREAD_FACES = 64
"""Sharp faces that the unit of confidence is taken from."""


class ConfidenceTask(NetworkTask):
    """Input and aligned latents -> the error of the aligned ones."""

    name = "confidence"

    def __init__(self, config: Config, channels: int, adapter: AdapterNet | None, spread: float) -> None:
        stage = config.confidence
        with seeded(config.seed):
            network = ConfidenceNet(config.models.family, channels, stage.width, stage.deep, config.network.grid)
        network.spread.fill_(spread)
        super().__init__(network)
        self.adapter = adapter

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        aligned = aligned_latents(batch, self.adapter)
        error = (aligned - batch["z_hq"]).abs().mean(1, keepdim=True)
        expected = model(batch["z_lq"], aligned).float()
        self.off = (expected.detach() - error).abs().mean()
        return {"likelihood": (expected.log() + error / expected).mean()}

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"off": self.off}


def spread_of(samples: StoredPairs) -> float:
    """Mean absolute distance of the first sharp faces from their mean face."""
    sharp = torch.stack([samples.first.read(row, "z_hq").float() for row in range(min(len(samples), SPREAD_FACES))])
    return float((sharp - sharp.mean(0)).abs().mean())


def run(config: Config) -> Path:
    """Train the network and write it beside its checkpoints; returns the file."""
    device = join_processes()
    samples = StoredPairs(replace(config.data, window=0, second_window=0, around=0), config.seed, pixels=False, device=device)
    adapter = None if samples.first.has("z_al") else adapter_for_prior(config)
    task = ConfidenceTask(config, int(samples[0]["z_hq"].shape[0]), adapter, spread_of(samples))
    for network in (task.model, adapter):
        if network is not None:
            network.to(device)
    last = train(task, config.confidence, config, samples)
    task.load_weights({**task.weights(), **averaged(checkpoints.load_state(last))})
    return left_beside(last, "confidence", task.model, config, config.confidence)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
