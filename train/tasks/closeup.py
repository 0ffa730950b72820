"""Train the starter detector's second look on close-ups of faces, of anything else, and of the finder's own mistakes.

    python -m train closeup --config train/configs/starter_closeup.yaml --data.source FACES --finder FINDER.safetensors

FACES is a folder with faces.csv, FINDER a file of that task or a whole detector file. The last step's averaged weights and
the finder become ``detector.safetensors`` beside the checkpoints.
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
from lafr_core.faces.boxes import face_box, five, mirror, overlap, suppress
from lafr_core.faces.networks.closeup import FACE, SIDE, Closer, CloseUpNet, fold, template
from lafr_core.faces.networks.detector import StarterDetectorNet, StarterNets
from lafr_core.faces.resample import resample
from lafr_core.geometry import as_matrix, compose, invert, similarity, transform
from lafr_core.store import checkpoint
from lafr_core.types import Box, Matrix
from train.config import Config
from train.data.composites import Library, background, degrade_picture, open_library, sample, zoomed
from train.data.photos import load_pixels
from train.engine import checkpoints
from train.engine.loop import NetworkTask, train
from train.engine.parts import averaged, seeded
from train.engine.run import command

FACES = 0.55
"""Share of faces among the training close-ups."""

EXPECTED = 0.1
"""Share of faces among the finder's candidates in a photo."""

RARER = math.log((FACES / (1 - FACES)) / (EXPECTED / (1 - EXPECTED)))
"""Difference of the two in log odds, by which the second look's logit is moved for use."""


def about_middle(degrees: float, scale: float, shift: tuple[float, float], mirror: bool = False) -> Matrix:
    """Close-up -> close-up: turned, scaled and (last) shifted about its middle; mirrored first when asked."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    m = (SIDE - 1) / 2
    move = as_matrix(np.asarray([[c, -s, m - c * m + s * m + shift[0]], [s, c, m - s * m - c * m + shift[1]]]))
    return compose(move, ((-1.0, 0.0, SIDE - 1.0), (0.0, 1.0, 0.0))) if mirror else move


def face_view(g: np.random.Generator, library: Library, move: Matrix) -> tuple[Image.Image, Tensor]:
    """A random portrait's close-up moved by ``move``, over a faceless background, and its landmarks (5, 2)."""
    index = int(g.integers(len(library.photos)))
    points = library.photos[index].landmarks
    matrix = compose(move, similarity(points, template()))
    view = library.view(index, matrix, (SIDE, SIDE))
    if g.random() < 0.5:  # half of the time the frame beyond the photo is something else than black
        inside = Image.new("L", library.levels[index][0].size, 255)
        back = np.asarray(invert(matrix))
        a = back[:, :2] / 2
        t = (back[:, 2] + 0.5) / 2 - a @ np.asarray([0.5, 0.5])
        mask = inside.transform((SIDE, SIDE), Image.Transform.AFFINE, (a[0, 0], a[0, 1], t[0], a[1, 0], a[1, 1], t[1]))
        view = Image.composite(view, background(g, library, SIDE), mask)
    return view, torch.tensor(transform(matrix, points))


def bent(g: np.random.Generator, amount: float) -> Matrix:
    """Close-up -> close-up: stretched and sheared about its middle by random shares of standard deviation ``amount``."""
    stretch, shear = (float(v) for v in g.normal(0, amount, 2))
    linear = np.asarray([[math.exp(stretch), shear], [0.0, math.exp(-stretch)]])
    middle = np.full(2, (SIDE - 1) / 2)
    return as_matrix(np.column_stack([linear, middle - linear @ middle]))


def positive(g: np.random.Generator, library: Library, bend: float = 0.0) -> tuple[Image.Image, Tensor]:
    """A face about where a detector's landmarks would put it; ``bend`` makes other faces of the few there are."""
    # The second of the detector's two looks starts from good landmarks and decides how exact they end.
    wide = float(g.choice([0.4, 1.0, 2.0], p=[0.45, 0.35, 0.2]))
    degrees = float(g.normal(0, 6 * wide))
    scale = math.exp(float(g.normal(0, 0.07 * wide)))
    shift = g.normal(0, 0.035 * wide * SIDE, 2)
    return face_view(g, library, compose(about_middle(degrees, scale, (float(shift[0]), float(shift[1]))), bent(g, bend)))


def negative(g: np.random.Generator, library: Library, mined: Tensor) -> Image.Image:
    """No face, or none that a close-up should show: a mistake of the finder, a background, a misplaced or upside-down face."""
    u = g.random()
    if u < 0.6 and len(mined):
        found = Image.fromarray(mined[int(g.integers(len(mined)))].permute(1, 2, 0).numpy())
        cut = [float(v) for v in g.uniform(0, 0.1 * SIDE, 4)]  # moved a little, so that it is never quite the same mistake
        return found.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(cut[0], cut[1], SIDE - cut[2], SIDE - cut[3]))
    if u < 0.7:
        return background(g, library, SIDE)
    if u < 0.8:
        return zoomed(g, library, SIDE)
    if u < 0.88:
        move = about_middle(180.0 + float(g.normal(0, 25)), math.exp(float(g.normal(0, 0.2))), (0.0, 0.0))
    elif u < 0.94:
        scale = float(g.uniform(0.2, 0.45)) if g.random() < 0.4 else float(g.uniform(2.0, 4.0))
        shift = g.normal(0, 0.15 * SIDE, 2)
        move = about_middle(float(g.normal(0, 15)), scale, (float(shift[0]), float(shift[1])))
    else:
        angle, far = float(g.uniform(0, 2 * math.pi)), SIDE * float(g.uniform(0.45, 0.9))
        move = about_middle(float(g.normal(0, 15)), 1.0, (far * math.cos(angle), far * math.sin(angle)))
    return face_view(g, library, move)[0]


@torch.no_grad()
def mine(g: np.random.Generator, library: Library, finder: StarterDetectorNet, count: int) -> Tensor:
    """Close-ups (M, 3, 64, 64) uint8 of what ``finder`` takes for faces on ``count`` composites and is none."""
    rows: list[Tensor] = []
    for _ in range(count):
        pixels, faces = sample(g, library, 224)
        rows += mistakes(finder, pixels, [face.box for face in faces])
    for _ in range(count // 2):  # ears, necks, ties and hands: portraits larger than a composite, as a photo shows them
        photo = library.photos[int(g.integers(len(library.photos)))]
        whole = load_pixels(photo)
        full = Image.fromarray(whole).resize((640, 640), Image.Resampling.BILINEAR, reducing_gap=2.0)
        kx, ky = 640 / whole.shape[1], 640 / whole.shape[0]
        box = face_box([(x * kx, y * ky) for x, y in photo.landmarks])
        pixels = degrade_picture(g, full, 300.0)[0] if g.random() < 0.6 else np.asarray(full, np.float32) / np.float32(255)
        rows += mistakes(finder, pixels, [box])
    return torch.stack(rows) if rows else torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)


def mistakes(finder: StarterDetectorNet, pixels: NDArray[np.float32], faces: list[Box]) -> list[Tensor]:
    """Close-ups (3, 64, 64) uint8 of the candidates on one picture (H, W, 3; multiples of 32) that are none of ``faces``."""
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    out = finder(image[None])
    scores = out.logits[0].sigmoid()
    chosen = torch.nonzero(scores > 0.1)[:, 0]
    chosen = chosen[suppress(out.boxes[0, chosen], scores[chosen])][:16]
    rows = []
    for cell in chosen.tolist():
        x0, y0, x1, y1 = out.boxes[0, cell].tolist()
        if any(overlap((x0, y0, x1, y1), face) > 0.15 for face in faces):
            continue
        points = five(out.landmarks[0, cell].tolist())
        crop = resample(image, similarity(template(), points), (SIDE, SIDE), mode="bilinear")
        rows.append((crop.clamp(0, 1) * 255).round().to(torch.uint8))
    return rows


class CloseUps:
    """Stream position -> pixels (3, 64, 64), points (5, 2) and face (): 1 or 0."""

    def __init__(self, config: Config, library: Library, mined: Tensor) -> None:
        self.config, self.data, self.pictures = config, config.data, library.pictures
        self.library, self.mined = library, mined

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        g = np.random.default_rng([self.config.seed, 4, position])
        face = g.random() < FACES
        if face:
            image, points = positive(g, self.library, self.config.closeup.bend)
        else:
            image, points = negative(g, self.library, self.mined), torch.zeros(5, 2)
        array, _ = degrade_picture(g, image, SIDE * FACE)
        if g.random() < self.data.flip:
            array = array[:, ::-1]
            points = mirror(points, SIDE)
        pixels = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
        return {"pixels": pixels, "points": points, "face": torch.tensor(float(face))}


EYES = SIDE * FACE / 385.0 * 126.0
"""Eye distance of the template in a close-up: errors are counted in it."""


def losses(out: Closer, points: Tensor, face: Tensor) -> dict[str, Tensor]:
    """score: binary cross-entropy; landmarks: mean distance as a share of the eye distance, over faces."""
    error = (out.landmarks - points).norm(dim=-1).mean(-1) / EYES
    return {
        "score": F.binary_cross_entropy_with_logits(out.logits, face),
        "landmarks": (error * face).sum() / face.sum().clamp(min=1),
    }


WEIGHTS = {"score": 1.0, "landmarks": 4.0}


class CloseUpTask(NetworkTask):
    """Close-ups -> where the landmarks are, and whether it is a face at all."""

    name = "closeup"

    def __init__(self, config: Config, start: CloseUpNet | None = None) -> None:
        with seeded(config.seed):
            super().__init__(start or CloseUpNet(norm=True))

    def losses(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = model(batch["pixels"].contiguous(memory_format=torch.channels_last))
        return {name: WEIGHTS[name] * part for name, part in losses(out, batch["points"], batch["face"]).items()}


def run(config: Config) -> Path:
    """Train the second look and write it with its finder as a detector file; returns the file."""
    finder, before, notes = open_finder(Path(config.closeup.finder))
    if config.closeup.go_on and before is None:
        raise CheckpointError(
            f"closeup.go_on: {config.closeup.finder} holds a finder alone; give a whole detector, or leave it out"
        )
    library = open_library(config.data)
    mined = mine(np.random.default_rng([config.seed, 5]), library, finder, config.closeup.mined)
    task = CloseUpTask(config, before if config.closeup.go_on else None)
    last = train(task, config.closeup, config, CloseUps(config, library, mined))
    task.load_weights(averaged(checkpoints.load_state(last)))
    path = last.parent / "detector.safetensors"
    save_detector(path, finder, fold(cast(CloseUpNet, task.model)), config, notes)
    return path


def open_finder(path: Path) -> tuple[StarterDetectorNet, CloseUpNet | None, dict[str, str]]:
    """The finder in a detector file, frozen, its second look as it was trained (None in a finder's own file), and its notes."""
    loaded = checkpoint.load(path, "detector")
    if "finder" not in loaded.config:
        return checkpoint.open_network(path, "detector", StarterDetectorNet), None, loaded.notes
    nets = checkpoint.open_network(path, "detector", StarterNets)
    close_up = nets.close_up.requires_grad_(True)
    with torch.no_grad():
        close_up.out.bias[0] += RARER
    return nets.finder, close_up, loaded.notes


def save_detector(
    path: Path, finder: StarterDetectorNet, close_up: CloseUpNet, config: Config, notes: Mapping[str, str]
) -> None:
    """Write the starter detector: the finder, with the second look beside it, and the finder's notes with this run's."""
    nets = StarterNets(finder.config, close_up.config)
    nets.finder.load_state_dict(finder.state_dict())
    nets.close_up.load_state_dict(close_up.state_dict())
    with torch.no_grad():
        nets.close_up.out.bias[0] -= RARER
    finder_command = notes.get("command", "").partition(";")[0]
    command = f"{finder_command}; python -m train closeup --config train/configs/{config.name}.yaml"
    this_run = {"command": command, "seed": str(config.seed), "revision": checkpoints.revision()}
    checkpoint.save(path, "detector", nets, nets.config, {**notes, **this_run})


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    command(run, arguments, __doc__)
