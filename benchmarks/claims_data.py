"""The faces of benchmarks.claims: sharp and degraded pictures at 256 pixels with their latents, drawn once and stored."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lafr_core.images.degrade import degrade
from lafr_core.types import Vae
from train.data.photos import aligned_crop, load_pixels, read_split
from train.precision import amp

log = logging.getLogger("benchmarks.claims")
SIDE = 256


@dataclass(frozen=True)
class Faces:
    """One split: pictures ``hq`` (N, 3, 256, 256) uint8 and latents ``z_hq`` (N, 4, 32, 32); ``lq`` and ``z_lq`` hold one
    such tensor for each degraded version.
    """

    hq: Tensor
    lq: list[Tensor]
    z_hq: Tensor
    z_lq: list[Tensor]

    def __len__(self) -> int:
        return len(self.hq)


def floats(pictures: Tensor) -> Tensor:
    """uint8 -> float in [0, 1], channels last."""
    return pictures.float().div(255).contiguous(memory_format=torch.channels_last)


def faces_of(folder: Path, versions: int, limit: int | None, vae: Vae, seed: int, file: Path) -> Faces:
    """The first ``limit`` faces of ``folder``, each degraded ``versions`` times; kept in ``file``.

    FFHQ's degradation protocol is written for 512 pixels, so the pictures are enlarged to 512, degraded and reduced again.
    """
    if file.is_file():
        return Faces(**torch.load(file, weights_only=True))
    paths = sorted(p for p in folder.iterdir() if p.suffix in (".png", ".jpg", ".webp"))[:limit]
    hq: list[Tensor] = []
    lq: list[list[Tensor]] = [[] for _ in range(versions)]
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            sharp = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        large = np.asarray(sharp.resize((512, 512), Image.Resampling.BICUBIC), dtype=np.float32) / 255
        hq.append(_tensor(np.asarray(sharp)))
        for version in range(versions):
            low = degrade(large, np.random.default_rng([seed, number, version]))[0]
            small = Image.fromarray((low * 255 + 0.5).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BOX)
            lq[version].append(_tensor(np.asarray(small)))
    pictures, degraded = torch.stack(hq), [torch.stack(one) for one in lq]
    faces = Faces(pictures, degraded, encode(vae, pictures), [encode(vae, one) for one in degraded])
    torch.save({"hq": faces.hq, "lq": faces.lq, "z_hq": faces.z_hq, "z_lq": faces.z_lq}, file)
    log.info("%s: %d faces", folder, len(paths))
    return faces


def portrait_latents(root: Path, count: int, vae: Vae, file: Path) -> Tensor:
    """Latents (N, 4, 32, 32) of about ``count`` of the sharp training portraits of ``root/faces.csv``; none is in FFHQ."""
    if not file.is_file():
        crops = []
        photos = read_split(root, "train")
        for photo in photos[:: max(1, len(photos) // count)]:
            crop = aligned_crop(load_pixels(photo), photo.matrix)
            crops.append((torch.nn.functional.avg_pool2d(crop[None], 512 // SIDE)[0] * 255 + 0.5).to(torch.uint8))
        torch.save(encode(vae, torch.stack(crops)), file)
    latents: Tensor = torch.load(file, weights_only=True)
    return latents


@torch.no_grad()
def encode(vae: Vae, pictures: Tensor) -> Tensor:
    """uint8 pictures -> latents."""
    with amp():
        return torch.cat([vae.encode(floats(part)).float() for part in pictures.split(8)])


def _tensor(picture: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(picture.transpose(2, 0, 1).copy())
