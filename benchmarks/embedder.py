"""How well the starter embedder tells people apart, beside its teacher, on ``faces/val``.

    python benchmarks/embedder.py --data FACES --teacher WEIGHTS [--weights FILE] [--every N] [--json FILE]

"Same" is two views of one photo, moved a little and degraded; "different" is every pair of two people.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lafr_core.faces.crop import template_crops
from lafr_core.faces.identity import open_embedder
from lafr_core.faces.networks.embedder import INPUT_SIDE
from lafr_core.geometry import ARCFACE_TEMPLATE, compose
from lafr_core.images.degrade import degrade
from train.data.photos import aligned_crop, jitter, load_pixels, read_split
from train.judges.mobilefacenet import load_mobilefacenet

WEIGHTS = Path(__file__).resolve().parent.parent / "lafr_core" / "weights" / "embedder.safetensors"
SEVERITIES = ("sharp", "medium", "severe")
PAIRS = (("sharp", "sharp"), ("sharp", "medium"), ("medium", "medium"), ("sharp", "severe"))


def area_under_curve(same: np.ndarray, different: np.ndarray) -> float:
    """The chance that a pair of one person scores above a pair of two."""
    order = np.sort(different)
    below = np.searchsorted(order, same, side="left") + np.searchsorted(order, same, side="right")
    return float(below.mean() / 2 / len(order))


def measure(weights: Path, data: Path, teacher: Path, every: int = 1) -> dict[str, float]:
    """Area under the curve and mean cosine of the same person for every pair of views, and how far embedders agree."""
    embedder, master = open_embedder(weights, "cpu"), load_mobilefacenet(teacher)
    assert embedder is not None
    photos = read_split(data, "val")[::every]
    ours: dict[tuple[int, str], list[Tensor]] = {}
    theirs: dict[tuple[int, str], list[Tensor]] = {}
    first_views: list[Tensor] = []
    for number, photo in enumerate(photos):
        pixels = load_pixels(photo)
        for side in (0, 1):
            g = np.random.default_rng([number, side])
            crop = aligned_crop(pixels, compose(jitter(g), photo.matrix))
            if side == 0:
                first_views.append(crop)
            for severity in SEVERITIES:
                view = crop[None]
                if severity != "sharp":
                    array, _ = degrade(crop.permute(1, 2, 0).numpy(), g, severity)
                    view = torch.from_numpy(array).permute(2, 0, 1)[None]
                with torch.no_grad():
                    small = template_crops(view, ARCFACE_TEMPLATE, INPUT_SIDE)
                    ours.setdefault((side, severity), []).append(embedder(view)[0])
                    theirs.setdefault((side, severity), []).append(F.normalize(master(small), dim=1)[0])
    figures = {}
    off = ~np.eye(len(photos), dtype=bool)
    for first, second in PAIRS:
        for name, table in (("starter", ours), ("teacher", theirs)):
            grid = (torch.stack(table[0, first]) @ torch.stack(table[1, second]).T).numpy()
            figures[f"auc {name} {first}-{second}"] = area_under_curve(np.diag(grid), grid[off])
            figures[f"cosine {name} {first}-{second}"] = float(np.diag(grid).mean())
    a, b = torch.stack(ours[0, "sharp"]), torch.stack(theirs[0, "sharp"])
    figures["cosine to teacher, sharp"] = float((a * b).sum(1).mean())
    alike = {"starter": (a @ a.T).numpy()[off], "teacher": (b @ b.T).numpy()[off]}
    known = dlib_vectors(torch.stack(first_views))
    if known is not None:
        alike["dlib"] = -np.linalg.norm(known[:, None] - known[None], axis=-1)[off]
    for one, other in itertools.combinations(alike, 2):
        name = f"correlation of {one} with {other} over pairs of different people"
        figures[name] = float(np.corrcoef(alike[one], alike[other])[0, 1])
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
    parser = argparse.ArgumentParser(description="How well the starter embedder tells people apart")
    parser.add_argument("--data", type=Path, required=True, help="folder with faces.csv")
    parser.add_argument("--teacher", type=Path, required=True, help="folder with mobilefacenet_foamliu.pt")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--every", type=int, default=1, help="only every n-th validation photo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options.weights, options.data, options.teacher, options.every)
    for name, value in figures.items():
        print(f"{name}: {value:.4f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
