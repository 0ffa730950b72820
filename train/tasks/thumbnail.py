"""Latents to a small picture, at a hundredth of a decoder's cost: what an identity network needs to see of every sample.

    python -m train thumbnail --pairs runs/pairs --out runs/restorer

Identity networks look at 112 pixels; decoding a whole face at 512 to shrink it again made a training step three times as long.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import CheckpointError
from lafr_core.faces.crop import template_crops
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.store.atomic import atomic
from train.data.pairs import Pool
from train.engine import optimizers
from train.precision import amp, channels_last
from train.tools import arguments

log = logging.getLogger("train.tasks.thumbnail")
SHRINK = 4
"""Crop pixels along the side of a thumbnail's pixel."""


class ThumbnailNet(nn.Module):
    """UNet-scaled latents (B, channels, h, w) -> (B, 3, 2h, 2w), about [0, 1]: the decoded picture, shrunk four times."""

    def __init__(self, channels: int = 4, width: int = 64) -> None:
        super().__init__()
        conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1)
        self.straight = conv(channels, 12)
        self.layers = nn.Sequential(
            conv(channels, width), nn.SiLU(), conv(width, width), nn.SiLU(), conv(width, width), nn.SiLU(), conv(width, 12)
        )

    def forward(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(self.straight(latents) + self.layers(latents), 2) * 0.5 + 0.5


def shrunk(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H/4, W/4): what a thumbnail is held to."""
    return F.avg_pool2d(pixels, SHRINK)


def identity_losses(teacher: nn.Module, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Thumbnails (B, 3, 128, 128) of aligned faces -> 1 - cosine of the teacher's embeddings, relative L1 of its feature maps.

    ArcFace as a loss as in GFPGAN (arXiv 2101.04061, eq. 5). ``teacher.with_features`` takes (B, 3, 112, 112) in [0, 1].
    """
    faces = template_crops(torch.cat([ours, theirs.detach()]), ARCFACE_TEMPLATE, 112)
    embedding, maps = teacher.with_features(faces)  # type: ignore[operator]
    a, b = F.normalize(embedding.float(), dim=1).chunk(2)
    features = torch.zeros(())
    for feature in maps:
        x, y = feature.float().chunk(2)
        features = features + F.l1_loss(x, y) / y.abs().mean().clamp_min(1e-6) / len(maps)
    return (1 - (a * b).sum(1)).mean(), features


def open_thumbnail(path: Path) -> ThumbnailNet:
    """The network of ``path``, frozen. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: expected the thumbnail network there; train it with python -m train thumbnail")
    network = ThumbnailNet()
    network.load_state_dict(load_file(path), strict=True)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="folder of shards by train.data.pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/restorer"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = arguments.parse(parser, given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    network, pool = ThumbnailNet().to(memory_format=torch.channels_last), Pool(args.pairs, tiny=0.3)
    optimizer, generator = optimizers.make("muon", network, args.lr, 1e-4), torch.Generator().manual_seed(args.seed)
    total = 0.0
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = optimizers.warm_cosine(step, step / args.steps, args.lr, 20)
        samples = pool.draw(generator, args.batch)
        latents = channels_last(torch.stack([s.z_hq for s in samples]))
        wanted = shrunk(torch.stack([s.sharp(slice(None), slice(None)) for s in samples]))
        with amp():
            error = network(latents).float() - wanted
        optimizer.zero_grad(set_to_none=True)
        error.abs().mean().backward()
        optimizer.step()
        total += error.square().mean().log10().item() * -10
        if (step + 1) % 50 == 0:
            log.info("step %d PSNR %.2f dB", step + 1, total / 50)
            total = 0.0
    with atomic(args.out / "thumbnail.safetensors") as part:
        save_file({name: t.contiguous() for name, t in network.state_dict().items()}, str(part))
