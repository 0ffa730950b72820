"""The starter autoencoder beside TAESD: round trips, each reading the other's latents, identity, time. One run, side by side.

    python benchmarks/vae.py --data ../shared/data/faces --taesd ../shared/weights [--count 24]

Sharp validation faces at 512 pixels. Times are processor seconds of one thread, taken in pairs; the median
of their ratios is printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import DlibIdentity, optional, summarise
from lafr_core.images.metrics import psnr, ssim
from lafr_core.latent.vae import open_tiny, open_vae
from lafr_core.types import Vae
from train.data.photos import aligned_crop, load_pixels, read_split


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    started = time.process_time()
    result = call()
    return result, time.process_time() - started


@torch.no_grad()
def trips(x: Tensor, ours: Vae, theirs: Vae) -> tuple[dict[str, Tensor], float, float]:
    """The four ways through two encoders and two decoders, the share of TAESD's time that ours took, and the latents' L1."""
    (z, encode), (t, encode_t) = timed(lambda: ours.encode(x)), timed(lambda: theirs.encode(x))
    (own, decode), (other, decode_t) = timed(lambda: ours.decode(z)), timed(lambda: theirs.decode(t))
    pictures = {"starter": own, "starter reads TAESD": ours.decode(t), "TAESD": other, "TAESD reads starter": theirs.decode(z)}
    return pictures, (encode + decode) / (encode_t + decode_t), float((z - t).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/faces"))
    parser.add_argument("--taesd", type=Path, default=Path("../shared/weights"), help="folder with taesd_*.safetensors")
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--count", type=int, default=24, help="faces, evenly spaced; 0 = all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = open_vae(args.vae), open_tiny(args.taesd, "sd")
    identity = optional("identity", lambda: DlibIdentity(args.data))
    photos = read_split(args.data, "val")
    photos = photos[:: max(1, len(photos) // args.count)][: args.count] if args.count else photos
    rows: dict[str, list[tuple[float, float, float]]] = {}
    ratios, distances = [], []
    for photo in photos:
        x = aligned_crop(load_pixels(photo), photo.matrix)[None]
        pictures, ratio, distance = trips(x, ours, theirs)
        ratios.append(ratio)
        distances.append(distance)
        frame = identity.frame(x) if identity else None
        known = identity(x, frame) if identity else None
        for name, image in pictures.items():
            alike = float(identity(image, frame) @ known) if identity else float("nan")
            rows.setdefault(name, []).append((float(psnr(image, x)), float(ssim(image, x)), alike))
    print(f"| {len(photos)} faces | PSNR dB | SSIM | identity |\n|---|---|---|---|")
    for name, values in rows.items():
        cells = [summarise(list(column)) for column in zip(*values, strict=True)]
        texts = [f"{mean:.{digits}f} ± {half:.{digits}f}" for (mean, half, _), digits in zip(cells, (2, 3, 3), strict=True)]
        print(f"| {name} | {' | '.join(texts)} |")
    mean = {name: float(np.mean([v[0] for v in values])) for name, values in rows.items()}
    print(
        f"\nstarter reading TAESD's latents: {mean['starter reads TAESD'] - mean['starter']:+.2f} dB against its own; ", end=""
    )
    print(f"TAESD reading the starter's: {mean['TAESD reads starter'] - mean['TAESD']:+.2f} dB against its own")
    print(f"latent L1 between them {np.mean(distances):.3f}; the starter takes {np.median(ratios):.2f} of TAESD's time")


if __name__ == "__main__":
    main()
