"""The starter autoencoder: another one's latents (TAESD's) at a fraction of its time.

    python -m train pairs --config train/configs/starter_vae.yaml --data.source FACES --models.vae TAESD --data.pairs runs/taesd
    python -m train vae   --config train/configs/starter_vae.yaml --data.pairs runs/taesd

Encoder and decoder learn together on patches of stored pairs: the latents are held to the teacher's (madebyollin/taesd, MIT),
the decoder has to read the teacher's latents as well as its own, and the round trip has to return the pixels. The last step's
averaged weights become ``vae.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from train.config import Config
from train.data.faces import Picture, locate
from train.data.pairs import FACTOR, Shards
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, left_beside, seeded
from train.engine.run import command, join_processes
from train.precision import channels_last

BORDER = 2
"""Latent cells next to a patch's edge are left out of the latent loss: the teacher saw what lies beyond, the student not."""


class Patches:
    """Stream position -> ``pixels`` (3, 8p, 8p) in [0, 1] and the teacher's ``latents`` (C, p, p) of a random patch."""

    def __init__(self, config: Config) -> None:
        self.config, self.data, self.stage = config, config.data, config.vae
        self.shards = Shards(config.data.pairs)
        self.pictures = [Picture(path.name, path) for path in self.shards.files]

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 9, position])
        row, side = locate(position, len(self.shards), self.config.seed)[1], self.stage.patch
        top, left = (int(v) for v in g.integers(0, self.shards.cells - side + 1, 2))
        cells = (slice(top, top + side), slice(left, left + side))
        dots = tuple(slice(c.start * FACTOR, c.stop * FACTOR) for c in cells)
        spoilt = self.shards.has("spoilt") and g.random() < self.stage.degraded
        where = (int(g.integers(self.shards.versions)), slice(None)) if spoilt else (slice(None),)
        pixels = self.shards.read(row, "spoilt" if spoilt else "sharp", *where, *dots)
        latents = self.shards.read(row, "z_lq" if spoilt else "z_hq", *where, *cells)
        return {"pixels": pixels.float() / 255, "latents": latents.float()}


def edges(image: Tensor) -> Tensor:
    """Horizontal and vertical differences, concatenated along the channels (last row and column dropped)."""
    dx = image[..., :-1, 1:] - image[..., :-1, :-1]
    dy = image[..., 1:, :-1] - image[..., :-1, :-1]
    return torch.cat([dx, dy], dim=1)


def pixel_loss(result: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels and on their differences: the second keeps edges and texture from washing out."""
    return F.l1_loss(result, target) + F.l1_loss(edges(result), edges(target))


class RoundTrip(nn.Module):
    """The autoencoder as one pass: pixels and the teacher's latents -> its own latents, and both decoded."""

    def __init__(self, network: StarterVaeNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        z = self.network.encoder(pixels)
        return z, self.network.decoder(torch.cat([z, latents.to(z.dtype)]))


class VaeTask(NetworkTask):
    """Patches -> the teacher's latents and back, from its latents and from the teacher's."""

    name = "vae"

    def __init__(self, config: Config) -> None:
        self.config, self.stage = config, config.vae
        with seeded(config.seed):
            network = StarterVaeNet()
        if config.models.init:
            network = checkpoint.open_network(Path(config.models.init), "vae", StarterVaeNet).requires_grad_(True)
        super().__init__(RoundTrip(network))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        pixels, wanted = channels_last(batch["pixels"]), batch["latents"]
        z, decoded = model(pixels, wanted)
        inner = (slice(None), slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        own, cross = decoded.float().chunk(2)
        self.decibel = (own.detach().clamp(0, 1) - pixels).square().mean().log10() * -10
        return {
            "latent": self.stage.latent_weight * F.l1_loss(z.float()[inner], wanted[inner]),
            "own": pixel_loss(own, pixels),
            "cross": pixel_loss(cross, pixels),
        }

    def architecture(self) -> dict[str, Any]:
        network: Any = self.model.network
        return dict(network.config)

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"psnr": self.decibel}


def run(config: Config) -> Path:
    """Train the autoencoder and write it beside its checkpoints; returns the file."""
    device = join_processes()
    task = VaeTask(config)
    task.model.to(device)
    last = train(task, config.vae, config, Patches(config))
    task.load_weights(averaged(checkpoints.load_state(last)))
    network: Any = task.model.network
    return left_beside(last, "vae", network, config, config.vae)


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
