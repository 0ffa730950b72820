"""Is there a face at all? The small network that takes trust away from hands, walls and mush (lafr_core.faces.trust).

    python -m train presence --config train/configs/starter_presence.yaml --data.source FACES

Half of what it learns from are portraits' faces, moved as a detector errs and spoilt down to a dozen pixels; the other half is
what a careless box gives: clothes, hair, walls, patterns, drawn hands, pieces of a face, and faces that lie wrong in their box.
The last step's averaged weights become ``presence.safetensors`` beside the checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lafr_core.faces.networks.presence import PresenceNet, coarse
from lafr_core.geometry import CROP_SIZE, compose
from lafr_core.store import checkpoint
from lafr_core.types import Matrix
from train.config import Config
from train.data.composites import Library, background, open_library
from train.data.drawn import draw_hand
from train.data.photos import jitter
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command, join_processes

DRAWN_AT = 128
"""Side in pixels at which crops are drawn before they are spoilt and shrunk."""
HANDS, MISPLACED = 0.15, 0.3
"""Shares of the faceless samples that are drawn hands, and faces that lie wrong in their box."""


class Boxes:
    """Stream position -> ``luma`` (1, 48, 48) in [0, 1] and ``face``, 1 or 0."""

    def __init__(self, config: Config, library: Library) -> None:
        self.seed, self.data = config.seed, config.data
        self.library, self.pictures = library, library.pictures

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.seed, 10, position])
        face = g.random() < 0.5
        picture = self.face(g) if face else self.nothing(g)
        luma = torch.from_numpy(np.asarray(picture.convert("L"), dtype=np.float32).copy())[None, None] / 255
        return {"luma": spoilt(g, covered(g, luma))[0], "face": torch.tensor(float(face))}

    def face(self, g: np.random.Generator) -> Image.Image:
        return self.seen(g, jitter(g))

    def seen(self, g: np.random.Generator, move: Matrix) -> Image.Image:
        """One portrait's face crop, moved by ``move`` (crop pixels -> crop pixels)."""
        index = int(g.integers(len(self.library.photos)))
        k = DRAWN_AT / CROP_SIZE
        matrix = compose(((k, 0.0, 0.0), (0.0, k, 0.0)), compose(move, self.library.photos[index].matrix))
        return self.library.view(index, matrix, (DRAWN_AT, DRAWN_AT))

    def nothing(self, g: np.random.Generator) -> Image.Image:
        u = g.random()
        if u < HANDS:
            return Image.fromarray((draw_hand(int(g.integers(1 << 30)), DRAWN_AT) * 255).astype(np.uint8))
        if u < HANDS + MISPLACED:
            return self.seen(g, misplacing(g))
        return background(g, self.library, DRAWN_AT)


def misplacing(g: np.random.Generator) -> Matrix:
    """A similarity about the crop's centre that no detector's error explains: turned, much too large or small, or beside."""
    kind = int(g.integers(4))
    turn = g.uniform(50, 310) if kind == 0 else g.uniform(-20, 20)
    scale = math.exp(g.uniform(0.75, 1.8)) if kind == 1 else math.exp(-g.uniform(0.75, 1.6)) if kind == 2 else 1.0
    away = g.uniform(150, 330) if kind == 3 else g.uniform(0, 120) if kind == 1 else g.uniform(0, 30)
    direction, angle = g.uniform(0, 2 * math.pi), math.radians(turn)
    a, b, c = scale * math.cos(angle), scale * math.sin(angle), (CROP_SIZE - 1) / 2
    dx, dy = away * math.cos(direction), away * math.sin(direction)
    return ((a, -b, c - a * c + b * c + dx), (b, a, c - b * c - a * c + dy))


def covered(g: np.random.Generator, luma: Tensor) -> Tensor:
    """(1, 1, S, S), faces or not: now and then cut from a tight photo whose border goes on, or partly hidden."""
    side = luma.shape[-1]
    px = lambda low, high: int(g.uniform(low, high) * side / CROP_SIZE)
    luma = luma.clone()
    if g.random() < 0.3:
        left, right, top, bottom = px(40, 130), px(40, 130), px(60, 180), px(0, 70)
        inner = luma[..., top : side - bottom, left : side - right]
        luma = F.pad(inner, (left, right, top, bottom), mode="replicate")
    if g.random() < 0.35:  # a hat, a fringe, a scarf
        luma[..., : px(90, 212), :] = float(g.random())
    if g.random() < 0.2:
        y, x, height, width = px(120, 460), px(80, 430), px(30, 110), px(30, 110)
        luma[..., y : y + height, x : x + width] = float(g.random())
    return luma


def spoilt(g: np.random.Generator, luma: Tensor) -> Tensor:
    """(1, 1, S, S) -> (1, 1, 48, 48) in [0, 1]: mirrored or not, shrunk to 12 pixels or more, noise, another exposure."""
    if g.random() < 0.5:
        luma = luma.flip(-1)
    if g.random() < 0.6:
        small = round(math.exp(g.uniform(math.log(12), math.log(DRAWN_AT))))
        luma = F.interpolate(luma, size=(small, small), mode="bilinear", antialias=True)
    if g.random() < 0.5:
        luma = luma + torch.from_numpy(g.standard_normal(luma.shape, dtype=np.float32)) * float(g.uniform(0, 0.1))
    luma = F.interpolate(luma, size=(DRAWN_AT, DRAWN_AT), mode="bilinear", align_corners=False)
    luma = coarse(luma).clamp(0, 1)
    level, contrast, gamma = g.uniform(-0.15, 0.15), math.exp(g.uniform(-0.9, 0.2)), math.exp(g.uniform(-0.4, 0.4))
    return ((luma**gamma - 0.5) * contrast + 0.5 + level).clamp(0, 1)


class PresenceTask(NetworkTask):
    """A face or not: cross-entropy."""

    name = "presence"

    def __init__(self, config: Config) -> None:
        with seeded(config.seed):
            super().__init__(PresenceNet())

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        odds = model(batch["luma"]).float()
        self.wrong = ((odds > 0) != (batch["face"] > 0.5)).float().mean().detach()
        return {"presence": F.binary_cross_entropy_with_logits(odds, batch["face"])}

    def finish(self) -> Mapping[str, float | Tensor]:
        return {"wrong": self.wrong}


def run(config: Config) -> Path:
    """Train the network and write it beside its checkpoints; returns the file."""
    device = join_processes()
    task = PresenceTask(config)
    task.model.to(device)
    last = train(task, config.presence, config, Boxes(config, open_library(config.data)))
    task.load_weights(averaged(checkpoints.load_state(last)))
    notes = {
        "licence": "MIT, trained on CC0-1.0 and official US government portraits, scikit-image's pictures and drawn patterns",
        "command": f"python -m train presence --config train/configs/{config.name}.yaml",
        "use": "whether a crop shows a face where one should be; part of the trust estimate",
    }
    path = last.parent / "presence.safetensors"
    checkpoint.save(path, "presence", task.model, task.architecture(), notes)
    return path


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
