"""Claim 2's two arms: the adapter learns, or the autoencoder's encoder does; both from the latent term alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lafr_core.latent.networks.adapter import AdapterNet
from train.config import Config
from train.data.faces import Picture, locate
from train.data.pairs import Shards
from train.engine.journal import read_rows
from train.engine.loop import NetworkTask
from train.judges import losses

ARMS = ("adapter", "adapter_encoding", "encoder")
"""The adapter on stored latents; the same with every batch encoded afresh; the encoder, which has to see pixels."""


class Spoilt:
    """Stream position -> ``z_lq`` and ``z_hq`` (C, h, h), and ``lq`` (3, S, S) where an arm encodes."""

    def __init__(self, config: Config, *, pixels: bool) -> None:
        self.config, self.data, self.pixels = config, config.data, pixels
        self.shards = Shards(config.data.pairs)
        self.pictures = [Picture(path.name, path) for path in self.shards.files]

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 12, position])
        row = locate(position, len(self.shards), self.config.seed)[1]
        version = int(g.integers(self.shards.versions))
        sample = {"z_lq": self.shards.read(row, "z_lq", version).float(), "z_hq": self.shards.read(row, "z_hq").float()}
        if self.pixels:
            sample["lq"] = self.shards.read(row, "spoilt", version).float() / 255
        return sample


class Arm(NetworkTask):
    """One arm: degraded latents or pixels -> clean latents, L1."""

    def __init__(self, name: str, vae: Any, adapter: AdapterNet, fidelity: float) -> None:
        self.name, self.vae, self.fidelity = name, copy.deepcopy(vae), fidelity
        network: nn.Module = (self.vae.network.encoder if name == "encoder" else copy.deepcopy(adapter)).requires_grad_(True)
        if isinstance(network, AdapterNet):
            network.codebook.requires_grad_(False)
        super().__init__(network)

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"latent": losses.latent(self.latents(model, batch), batch["z_hq"])}

    def latents(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """What this arm makes of a batch: UNet-scaled latents."""
        if self.name == "encoder":
            return self.vae.encode(batch["lq"]).float()  # its own copy, whose encoder is the model
        z = batch["z_lq"]
        if self.name == "adapter_encoding":
            with torch.no_grad():
                z = self.vae.encode(batch["lq"])
        return model(z, z.new_full((len(z), 1, 1, 1), self.fidelity)).latents.float()


class Error:
    """Scores an arm by the mean L1 to the clean latents of held-out rows, and says after how many CPU seconds.

    A resumed run goes on counting where its validation.csv ends.
    """

    def __init__(self, held: Spoilt, count: int, folder: Path) -> None:
        self.rows = [held[position] for position in range(min(count, len(held)))]
        before = read_rows(folder / "validation.csv")
        self.before, self.started, self.lost = (before[-1]["seconds"] if before else 0.0), time.process_time(), 0.0

    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        begun = time.process_time()
        seconds = self.before + begun - self.started - self.lost
        errors = []
        for row in self.rows:
            batch = {name: value[None].to(device) for name, value in row.items()}
            errors.append(float(losses.latent(task.latents(task.model, batch), batch["z_hq"])))
        self.lost += time.process_time() - begun
        error = sum(errors) / len(errors)
        return {"psnr": -error, "error": error, "seconds": seconds}
