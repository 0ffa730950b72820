"""Distil the starter identity embedder from MobileFaceNet on the portraits in ``faces/train``.

    python -m train.embedder --data FACES --teacher WEIGHTS --work /tmp/embedder --out lafr_core/weights/embedder.safetensors

630 people are few, so virtual people are mixed from them: aligned faces blended, halves exchanged, proportions changed. The
teacher sees each of them once, sharp; the student sees them turned, shifted, recoloured and degraded and must give the same
answer, so that a blurred face and its sharp original agree. ``--measure`` prints how well a weight file does on ``faces/val``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core import checkpoint
from lafr_core.crop import warp
from lafr_core.geometry import ARCFACE_TEMPLATE, similarity
from lafr_core.networks.embedder import INPUT_SIDE, StarterEmbedderNet, fold

from .faces import load_pixels, read_split
from .mobilefacenet import load_mobilefacenet

MARGIN = 8
"""Pixels kept around the 112 crop, for shifting and turning."""

SIDE = INPUT_SIDE + 2 * MARGIN


@dataclass(frozen=True)
class Config:
    """One training run; written beside its log."""

    data: str = "../shared/data/faces"
    teacher: str = "../shared/weights"
    work: str = "/tmp/lafr-embedder"
    out: str = ""
    seed: int = 0
    virtual: int = 2500
    people: int = 32
    views: int = 2
    steps: int = 4000
    minutes: float = 25.0
    rate: float = 2e-3
    decay: float = 5e-2
    threads: int = 1


# --- people ----------------------------------------------------------------------------------------------------------


def aligned_faces(data: Path, split: str) -> Tensor:
    """The faces of ``split`` at the ArcFace template with a margin: (N, 3, 128, 128) uint8."""
    template = [(x + MARGIN, y + MARGIN) for x, y in ARCFACE_TEMPLATE]
    faces = []
    for photo in read_split(data, split):
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


def gather_people(config: Config) -> tuple[Tensor, Tensor]:
    """Faces (N, 3, 128, 128) uint8, real and virtual, and their targets (N, 128); kept in ``work`` for the next start."""
    stored = Path(config.work) / f"people-{config.seed}-{config.virtual}.pt"
    if stored.is_file():
        state = torch.load(stored, weights_only=True)
        return state["faces"], state["targets"]
    g = np.random.default_rng(config.seed)
    real = aligned_faces(Path(config.data), "train")
    faces = torch.cat([real, torch.stack([mix(g, real) for _ in range(config.virtual)])])
    targets = taught(faces, load_mobilefacenet(Path(config.teacher)))
    torch.save({"faces": faces, "targets": targets}, stored)
    return faces, targets


# --- what the student sees -------------------------------------------------------------------------------------------


def disturbed(g: np.random.Generator, faces: Tensor) -> Tensor:
    """Faces (B, 3, 128, 128) uint8 -> crops (B, 3, 112, 112) in [0, 1]: moved, mirrored, recoloured, degraded."""
    n = len(faces)
    angle, scale = g.normal(0, 4, n).clip(-10, 10), np.exp(g.normal(0, 0.03, n).clip(-0.08, 0.08))
    flip = np.where(g.random(n) < 0.5, -1.0, 1.0)
    k = INPUT_SIDE / SIDE * scale
    c, s = k * np.cos(np.radians(angle)), k * np.sin(np.radians(angle))
    shift = g.normal(0, 0.02, (n, 2)).clip(-0.06, 0.06)
    theta = np.stack([np.stack([c * flip, -s, shift[:, 0]], 1), np.stack([s * flip, c, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [n, 3, INPUT_SIDE, INPUT_SIDE], align_corners=False)
    out = F.grid_sample(faces.float() / 255, grid, padding_mode="border", align_corners=False)
    out = torch.cat([degraded(g, part) for part in out.split(8)])
    column = lambda low, high, size=1: torch.from_numpy(g.uniform(low, high, (n, size, 1, 1))).float()
    mean = out.mean(dim=(1, 2, 3), keepdim=True)
    out = (out - mean) * column(0.7, 1.2) + mean * column(0.7, 1.25) * column(0.92, 1.08, 3)
    gray = torch.from_numpy(g.random((n, 1, 1, 1)) < 0.1)
    return torch.where(gray, out.mean(1, keepdim=True), out).clamp(0, 1)


def degraded(g: np.random.Generator, crops: Tensor) -> Tensor:
    """Crops (B, 3, 112, 112) shrunk to a common random size, noise added there, enlarged again; a third stay sharp."""
    if g.random() < 0.33:
        return crops
    side = round(math.exp(g.uniform(math.log(12), math.log(INPUT_SIDE))))
    small = F.interpolate(crops, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    if g.random() < 0.5:
        small = F.avg_pool2d(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.from_numpy(g.standard_normal(small.shape, dtype=np.float32))
    small = small + noise * float(g.uniform(0, 20 / 255))
    return F.interpolate(small, size=(INPUT_SIDE, INPUT_SIDE), mode="bicubic", align_corners=False)


def losses(given: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """cosine: 1 - cos to the teacher; relation: squared error of the cosines in the batch (relational KD, Park et al. 2019)."""
    return {
        "cosine": 1 - (given * wanted).sum(1).mean(),
        "relation": (given @ given.T - wanted @ wanted.T).square().mean(),
    }


WEIGHTS = {"cosine": 1.0, "relation": 4.0}


def train(config: Config) -> StarterEmbedderNet:
    """Train and return the folded network."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "config.json").write_text(json.dumps(asdict(config), indent=1))
    faces, targets = gather_people(config)
    network = StarterEmbedderNet(norm=True).to(memory_format=torch.channels_last).train()
    if (work / "last.pt").is_file():  # go on from an earlier run
        network.load_state_dict(torch.load(work / "last.pt", weights_only=True))
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=config.decay)
    g = np.random.default_rng([config.seed, 1])
    log = (work / "log.jsonl").open("a", encoding="utf-8")
    began = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(config.steps):
        done = max(step / config.steps, (time.monotonic() - began) / (60 * config.minutes))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        chosen = torch.from_numpy(np.repeat(g.choice(len(faces), config.people, replace=False), config.views))
        crops = disturbed(g, faces[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            given = network(crops.contiguous(memory_format=torch.channels_last))
        parts = losses(given, targets[chosen])
        loss = sum((WEIGHTS[name] * part for name, part in parts.items()), start=torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for name, part in parts.items():
            sums[name] = sums.get(name, 0.0) + float(part.detach())
        if (step + 1) % 50 == 0:
            means = {name: round(value / 50, 4) for name, value in sums.items()}
            log.write(json.dumps({"step": step + 1, "seconds": round(time.monotonic() - began), **means}) + "\n")
            log.flush()
            sums = {}
        if (step + 1) % 200 == 0:
            torch.save(network.state_dict(), work / "last.pt")
    return fold(network)


def export(network: StarterEmbedderNet, path: Path, config: Config) -> None:
    """Write the weight file with what a reader needs to judge it."""
    notes = {
        "licence": "MIT, trained on CC0-1.0 and official US government portraits only",
        "training_data": "faces/train: 630 portraits (faker-js, CivilServiceUSA) and mixtures of them",
        "teacher": "MobileFaceNet by foamliu (Apache-2.0), distilled",
        "command": f"python -m train.embedder --seed {config.seed} --steps {config.steps} --minutes {config.minutes}",
        "seed": str(config.seed),
        "use": "tells whether a restored face still looks like its input; not for identification",
    }
    checkpoint.save(path, "embedder", network, network.config, notes)


# --- measuring -------------------------------------------------------------------------------------------------------


def area_under_curve(same: np.ndarray, different: np.ndarray) -> float:
    """The chance that a pair of one person scores above a pair of two."""
    order = np.sort(different)
    below = np.searchsorted(order, same, side="left") + np.searchsorted(order, same, side="right")
    return float(below.mean() / 2 / len(order))


def measure(weights: Path, data: Path, teacher: Path, every: int = 1) -> dict[str, float]:
    """Same or different on ``faces/val``: two views of a photo, moved a little and degraded, against views of other people."""
    from lafr_core.crop import template_crops
    from lafr_core.identity import open_embedder

    from .degrade import degrade
    from .faces import aligned_crop, compose, jitter

    embedder = open_embedder(weights, "cpu")
    master = load_mobilefacenet(teacher)
    assert embedder is not None
    photos = read_split(data, "val")[::every]
    severities = ("sharp", "medium", "severe")
    pairs = (("sharp", "sharp"), ("sharp", "medium"), ("medium", "medium"), ("sharp", "severe"))
    ours: dict[tuple[int, str], list[Tensor]] = {}
    theirs: dict[tuple[int, str], list[Tensor]] = {}
    first_views: list[Tensor] = []
    for number, photo in enumerate(photos):
        pixels = load_pixels(photo)
        for side in (0, 1):
            g = np.random.default_rng([number, side])
            crop = aligned_crop(pixels, compose(jitter(g), photo.matrix))
            if side == 0:
                first_views.append(crop[None])
            for severity in severities:
                if severity == "sharp":
                    view = crop[None]
                else:
                    array, _ = degrade(crop.permute(1, 2, 0).numpy(), g, severity)
                    view = torch.from_numpy(array).permute(2, 0, 1)[None]
                with torch.no_grad():
                    small = template_crops(view, ARCFACE_TEMPLATE, INPUT_SIDE)
                    ours.setdefault((side, severity), []).append(embedder(view)[0])
                    theirs.setdefault((side, severity), []).append(F.normalize(master(small), dim=1)[0])
    figures = {}
    off = ~np.eye(len(photos), dtype=bool)
    for first, second in pairs:
        for name, table in (("starter", ours), ("teacher", theirs)):
            grid = (torch.stack(table[0, first]) @ torch.stack(table[1, second]).T).numpy()
            figures[f"auc {name} {first}-{second}"] = area_under_curve(np.diag(grid), grid[off])
            figures[f"cosine {name} {first}-{second}"] = float(np.diag(grid).mean())
    a, b = torch.stack(ours[0, "sharp"]), torch.stack(theirs[0, "sharp"])
    figures["cosine to teacher, sharp"] = float((a * b).sum(1).mean())
    figures["correlation with teacher over pairs of different people"] = float(
        np.corrcoef((a @ a.T).numpy()[off], (b @ b.T).numpy()[off])[0, 1]
    )
    known = dlib_vectors(torch.cat([crop for crop in first_views]))
    if known is not None:
        figures["correlation with dlib over pairs of different people"] = float(
            np.corrcoef((a @ a.T).numpy()[off], -np.linalg.norm(known[:, None] - known[None], axis=-1)[off])[0, 1]
        )
        figures["correlation of the teacher with dlib"] = float(
            np.corrcoef((b @ b.T).numpy()[off], -np.linalg.norm(known[:, None] - known[None], axis=-1)[off])[0, 1]
        )
    return figures


def dlib_vectors(crops: Tensor) -> np.ndarray | None:
    """dlib's face descriptors (N, 128) of FFHQ-template crops (N, 3, 512, 512), or None where dlib is not installed."""
    try:
        import dlib
    except ImportError:
        return None
    package = importlib.util.find_spec("face_recognition_models")  # found, not imported: it needs the retired pkg_resources
    if package is None or package.origin is None:
        return None
    models = Path(package.origin).parent / "models"
    shape = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    rows = []
    for crop in crops:
        pixels = np.ascontiguousarray((crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        box = dlib.rectangle(130, 190, 380, 440)  # about what dlib's own detector would draw at the template's face
        rows.append(np.asarray(network.compute_face_descriptor(pixels, shape(pixels, box))))
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil the starter identity embedder")
    default = Config()
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--measure", type=Path, help="print the figures of this weight file instead of training")
    parser.add_argument("--every", type=int, default=1, help="with --measure: only every n-th validation photo")
    options = vars(parser.parse_args())
    weights, every = options.pop("measure"), options.pop("every")
    config = Config(**options)
    if weights is not None:
        for name, value in measure(weights, Path(config.data), Path(config.teacher), every).items():
            print(f"{name}: {value:.4f}")
        return
    network = train(config)
    export(network, Path(config.out or Path(config.work) / "embedder.safetensors"), config)


if __name__ == "__main__":
    main()
