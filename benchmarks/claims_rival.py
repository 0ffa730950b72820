"""Claim 2's arms: the adapter learns, or the autoencoder's encoder does; both from the latent term alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims_measure import peak_bytes
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.settings import RestoreSettings
from train.config import Config, Stage
from train.data.faces import Picture, locate
from train.data.pairs import Shards
from train.engine import parts
from train.engine.loop import NetworkTask, Task, make_optimizer
from train.engine.run import collectives, join_processes
from train.judges import losses
from train.precision import amp
from train.tasks.codebook import CodebookTask

ARMS = ("adapter", "adapter_encoding", "encoder")
"""The adapter on stored latents; the same with every batch encoded afresh; the encoder, which has to see pixels."""
TRAINED = ("adapter", "encoder")
"""The arms that are run. Encoding afresh changes no step of the adapter's, only what it costs (a test holds them together)."""
WARM, TIMED = 5, 21
"""Steps before and in a measurement."""


class Spoilt:
    """Stream position -> ``z_lq`` and ``z_hq`` (C, h, h), and ``lq`` (3, S, S) where an arm encodes."""

    def __init__(self, config: Config, *, pixels: bool, device: torch.device | str = "cpu") -> None:
        self.config, self.data, self.pixels, self.device = config, config.data, pixels, torch.device(device)
        self.shards = Shards(config.data.pairs)
        self.pictures = [Picture(path.name, path) for path in self.shards.files]

    def __len__(self) -> int:
        return len(self.shards)

    def drawn(self, position: int) -> tuple[int, int]:
        """(row, version)."""
        g = np.random.default_rng([self.config.seed, 12, position])
        return locate(position, len(self.shards), self.config.seed)[1], int(g.integers(self.shards.versions))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        row, version = self.drawn(position)
        sample = {"z_lq": self.shards.read(row, "z_lq", version).float(), "z_hq": self.shards.read(row, "z_hq").float()}
        if self.pixels:
            sample["lq"] = self.shards.read(row, "spoilt", version).float() / 255
        return sample

    def together(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """The samples of ``positions``, stacked, on the device."""
        rows, versions = (torch.tensor(list(v), device=self.device) for v in zip(*map(self.drawn, positions), strict=True))
        hold = lambda name: self.shards.together(name, self.device)
        batch = {"z_lq": hold("z_lq")[rows, versions].float(), "z_hq": hold("z_hq")[rows].float()}
        if self.pixels:
            batch["lq"] = hold("spoilt")[rows, versions].float() / 255
        return batch


class Arm(NetworkTask):
    """One arm: degraded latents or pixels -> clean latents, L1."""

    def __init__(self, name: str, vae: Any, adapter: AdapterNet, fidelity: float) -> None:
        self.name, self.vae, self.fidelity = name, copy.deepcopy(vae), fidelity
        if hasattr(self.vae.network, "disable_gradient_checkpointing"):
            self.vae.network.disable_gradient_checkpointing()  # memory is not what is short here, and it costs the encoder time
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
    """Scores an arm by the mean L1 to the clean latents of held-out rows."""

    def __init__(self, held: Spoilt, count: int) -> None:
        positions = list(range(min(count, len(held))))
        self.batches = [held.together(positions[start : start + 25]) for start in range(0, len(positions), 25)]

    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        errors: list[float] = []
        for batch in self.batches:
            there = {name: value.to(device) for name, value in batch.items()}
            errors += (task.latents(task.model, there) - there["z_hq"]).abs().mean((1, 2, 3)).tolist()
        error = sum(errors) / len(errors)
        return {"psnr": -error, "error": error}


def seconds_of_steps(config: Config) -> dict[str, Any]:
    """What one step of each arm and of the codebook costs in ``config``'s batch and precision: median seconds, bytes at most.

    Seconds of the clock on a GPU, of the processor elsewhere. Random faces: a step costs the same whatever it sees.
    """
    device = join_processes()
    vae = parts.vae_of(config, device)
    adapter = parts.new_adapter(config, vae.spec.channels).to(device)
    g = torch.Generator().manual_seed(0)
    size, cells = config.data.size, config.data.size // 8
    noise = lambda *shape: torch.randn(shape, generator=g).to(device)
    stages: dict[str, tuple[Task, Stage]] = {
        "codebook": (CodebookTask(_latent_alone(config), vae, losses.Critics(), device, collectives()), config.codebook)
    }
    for name in ARMS:
        stages[name] = (Arm(name, vae, adapter, RestoreSettings().fidelity), config.adapter)
    found: dict[str, Any] = {"device": _name_of(device)}
    for name, (task, stage) in stages.items():
        count = stage.batch
        batch = {"z_hq": noise(count, 4, cells, cells), "z_lq": noise(count, 4, cells, cells)}
        batch["lq"] = torch.rand((count, 3, size, size), generator=g).to(device)
        task.model.to(device)
        found[name] = _measured(task, stage, batch, device)
    return found


def _latent_alone(config: Config) -> Config:
    from dataclasses import replace

    return replace(config, loss=replace(config.loss, pixel=0.0, gradient=0.0))


def _measured(task: Task, stage: Stage, batch: Mapping[str, Tensor], device: torch.device) -> dict[str, float]:
    optimizer = make_optimizer(task.model, stage)
    learning = [p for p in task.model.parameters() if p.requires_grad]

    def step() -> None:
        with amp(device, stage.precision):
            loss = torch.stack(list(task.losses(task.model, batch).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, stage.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        task.finish()

    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    seconds = []
    for _ in range(WARM + TIMED):
        started = clock()
        step()
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(clock() - started)
    if gpu:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        most = torch.cuda.max_memory_allocated(device) - before
    else:
        most = peak_bytes(step)
    return {"seconds": float(np.median(seconds[WARM:])), "bytes": float(most), "batch": float(stage.batch)}


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor")
