"""Train the starter detector's last look: the landmarks of faces that are in the picture for certain.

    python -m train landmarks --config train/configs/starter_landmarks.yaml --data.source FACES --landmarks.detector FILE

FACES is a folder with faces.csv, FILE a detector of train.closeup. The last step's averaged weights join its networks in
``detector.safetensors`` beside the checkpoints. The faces are made of two portraits each: a few hundred people are few.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import CheckpointError
from lafr_core.faces.boxes import mirror
from lafr_core.faces.networks.closeup import SIDE
from lafr_core.faces.networks.detector import StarterNets
from lafr_core.faces.networks.landmarks import EYES, LandmarkNet, fold, template
from lafr_core.geometry import similarity, transform
from lafr_core.store import checkpoint
from train.config import Config
from train.data.composites import Library, degrade_picture, open_library
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command

WIDE = 136
"""Side of the portraits' parts that close-ups are cut from, in pixels."""

FINER = 1.5
"""How much finer these are than a close-up."""

SPREAD = 0.6 * EYES
"""How far the move of one landmark carries its surroundings along: standard deviation in pixels of the close-up."""

Points = NDArray[np.float64]
"""(..., 2): (x, y) in pixels."""


class Portraits:
    """The faces of a library, upright at the template: what close-ups are bent from."""

    def __init__(self, library: Library) -> None:
        self.pictures = library.pictures
        away = (WIDE - 1) / 2 - FINER * (SIDE - 1) / 2
        finer = [(FINER * x + away, FINER * y + away) for x, y in template()]
        views, points = [], []
        for index, photo in enumerate(library.photos):
            matrix = similarity(photo.landmarks, finer)
            views.append(np.asarray(library.view(index, matrix, (WIDE, WIDE))).transpose(2, 0, 1))
            points.append((np.asarray(transform(matrix, photo.landmarks)) - away) / FINER)
        self.views = torch.from_numpy(np.stack(views))
        """(N, 3, WIDE, WIDE) uint8."""
        self.points = np.stack(points)
        """(N, 5, 2): landmarks in pixels of an unmoved close-up."""


def jittered(g: np.random.Generator) -> Points:
    """(2, 3): close-up -> close-up, turned, scaled and shifted by about what the first two looks are wrong by, or more."""
    wide = float(g.choice([0.5, 1.0, 2.0], p=[0.4, 0.4, 0.2]))
    angle, scale = math.radians(float(g.normal(0, 5 * wide))), math.exp(float(g.normal(0, 0.06 * wide)))
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.asarray([[c, -s], [s, c]])
    middle = np.full(2, (SIDE - 1) / 2)
    return np.column_stack([linear, middle - linear @ middle + g.normal(0, 0.05 * wide * EYES, 2)])


def carried(places: Points, points: Points, moves: Points) -> Points:
    """``places`` (N, 2) moved smoothly so that each of ``points`` (5, 2) moves by its row of ``moves`` (5, 2)."""

    def near(at: Points) -> Points:
        away = (at**2).sum(-1)[:, None] + (points**2).sum(-1) - 2 * at @ points.T
        return np.exp(-away / (2 * SPREAD**2))

    weights = np.linalg.solve(near(points) + 1e-4 * np.eye(len(points)), moves)
    return places + near(places) @ weights


def bent(portraits: Portraits, index: int, places: Points, shape: Points) -> Tensor:
    """Portrait ``index`` (3, SIDE, SIDE), 0 to 255, at ``places`` (SIDE * SIDE, 2) after its landmarks moved to ``shape``."""
    seen = carried(places, shape, portraits.points[index] - shape)
    grid = torch.from_numpy((seen - (SIDE - 1) / 2) * (FINER * 2 / WIDE)).float().view(1, SIDE, SIDE, 2)  # edges: -1 and 1
    return F.grid_sample(portraits.views[index][None].float(), grid, padding_mode="border", align_corners=False)[0]


def close_up(g: np.random.Generator, portraits: Portraits, bend: float, mix: float) -> tuple[Image.Image, Points]:
    """A close-up of a face made of two portraits, moved at random, and its landmarks (5, 2).

    The first portrait's landmarks go up to ``bend`` of the way to the second's; in a share ``mix`` of the close-ups the second
    comes the rest of the way, and the two fade into each other: evenly, or from one side of the face to the other.
    """
    index, other = (int(v) for v in g.integers(len(portraits.points), size=2))
    own = portraits.points[index]
    shape = own + bend * float(g.random()) * (portraits.points[other] - own) + g.normal(0, 0.03 * bend * EYES, (5, 2))
    move = jittered(g)
    ys, xs = np.mgrid[:SIDE, :SIDE]
    places = (np.stack([xs.ravel(), ys.ravel()], axis=-1) - move[:, 2]) @ np.linalg.inv(move[:, :2]).T
    view = bent(portraits, index, places, shape)
    if g.random() < mix:
        slope, level = g.normal(0, 0.15, 2), float(g.normal(0, 0.5))
        share = 1 / (1 + np.exp(-(places - (SIDE - 1) / 2) @ slope - level))
        view = torch.lerp(view, bent(portraits, other, places, shape), torch.from_numpy(share).float().view(SIDE, SIDE))
    points = shape @ move[:, :2].T + move[:, 2]
    return Image.fromarray(view.round().to(torch.uint8).permute(1, 2, 0).numpy()), points


class CloseUps:
    """Stream position -> pixels (3, 64, 64) and points (5, 2)."""

    def __init__(self, config: Config, portraits: Portraits) -> None:
        self.config, self.data, self.portraits, self.pictures = config, config.data, portraits, portraits.pictures

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 6, position])
        image, points = close_up(g, self.portraits, self.config.landmarks.bend, self.config.landmarks.mix)
        array, _ = degrade_picture(g, image, SIDE)
        places = torch.from_numpy(points)
        if g.random() < self.data.flip:
            array, places = array[:, ::-1], mirror(places, SIDE)
        return {"pixels": torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))), "points": places.float()}


def error(landmarks: Tensor, points: Tensor) -> Tensor:
    """Mean distance of landmarks (B, 5, 2) from ``points``, as a share of each face's own eye distance."""
    eyes = (points[:, 0] - points[:, 1]).norm(dim=-1).clamp(min=EYES / 3)
    return ((landmarks - points).norm(dim=-1).mean(-1) / eyes).mean()


class LandmarkTask(NetworkTask):
    """Close-ups -> landmarks."""

    name = "landmarks"

    def __init__(self, config: Config) -> None:
        with seeded(config.seed):
            super().__init__(LandmarkNet(norm=True))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "landmarks": error(model(batch["pixels"].contiguous(memory_format=torch.channels_last)).landmarks, batch["points"])
        }


def run(config: Config) -> Path:
    """Train the last look and write it with the networks of the given detector; returns the file."""
    source = Path(config.landmarks.detector)
    stored = checkpoint.load(source, "detector")
    if "close_up" not in stored.config:
        raise CheckpointError(f"landmarks.detector: {source} holds a finder alone; give a whole detector")
    nets = checkpoint.open_network(source, "detector", StarterNets)
    task = LandmarkTask(config)
    last = train(task, config.landmarks, config, CloseUps(config, Portraits(open_library(config.data))))
    task.load_weights(averaged(checkpoints.load_state(last)))
    path = last.parent / "detector.safetensors"
    save_detector(path, nets, fold(cast(LandmarkNet, task.model)), config, stored.notes)
    return path


def save_detector(path: Path, nets: StarterNets, last_look: LandmarkNet, config: Config, notes: Mapping[str, str]) -> None:
    """Write the starter detector: the networks of ``nets``, the last look among them, and their notes with this run's."""
    whole = StarterNets(nets.finder.config, nets.close_up.config, last_look.config)
    whole.finder.load_state_dict(nets.finder.state_dict())
    whole.close_up.load_state_dict(nets.close_up.state_dict())
    assert whole.landmarks is not None
    whole.landmarks.load_state_dict(last_look.state_dict())
    before = notes.get("command", "").split("; ")[:2]  # the finder's and the second look's
    commands = "; ".join([*before, f"python -m train landmarks --config train/configs/{config.name}.yaml"])
    this_run = {"command": commands, "seed": str(config.seed), "revision": checkpoints.revision()}
    checkpoint.save(path, "detector", whole, whole.config, {**notes, **this_run})


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
