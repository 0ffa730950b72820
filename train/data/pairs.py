"""Shards of latent pairs: what the starter adapter and prior learn from, encoded once instead of at every step.

    python -m train pairs --data ../shared/data/faces --out runs/pairs --rounds 4 --versions 4

Every round draws each training photo once more, moved, mirrored and tinted anew, with ``versions`` degradations. All draws
come from a generator seeded by (seed, round, photo), so shards are the same whatever was made before. Those that exist are
kept.
A trainer may start while shards are still being written: each appears under its name only when it is whole.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lafr_core.errors import InputError
from lafr_core.geometry import compose
from lafr_core.images.degrade import degrade
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from lafr_core.store.atomic import atomic
from train.data.photos import Portrait, aligned_crop, jitter, load_pixels, read_split
from train.precision import amp, channels_last
from train.tools import arguments

log = logging.getLogger("train.data.pairs")
PHOTOS = 30
"""Photos a shard."""
MIX = (("full", 2), ("mild", 2), ("medium", 5), ("severe", 3))
"""Severities and their shares in twelfths. Most of the full range is hopeless, so it gets the least."""
KINDS = ("starter", "tiny")
"""Encoders, as shards are named."""
Encode = Callable[[Tensor], Tensor]
"""(B, 3, 512, 512) in [0, 1] -> UNet-scaled latents (B, C, 64, 64)."""


def pick(generator: np.random.Generator) -> str:
    """The severity of one degradation."""
    names = [name for name, share in MIX for _ in range(share)]
    return names[int(generator.integers(len(names)))]


def tint(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Half of the time another exposure (gamma 0.75 to 1.33) and white balance (gains of 6 %): (3, H, W) in [0, 1]."""
    if generator.random() < 0.5:
        return image
    gamma = float(np.exp(generator.uniform(-0.29, 0.29)))
    gains = torch.from_numpy(generator.uniform(0.94, 1.06, (3, 1, 1)).astype(np.float32))
    return (image.clamp(0, 1) ** gamma * gains).clamp(0, 1)


def draw(photo: Portrait, generator: np.random.Generator, versions: int) -> tuple[Tensor, Tensor]:
    """One sharp crop (3, 512, 512) and its degraded versions (V, 3, 512, 512), in [0, 1]."""
    sharp = tint(aligned_crop(load_pixels(photo), compose(jitter(generator), photo.matrix)), generator)
    pixels: NDArray[np.float32] = np.ascontiguousarray(sharp.permute(1, 2, 0).numpy())
    low = [torch.from_numpy(degrade(pixels, generator, pick(generator))[0]) for _ in range(versions)]
    return sharp, torch.stack(low).permute(0, 3, 1, 2)


@torch.no_grad()
def make_shard(photos: list[Portrait], seeds: list[list[int]], versions: int, encode: Encode) -> dict[str, Tensor]:
    """``sharp`` (n, 3, 512, 512) uint8, ``z_hq`` (n, C, 64, 64) and ``z_lq`` (n, V, C, 64, 64) float16."""
    rows: dict[str, list[Tensor]] = {"sharp": [], "z_hq": [], "z_lq": []}
    for photo, seed in zip(photos, seeds, strict=True):
        sharp, low = draw(photo, np.random.default_rng(seed), versions)
        latents = encode(torch.cat([sharp[None], low])).half()
        rows["sharp"].append((sharp * 255 + 0.5).clamp(0, 255).to(torch.uint8))
        rows["z_hq"].append(latents[0])
        rows["z_lq"].append(latents[1:])
    return {name: torch.stack(parts).contiguous() for name, parts in rows.items()}


def starter_encoder(path: Path) -> Encode:
    """The starter VAE's encoder in bfloat16: twice as fast on a processor with avx512_bf16."""
    encoder = checkpoint.open_network(path, "vae", StarterVaeNet).encoder.to(memory_format=torch.channels_last)
    return _fast(encoder, lambda x: x)


def tiny_encoder(folder: Path) -> Encode:
    """TAESD's encoder: an adapter that has seen its latents too works with a host's Stable Diffusion VAE."""
    from train.tasks.vae import teacher_encoder

    return _fast(teacher_encoder(folder), lambda x: x * 2 - 1)


def _fast(network: torch.nn.Module, scale: Callable[[Tensor], Tensor]) -> Encode:
    def encode(pixels: Tensor) -> Tensor:
        with amp():
            return network(channels_last(scale(pixels))).float()

    return encode


class Sample(NamedTuple):
    """One degraded crop of one photo."""

    z_lq: Tensor
    """(C, 64, 64) float32, UNet-scaled."""
    z_hq: Tensor
    """(C, 64, 64) float32: the sharp crop's."""
    kind: str
    """Whose encoder made them: "starter" or "tiny"."""
    sharp: Callable[[slice, slice], Tensor]
    """Reads rows and columns of the sharp crop from disk: (3, h, w) in [0, 1]."""


class Pool:
    """All shards of a folder, opened lazily and looked for again on :meth:`refresh`.

    ``tiny`` is the share of samples drawn from TAESD's shards while there are any; within a kind, rows are drawn uniformly.
    """

    def __init__(self, folder: Path, tiny: float = 0.0) -> None:
        self.folder, self.tiny = Path(folder), tiny
        self.shards: dict[str, list[Path]] = {}
        self.latents: dict[Path, tuple[Tensor, Tensor]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Take in new shards; returns how many there are."""
        self.shards = {kind: sorted(self.folder.glob(f"{kind}_*.safetensors")) for kind in KINDS}
        for path in [p for files in self.shards.values() for p in files if p not in self.latents]:
            with safe_open(str(path), framework="pt") as file:
                self.latents[path] = (file.get_tensor("z_hq"), file.get_tensor("z_lq"))
        return len(self.latents)

    def draw(self, generator: torch.Generator, count: int) -> list[Sample]:
        """``count`` samples; those of one kind stand together, the starter's first. Raises InputError without shards."""
        starter, tiny = (self.shards[kind] for kind in KINDS)
        if not starter and not tiny:
            raise InputError(
                f"{self.folder}: expected shards (.safetensors) there, found none; make some with python -m train pairs"
            )
        chosen = torch.rand(count, generator=generator) < (self.tiny if starter else 1.0)
        count_tiny = int(chosen.sum()) if tiny else 0
        return [self._one("starter", generator) for _ in range(count - count_tiny)] + [
            self._one("tiny", generator) for _ in range(count_tiny)
        ]

    def _one(self, kind: str, generator: torch.Generator) -> Sample:
        below = lambda n: int(torch.randint(n, (), generator=generator))
        shard = self.shards[kind][below(len(self.shards[kind]))]
        z_hq, z_lq = self.latents[shard]
        row, version = below(len(z_hq)), below(z_lq.shape[1])
        return Sample(z_lq[row, version].float(), z_hq[row].float(), kind, _reader(shard, row))


def _reader(path: Path, row: int) -> Callable[[slice, slice], Tensor]:
    def read(ys: slice, xs: slice) -> Tensor:
        with safe_open(str(path), framework="pt") as file:
            return file.get_slice("sharp")[row, :, ys, xs].float() / 255

    return read


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--vae", type=Path, default=Path("lafr_core/weights/vae.safetensors"))
    parser.add_argument("--tiny", type=Path, help="folder with taesd_encoder.safetensors: encode with TAESD instead")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--versions", type=int, default=4)
    parser.add_argument("--limit", type=int, default=0, help="use this many photos of each round, evenly spaced; 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    args = arguments.parse(parser, given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    args.out.mkdir(parents=True, exist_ok=True)
    encode = tiny_encoder(args.tiny) if args.tiny else starter_encoder(args.vae)
    photos = read_split(args.data, "train")
    kind = KINDS[1] if args.tiny else KINDS[0]
    for number in range(args.rounds):
        # Photos of one shard come from the whole list, so that an unfinished round favours no source.
        order = [int(i) for i in np.random.default_rng([args.seed, number]).permutation(len(photos))][: args.limit or None]
        for start in range(0, len(order), PHOTOS):
            path = args.out / f"{kind}_{args.seed}_{number:02d}_{start:04d}.safetensors"
            if path.is_file():
                continue
            rows = order[start : start + PHOTOS]
            shard = make_shard([photos[i] for i in rows], [[args.seed, number, i] for i in rows], args.versions, encode)
            with atomic(path) as part:
                save_file(shard, str(part))
            log.info("%s", path.name)
