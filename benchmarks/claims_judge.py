"""What benchmarks.claims' arms make of held-out faces: kept as latents where they were trained, judged on any machine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lafr_core.images.metrics import psnr, ssim
from lafr_core.store.atomic import atomic
from lafr_core.types import Vae
from train.config import Config
from train.data.pairs import Shards
from train.engine.checkpoints import open_checkpoint
from train.engine.parts import adapter_for_prior, averaged, lora_prior, vae_of
from train.engine.run import join_processes

log = logging.getLogger("benchmarks.claims")
METRICS = ("psnr", "ssim", "identity")
TOGETHER = 24
"""Faces in one pass."""


class Restoring:
    """Scores an adapter or a prior while it learns: decibels and latent error of the first held-out faces."""

    def __init__(self, held: Shards, count: int, vae: Vae, fidelity: float) -> None:
        self.held, self.count, self.vae, self.fidelity = held, count, vae, fidelity

    @torch.no_grad()
    def __call__(self, task: Any, device: torch.device) -> dict[str, float]:
        z_hq, sharp = (self.held.together(name, device)[: self.count] for name in ("z_hq", "sharp"))
        z_lq = self.held.together("z_lq", device)[: self.count, 0]
        found: list[dict[str, float]] = []
        for part in torch.arange(len(z_lq), device=device).split(TOGETHER):
            z = z_lq[part].float()
            fidelity = z.new_full((len(z),), self.fidelity)
            if task.name == "prior":
                latents = task.model(task.aligned(z, {}, fidelity))
            else:
                latents = task.model(z, fidelity.view(-1, 1, 1, 1)).latents
            error = (latents - z_hq[part]).abs().mean((1, 2, 3))
            decibels = psnr_each(self.vae.decode(latents.float()), sharp[part].float() / 255)
            found += [{"psnr": a, "latent": -b} for a, b in zip(decibels, error.tolist(), strict=True)]
        return {name: sum(row[name] for row in found) / len(found) for name in found[0]}


def psnr_each(pictures: Tensor, originals: Tensor) -> list[float]:
    """PSNR of every picture."""
    return [float(psnr(a[None], b[None])) for a, b in zip(pictures.float().clamp(0, 1), originals, strict=True)]


@torch.no_grad()
def keep(config: Config, held: Shards, count: int, fidelities: Sequence[float], path: Path) -> None:
    """Write what a trained arm makes of the held-out faces: latents (N, 4, h, w) float16 by fidelity, and the adapter's own.

    Averaged weights. ``adapter`` is what the LoRA was given at the middle fidelity; ``input`` stands there without an adapter.
    """
    device = join_processes()
    _, own, state = open_checkpoint(config.log.out, "prior")
    model = lora_prior(replace(own, models=config.models), device)
    model.load_state_dict(averaged(state), strict=False)
    model.eval()
    adapter = adapter_for_prior(config)
    if adapter is not None:
        adapter.to(device)
    z_lq = held.together("z_lq", device)[: count or None, 0].float()

    def given(z: Tensor, fidelity: float) -> Tensor:
        return z if adapter is None else adapter(z, z.new_full((len(z), 1, 1, 1), fidelity)).latents

    def each(make: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([make(part).half().cpu() for part in z_lq.split(TOGETHER)])

    found = {f"{value:g}": each(lambda z, value=value: model(given(z, value))) for value in fidelities}  # type: ignore[misc]
    usual = sorted(fidelities)[len(fidelities) // 2]
    found["input" if adapter is None else "adapter"] = each(lambda z: given(z, usual))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as part:
        save_file({name: t.contiguous() for name, t in found.items()}, str(part))


@torch.no_grad()
def scores(config: Config, held: Shards, path: Path) -> dict[str, dict[str, list[float]]]:
    """PSNR, SSIM and identity of every face of a file of :func:`keep`, decoded; by the names in it."""
    device = join_processes()
    vae = vae_of(config, device)
    judge: Any = None
    found = {}
    for name, latents in load_file(str(path)).items():
        originals = torch.stack([held.read(row, "sharp") for row in range(len(latents))]).float() / 255
        pictures = torch.cat([vae.decode(z.to(device).float()).float().clamp(0, 1).cpu() for z in latents.split(TOGETHER)])
        each = lambda measure: [float(measure(a[None], b[None])) for a, b in zip(pictures, originals, strict=True)]  # noqa: B023
        judge = judge or identity_of(originals)
        found[name] = {"psnr": each(psnr), "ssim": each(ssim), "identity": judge(pictures)}
    return found


def identity_of(originals: Tensor) -> Callable[[Tensor], list[float]]:
    """Pictures -> cosine of centred dlib descriptors, a network nothing here is trained against; [] where dlib is missing."""
    try:
        from benchmarks.claims_measure import DlibIdentity

        judge = DlibIdentity(originals)
    except ImportError:
        log.warning("identity is not measured: needs dlib-bin and face_recognition_models from PyPI")
        return lambda pictures: []
    return lambda pictures: [float(value) for value in judge(pictures)]
