"""Train the starter autoencoder: TAESD's latents at a fraction of its time.

    python -m train vae --data ../shared/data/faces --teacher ../shared/weights --cache runs/cache --out runs/vae

Encoder and decoder learn together: the latents are held to TAESD's (madebyollin/taesd, MIT), the decoder has to read
TAESD's latents as well as its own, and the round trip has to return the pixels.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.images.degrade import degrade
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from train.data.photos import aligned_crop, load_pixels, read_split
from train.engine import optimizers
from train.precision import amp, channels_last
from train.tools import arguments

log = logging.getLogger("train.starter_vae")
PATCH = 160
BORDER = 2
"""Latent cells next to a patch's edge are left out of the latent loss: the teacher saw what lies beyond, the student not."""


def teacher_encoder(folder: Path) -> nn.Module:
    """TAESD's encoder in diffusers' module: pixels in [-1, 1] -> UNet-scaled latents."""
    from diffusers import AutoencoderTiny

    tiny = AutoencoderTiny()
    tensors = load_file(Path(folder) / "taesd_encoder.safetensors")
    tiny.encoder.load_state_dict({f"layers.{name}": t.float() for name, t in tensors.items()})
    return tiny.encoder.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def cached(data: Path, teacher: Path, cache: Path, degraded: int, seed: int) -> tuple[NDArray[np.uint8], Tensor]:
    """All training crops (N, 512, 512, 3) uint8, then ``degraded`` degraded ones, with the teacher's latents."""
    cache.mkdir(parents=True, exist_ok=True)
    files = {name: cache / name for name in ("train_hq.npy", "train_lq.npy", "train_hq_z.pt", "train_lq_z.pt")}
    if not all(file.is_file() for file in files.values()):
        photos = read_split(data, "train")
        generator = np.random.default_rng(seed)
        sharp = np.stack([to_bytes(aligned_crop(load_pixels(p), p.matrix).permute(1, 2, 0).numpy()) for p in photos])
        spoilt = np.stack([to_bytes(degrade(sharp[i].astype(np.float32) / 255, generator)[0]) for i in range(degraded)])
        encoder = teacher_encoder(teacher)
        for name, pixels in (("train_hq", sharp), ("train_lq", spoilt)):
            np.save(cache / f"{name}.npy", pixels)
            latents = []
            for start in range(0, len(pixels), 2):
                with amp():
                    latents.append(encoder(to_tensor(pixels[start : start + 2]) * 2 - 1).half())
            torch.save(torch.cat(latents), cache / f"{name}_z.pt")
            log.info("teacher latents of %s: %d", name, len(pixels))
    pixels = np.concatenate([np.load(files["train_hq.npy"]), np.load(files["train_lq.npy"])])
    latents = torch.cat([torch.load(files[name], weights_only=True) for name in ("train_hq_z.pt", "train_lq_z.pt")])
    return pixels, latents


def to_bytes(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8)


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float in [0, 1], channels last."""
    return channels_last(torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255))


def edges(image: Tensor) -> Tensor:
    """Horizontal and vertical differences, concatenated along the channels (last row and column dropped)."""
    dx = image[..., :-1, 1:] - image[..., :-1, :-1]
    dy = image[..., 1:, :-1] - image[..., :-1, :-1]
    return torch.cat([dx, dy], dim=1)


def pixel_loss(result: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels and on their differences: the second keeps edges and texture from washing out."""
    return F.l1_loss(result, target) + F.l1_loss(edges(result), edges(target))


@torch.no_grad()
def validate(network: nn.Module, crops: NDArray[np.uint8], latents: Tensor) -> dict[str, float]:
    """Mean PSNR (dB) of the round trip and of decoding the teacher's latents, and latent L1 to the teacher."""
    network.eval()
    own, cross, distance = [], [], []
    for i in range(len(crops)):
        x, z_teacher = to_tensor(crops[i : i + 1]), latents[i : i + 1].float()
        with amp():
            z = network.encoder(x).float()
            decoded = network.decoder(torch.cat([z, z_teacher])).float().clamp(0, 1)
        mse = (decoded - x).square().mean((1, 2, 3))
        own.append(-10 * math.log10(mse[0]))
        cross.append(-10 * math.log10(mse[1]))
        distance.append(F.l1_loss(z, z_teacher).item())
    network.train()
    return {"psnr": float(np.mean(own)), "psnr_cross": float(np.mean(cross)), "latent_l1": float(np.mean(distance))}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True, help="folder with taesd_encoder.safetensors")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--out", type=Path, default=Path("runs/vae"))
    parser.add_argument("--init", type=Path, help="start from this vae checkpoint")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default="adamw")
    parser.add_argument("--latent-weight", type=float, default=0.5)
    parser.add_argument("--degraded", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = arguments.parse(parser, given)
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(args.out / "log.txt")],
    )
    log.info("%s", vars(args))

    pixels, latents = cached(args.data, args.teacher, args.cache, args.degraded, seed=args.seed + 1)
    photos = read_split(args.data, "val")[::8]
    val = np.stack([to_bytes(aligned_crop(load_pixels(p), p.matrix).permute(1, 2, 0).numpy()) for p in photos])
    encoder = teacher_encoder(args.teacher)
    with torch.no_grad(), amp():
        val_latents = torch.cat([encoder(to_tensor(val[i : i + 1]) * 2 - 1).float() for i in range(len(val))])

    torch.manual_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    network = StarterVaeNet()
    if args.init:
        checkpoint.restore_network(network, checkpoint.load(args.init, "vae"), args.init)
        network.requires_grad_(True)
    network.train().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimizer = optimizers.make(args.optimizer, network, args.lr, weight_decay=1e-4)
    inner = (slice(None), slice(None), slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    started, best = time.time(), -math.inf
    for step in range(args.steps):
        rate = optimizers.warm_cosine(step, step / args.steps, args.lr, 100)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = generator.integers(0, len(pixels), args.batch)
        ys, xs = generator.integers(0, (512 - PATCH) // 8 + 1, (2, args.batch))
        x = to_tensor(
            np.stack([pixels[r, y * 8 : y * 8 + PATCH, c * 8 : c * 8 + PATCH] for r, y, c in zip(rows, ys, xs, strict=True)])
        )
        cells = PATCH // 8
        z_teacher = torch.stack(
            [latents[r, :, y : y + cells, c : c + cells] for r, y, c in zip(rows, ys, xs, strict=True)]
        ).float()
        with amp():
            z = network.encoder(x)
            decoded = network.decoder(torch.cat([z, z_teacher.to(z.dtype)])).float()
        latent = F.l1_loss(z.float()[inner], z_teacher[inner])
        own, cross = pixel_loss(decoded[: args.batch], x), pixel_loss(decoded[args.batch :], x)
        loss = args.latent_weight * latent + own + cross
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        if (step + 1) % 50 == 0:
            log.info(
                "step %d latent %.4f own %.4f cross %.4f  %.2f s/step",
                step + 1,
                latent,
                own,
                cross,
                (time.time() - started) / (step + 1),
            )
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            scores = validate(average, val, val_latents)
            log.info("validation %s", json.dumps(scores))
            if scores["psnr"] > best:
                best = scores["psnr"]
                notes = {
                    "training": json.dumps({k: str(v) for k, v in vars(args).items()}),
                    "licence": "MIT",
                    "validation": json.dumps(scores),
                }
                checkpoint.save(args.out / "vae.safetensors", "vae", average, average.config, notes)
