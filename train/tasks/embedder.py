"""Distil the starter identity embedder from MobileFaceNet on portraits.

    python -m train embedder --config train/configs/starter_embedder.yaml --data.source FACES --teacher WEIGHTS

FACES is a folder with faces.csv, WEIGHTS one with mobilefacenet_foamliu.pt. 630 people are few, so virtual people are mixed
from them: aligned faces blended, halves exchanged, proportions changed. The teacher sees each of them once, sharp; the student
sees them turned, shifted, recoloured and degraded and must give the same answer, so that a blurred face and its sharp original
agree.
The last step's averaged weights become ``embedder.safetensors`` beside the checkpoints; benchmarks/embedder.py measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.faces.crop import warp
from lafr_core.faces.networks.embedder import INPUT_SIDE, StarterEmbedderNet, fold
from lafr_core.geometry import ARCFACE_TEMPLATE, similarity
from lafr_core.store import checkpoint
from train.config import Config
from train.data.faces import Picture, labelled_photos, locate
from train.data.photos import Portrait, load_pixels
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command
from train.judges.mobilefacenet import load_mobilefacenet

MARGIN = 8
"""Pixels kept around the 112 crop, for shifting and turning."""

SIDE = INPUT_SIDE + 2 * MARGIN


# --- people ----------------------------------------------------------------------------------------------------------


def aligned_faces(photos: Sequence[Portrait]) -> Tensor:
    """The photos' faces at the ArcFace template with a margin: (N, 3, 128, 128) uint8."""
    template = [(x + MARGIN, y + MARGIN) for x, y in ARCFACE_TEMPLATE]
    faces = []
    for photo in photos:
        image = torch.from_numpy(load_pixels(photo).copy()).permute(2, 0, 1).float() / 255
        faces.append((warp(image, similarity(photo.landmarks, template), SIDE) * 255).round().to(torch.uint8))
    return torch.stack(faces)


def mix(g: np.random.Generator, faces: Tensor) -> Tensor:
    """One virtual person (3, 128, 128) uint8 out of two of ``faces``: blended or joined from halves, then reproportioned."""
    i, j = (int(v) for v in g.choice(len(faces), 2, replace=False))
    a, b = faces[i].float(), faces[j].float()
    if g.random() < 0.5:
        b = b.flip(-1)
    axis = torch.linspace(-1, 1, SIDE)
    if g.random() < 0.55:
        weight = torch.full((SIDE, SIDE), float(g.uniform(0.25, 0.75)))
    else:  # the boundary between the halves lies at the nose, at any angle, softened
        angle = float(g.uniform(0, 2 * math.pi))
        along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
        weight = torch.sigmoid((along + float(g.uniform(-0.15, 0.15))) / 0.08)
    face = a * weight + b * (1 - weight)
    sx, sy = math.exp(g.uniform(-0.1, 0.1)), math.exp(g.uniform(-0.1, 0.1))
    bend = float(g.uniform(-0.12, 0.12))  # wider above and narrower below, or the other way round
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x * sx * (1 + bend * y), y * sy], dim=-1)
    return F.grid_sample(face[None], grid[None], padding_mode="border", align_corners=False)[0].round().to(torch.uint8)


@torch.no_grad()
def taught(faces: Tensor, teacher: torch.nn.Module) -> Tensor:
    """The teacher's unit vectors (N, 128): the mean over each face and its mirror image."""
    rows = []
    for start in range(0, len(faces), 32):
        crops = faces[start : start + 32, :, MARGIN:-MARGIN, MARGIN:-MARGIN].float() / 255
        rows.append(F.normalize(F.normalize(teacher(crops), dim=1) + F.normalize(teacher(crops.flip(-1)), dim=1), dim=1))
    return torch.cat(rows)


class People:
    """Stream position -> one person, real or mixed: views (V, 3, 112, 112) in [0, 1] and the teacher's vector (128,)."""

    def __init__(self, config: Config) -> None:
        self.config, self.data = config, config.data
        photos = labelled_photos(config.data)
        self.pictures = [Picture(photo.path.name, photo.path) for photo in photos]
        g = np.random.default_rng([config.seed, 6])
        real = aligned_faces(photos)
        self.faces = torch.cat([real, *(mix(g, real)[None] for _ in range(config.embedder.virtual))])
        self.targets = taught(self.faces, load_mobilefacenet(Path(config.embedder.teacher)))

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        _, row = locate(position, len(self.faces), self.config.seed)
        g = np.random.default_rng([self.config.seed, 7, position])
        views = self.faces[row].expand(self.config.embedder.views, -1, -1, -1)
        return {"views": disturbed(g, views, self.data.flip), "target": self.targets[row]}


# --- what the student sees -------------------------------------------------------------------------------------------


def disturbed(g: np.random.Generator, faces: Tensor, flip: float = 0.5) -> Tensor:
    """Faces (B, 3, 128, 128) uint8 -> crops (B, 3, 112, 112) in [0, 1]: moved, mirrored, recoloured, degraded."""
    n = len(faces)
    angle, scale = g.normal(0, 4, n).clip(-10, 10), np.exp(g.normal(0, 0.03, n).clip(-0.08, 0.08))
    mirror = np.where(g.random(n) < flip, -1.0, 1.0)
    k = INPUT_SIDE / SIDE * scale
    c, s = k * np.cos(np.radians(angle)), k * np.sin(np.radians(angle))
    shift = g.normal(0, 0.02, (n, 2)).clip(-0.06, 0.06)
    theta = np.stack([np.stack([c * mirror, -s, shift[:, 0]], 1), np.stack([s * mirror, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [n, 3, INPUT_SIDE, INPUT_SIDE], align_corners=False)
    out = F.grid_sample(faces.float() / 255, grid, padding_mode="border", align_corners=False)
    out = torch.cat([degraded(g, part) for part in out])
    column = lambda low, high, size=1: torch.from_numpy(g.uniform(low, high, (n, size, 1, 1))).float()
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    out = (out - mean) * column(0.7, 1.2) + mean * column(0.7, 1.25) * column(0.92, 1.08, 3)
    gray = torch.from_numpy(g.random((n, 1, 1, 1)) < 0.1)
    return torch.where(gray, out.mean(1, keepdim=True), out).clamp(0, 1)


def degraded(g: np.random.Generator, crop: Tensor) -> Tensor:
    """A crop (3, 112, 112) shrunk to a random size, noise added there, enlarged again: (1, 3, 112, 112); a third stay sharp."""
    if g.random() < 0.33:
        return crop[None]
    side = round(math.exp(g.uniform(math.log(12), math.log(INPUT_SIDE))))
    small = F.interpolate(crop[None], size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    if g.random() < 0.5:
        small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.from_numpy(g.standard_normal(small.shape, dtype=np.float32))
    small = small + noise * float(g.uniform(0, 20 / 255))
    return F.interpolate(small, size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic", align_corners=False)


def losses(given: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """cosine: 1 - cos to the teacher; relation: squared error of the cosines in the batch (relational KD, Park et al. 2019)."""
    cosines = lambda vectors: (vectors[:, None] * vectors).sum(-1)  # not a matrix product: autocast would round it to bfloat16
    return {
        "cosine": 1 - (given * wanted).sum(1).mean(),
        "relation": (cosines(given) - cosines(wanted)).square().mean(),
    }


WEIGHTS = {"cosine": 1.0, "relation": 4.0}


class EmbedderTask(NetworkTask):
    """Every view of a person -> the teacher's vector of that person's sharp face."""

    name = "embedder"

    def __init__(self, config: Config) -> None:
        with seeded(config.seed):
            super().__init__(StarterEmbedderNet(norm=True))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        views = batch["views"]
        given = model(views.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        parts = losses(given, batch["target"].repeat_interleave(views.shape[1], dim=0))
        return {name: WEIGHTS[name] * part for name, part in parts.items()}


def run(config: Config) -> Path:
    """Distil the embedder and write it beside its checkpoints; returns the file."""
    task = EmbedderTask(config)
    last = train(task, config.embedder, config, People(config))
    task.load_weights(averaged(checkpoints.load_state(last)))
    network = fold(cast(StarterEmbedderNet, task.model))
    notes = {
        "licence": "MIT, trained on CC0-1.0 and official US government portraits only",
        "training_data": "faces/train: 630 portraits (faker-js, CivilServiceUSA) and mixtures of them",
        "teacher": "MobileFaceNet by foamliu (Apache-2.0), distilled",
        "command": f"python -m train embedder --config train/configs/{config.name}.yaml",
        "seed": str(config.seed),
        "revision": checkpoints.revision(),
        "use": "tells whether a restored face still looks like its input; not for identification",
    }
    path = last.parent / "embedder.safetensors"
    checkpoint.save(path, "embedder", network, network.config, notes)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
