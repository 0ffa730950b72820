"""Train the starter detector's second look on close-ups of faces, of anything else, and of the detector's own mistakes.

    python -m train.closeup --detector FINDER --data FACES --work /tmp/closeup --out lafr_core/weights/detector.safetensors

The finder (train/detector.py) comes first: its mistakes on fresh composites are the hard negatives. ``--out`` gets both
networks.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lafr_core import checkpoint
from lafr_core.boxes import face_box, five, overlap, suppress
from lafr_core.geometry import as_matrix, compose, similarity, transform
from lafr_core.networks.closeup import SIDE, Closer, CloseUpNet, fold, template
from lafr_core.networks.detector import StarterDetectorNet
from lafr_core.resample import resample
from lafr_core.types import Box, Matrix

from .detector import CROWDED, Library, background, degrade_picture, sample, zoomed
from .faces import load_pixels, read_split

FACES = 0.55
"""Share of faces among the training close-ups."""

EXPECTED = 0.1
"""Share of faces among the finder's candidates in a photo: the second look's logit is moved by the difference in log odds."""


@dataclass(frozen=True)
class Config:
    """One training run; written beside its log."""

    detector: str = ""
    data: str = "../shared/data/faces"
    work: str = "/tmp/lafr-closeup"
    out: str = ""
    seed: int = 0
    batch: int = 64
    mined: int = 600
    steps: int = 6000
    minutes: float = 20.0
    rate: float = 2e-3
    decay: float = 2e-2
    average: float = 0.998
    threads: int = 1


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
    inside = Image.new("L", library.levels[index][0].size, 255)
    back = similarity(transform(matrix, points), points) if np.linalg.det(np.asarray(matrix)[:, :2]) > 0 else None
    if back is not None and g.random() < 0.5:  # half of the time the frame beyond the photo is something else than black
        a = np.asarray(back)[:, :2] / 2
        t = (np.asarray(back)[:, 2] + 0.5) / 2 - a @ np.asarray([0.5, 0.5])
        mask = inside.transform((SIDE, SIDE), Image.Transform.AFFINE, (a[0, 0], a[0, 1], t[0], a[1, 0], a[1, 1], t[1]))
        view = Image.composite(view, background(g, library, SIDE), mask)
    return view, torch.tensor(transform(matrix, points))


def positive(g: np.random.Generator, library: Library) -> tuple[Image.Image, Tensor]:
    """A face about where a detector's landmarks would put it."""
    wide = 1.0 if g.random() < 0.7 else 2.0
    degrees = float(g.normal(0, 6 * wide))
    scale = math.exp(float(g.normal(0, 0.07 * wide)))
    shift = g.normal(0, 0.035 * wide * SIDE, 2)
    return face_view(g, library, about_middle(degrees, scale, (float(shift[0]), float(shift[1]))))


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
        full = Image.fromarray(load_pixels(photo)).resize((640, 640), Image.Resampling.BILINEAR, reducing_gap=2.0)
        with Image.open(photo.path) as stored:
            kx, ky = 640 / stored.width, 640 / stored.height
        box = face_box([(x * kx, y * ky) for x, y in photo.landmarks])
        pixels = degrade_picture(g, full, 300.0)[0] if g.random() < 0.6 else np.asarray(full, np.float32) / 255
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


class CloseUps(IterableDataset):  # type: ignore[type-arg]
    """Endless batches: pixels (B, 3, 64, 64), landmarks (B, 5, 2), face (B,): 1 or 0."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        torch.set_num_threads(1)
        g = np.random.default_rng([self.config.seed, 7])
        library = Library([p for p in read_split(Path(self.config.data), "train") if p.path.stem not in CROWDED])
        loaded = checkpoint.load(Path(self.config.detector), "detector")
        finder = StarterDetectorNet(**loaded.config)
        checkpoint.restore_network(finder, loaded, Path(self.config.detector))
        mined = mine(g, library, finder, self.config.mined)
        print(f"{len(mined)} mistakes of the finder on {self.config.mined} composites", flush=True)
        while True:
            yield self.batch(g, library, mined)

    def batch(self, g: np.random.Generator, library: Library, mined: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.config.batch
        pixels, points, face = torch.empty(n, 3, SIDE, SIDE), torch.zeros(n, 5, 2), torch.zeros(n)
        for i in range(n):
            if g.random() < FACES:
                image, points[i] = positive(g, library)
                face[i] = 1
            else:
                image = negative(g, library, mined)
            array, _ = degrade_picture(g, image, SIDE * 0.72)
            if g.random() < 0.5:
                array = array[:, ::-1]
                points[i] = torch.stack([SIDE - 1 - points[i, :, 0], points[i, :, 1]], dim=1)[[1, 0, 2, 4, 3]]
            pixels[i] = torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
        return pixels, points, face


EYES = SIDE * 0.72 / 385.0 * 126.0
"""Eye distance of the template in a close-up: errors are counted in it."""


def losses(out: Closer, points: Tensor, face: Tensor) -> dict[str, Tensor]:
    """score: binary cross-entropy; landmarks: mean distance as a share of the eye distance, over faces."""
    error = (out.landmarks - points).norm(dim=-1).mean(-1) / EYES
    return {
        "score": F.binary_cross_entropy_with_logits(out.logits, face),
        "landmarks": (error * face).sum() / face.sum().clamp(min=1),
    }


WEIGHTS = {"score": 1.0, "landmarks": 4.0}


def train(config: Config) -> CloseUpNet:
    """Train and return the folded network of averaged weights."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.json").write_text(json.dumps(asdict(config), indent=1))
    network = CloseUpNet(norm=True).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    if (work / "last.pt").is_file():  # go on from an earlier run, for instance with another finder's mistakes
        network.load_state_dict(torch.load(work / "last.pt", weights_only=True)["averaged"])
    averaged = {key: value.clone() for key, value in network.state_dict().items()}
    batches = iter(DataLoader(CloseUps(config), batch_size=None, num_workers=1, prefetch_factor=8))
    first = next(batches)
    log = (work / "log.jsonl").open("a", encoding="utf-8")
    began = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(config.steps):
        done = max(step / config.steps, (time.monotonic() - began) / (60 * config.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        pixels, points, face = first if step == 0 else next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            out = network(pixels.contiguous(memory_format=torch.channels_last))
        parts = losses(out, points, face)
        loss = sum((WEIGHTS[name] * part for name, part in parts.items()), start=torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        keep = min(config.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in network.state_dict().items():
                averaged[key] = averaged[key].lerp(value, 1 - keep) if value.is_floating_point() else value.clone()
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        if (step + 1) % 100 == 0:
            means = {name: round(value / 100, 4) for name, value in sums.items()}
            log.write(json.dumps({"step": step + 1, "seconds": round(time.monotonic() - began), **means}) + "\n")
            log.flush()
            sums = {}
            torch.save({"averaged": averaged}, work / "last.pt")
    network.load_state_dict(averaged)
    return fold(network)


def join(finder: Path, close_up: CloseUpNet, path: Path, config: Config) -> None:
    """Write the starter detector: the finder's file with the second look beside it."""
    from lafr_core.networks.detector import StarterNets

    loaded = checkpoint.load(finder, "detector")
    nets = StarterNets(loaded.config, close_up.config)
    checkpoint.restore_network(nets.finder, loaded, finder)
    nets.close_up.load_state_dict(close_up.state_dict())
    with torch.no_grad():
        nets.close_up.out.bias[0] -= math.log((FACES / (1 - FACES)) / (EXPECTED / (1 - EXPECTED)))
    command = f"; python -m train.closeup --seed {config.seed} --steps {config.steps} --minutes {config.minutes}"
    checkpoint.save(path, "detector", nets, nets.config, {**loaded.notes, "command": loaded.notes.get("command", "") + command})


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the starter detector's second look")
    for name, value in asdict(Config()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    config = Config(**vars(parser.parse_args()))
    network = train(config)
    join(Path(config.detector), network, Path(config.out or Path(config.work) / "detector.safetensors"), config)


if __name__ == "__main__":
    main()
