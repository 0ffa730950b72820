"""Fits how far a restored face can be trusted (``lafr_core/faces/trust.py``) on faces whose original is known.

    python -m train trust measure --data ../shared/data/faces --teacher ../shared/weights --out trust_train.npz
    python -m train trust fit trust_train.npz --out lafr_core/weights/trust.safetensors

``measure`` degrades each photo anew ``--draws`` times (every second one shrunk and enlarged, the others by the blind-face
model of any strength), restores it with the starter, and notes the features and the truth: the cosine of MobileFaceNet's
embeddings of result and original, both after the mean embedding is taken off, so that strangers score about 0. dlib's cosine
is noted beside it for the validation photos where dlib is installed; nothing is fitted to it. ``fit`` weighs the features.
Whether there is a face at all is learned apart, once for all priors: ``python -m train presence``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.faces import trust
from lafr_core.faces.color import match_color
from lafr_core.faces.crop import template_crops
from lafr_core.faces.networks.embedder import INPUT_SIDE
from lafr_core.faces.people import shrunk
from lafr_core.geometry import ARCFACE_TEMPLATE
from lafr_core.images.degrade import degrade
from lafr_core.models import open_models
from lafr_core.pipeline import restore_pixels
from lafr_core.settings import RestoreSettings
from lafr_core.store import checkpoint
from lafr_core.store.outputs import Outputs

from ..data.photos import aligned_crop, load_pixels, read_split
from ..judges.mobilefacenet import load_mobilefacenet


def degraded(crop: Tensor, generator: np.random.Generator, draw: int) -> Tensor:
    """Every second draw shrunk by 1.5 to 40 (log-uniform), the others by the blind-face model, from mild to its full range."""
    if draw % 2 == 0:
        return shrunk(crop[None], float(np.exp(generator.uniform(np.log(1.5), np.log(40.0)))))[0]
    severity = ("mild", "medium", "severe", "full")[draw // 2 % 4]
    return torch.from_numpy(degrade(crop.permute(1, 2, 0).numpy(), generator, severity)[0]).permute(2, 0, 1)


class Teacher:
    """MobileFaceNet's embedding of FFHQ-template crops, the mean embedding of known originals taken off."""

    def __init__(self, folder: Path, originals: Tensor) -> None:
        self.network = load_mobilefacenet(folder)
        self.mean = torch.zeros(())
        self.mean = self._raw(originals).mean(0)

    def __call__(self, crops: Tensor) -> Tensor:
        return F.normalize(self._raw(crops) - self.mean, dim=1)

    def _raw(self, crops: Tensor) -> Tensor:
        with torch.no_grad():
            rows = [self.network(template_crops(crop[None], ARCFACE_TEMPLATE, INPUT_SIDE)) for crop in crops]
        return F.normalize(torch.cat(rows), dim=1)


@torch.no_grad()
def measure(args: argparse.Namespace) -> None:
    """Writes --out: quality (N, Q), sure, truth, dlib, photo and level (N,)."""
    settings = RestoreSettings()
    models = open_models(settings, device="cpu")
    embedder = models.embedder
    assert embedder is not None, "expected the starter embedder"
    photos = read_split(args.data, args.split)
    every = max(1, len(photos) // args.count) if args.count else 1
    train = read_split(args.data, "train")
    sharp = torch.stack([aligned_crop(load_pixels(p), p.matrix) for p in train[:: max(1, len(train) // 24)]])
    teacher = Teacher(args.teacher, sharp)
    judge = _dlib(args.data) if args.split == "val" else None
    rows: dict[str, list[object]] = {name: [] for name in ("quality", "sure", "truth", "dlib", "photo", "level")}
    for number, photo in list(enumerate(photos))[::every]:
        crop = aligned_crop(load_pixels(photo), photo.matrix)
        frame = judge.frame(crop[None]) if judge is not None else None
        known = judge(crop[None], frame) if judge is not None else None
        truth = teacher(crop[None])[0]
        for level, low in views(crop, number, args):
            restored = restore_pixels(low[None], models, settings.fidelity, settings.detail)
            restored = match_color(restored, low[None], settings.color)
            rows["quality"].append(trust.quality(low[None], restored, embedder)[0].numpy())
            rows["sure"].append(float(trust.sure(low[None])))
            rows["truth"].append(float(teacher(restored)[0] @ truth))
            rows["dlib"].append(float(judge(restored, frame) @ known) if judge is not None else np.nan)
            rows["photo"].append(number)
            rows["level"].append(level)
        print(f"{number}: {len(rows['truth'])} measured", flush=True)
        arrays: dict[str, Any] = {name: np.asarray(values) for name, values in rows.items()}
        with args.outputs.writing(args.out) as part, part.open("wb") as file:
            np.savez(file, **arrays)


def views(crop: Tensor, number: int, args: argparse.Namespace) -> Iterator[tuple[float, Tensor]]:
    """The degraded versions of one photo and their levels: a shrink factor, -1 to -3 for mild to severe, 0 for drawn ones."""
    g = np.random.default_rng([20261126, len(args.split), number])
    if args.fixed:
        for level in (4.0, 6.0, 12.0, 20.0, 28.0):
            yield level, shrunk(crop[None], level)[0]
        for code, severity in enumerate(("mild", "medium", "severe")):
            yield -1.0 - code, torch.from_numpy(degrade(crop.permute(1, 2, 0).numpy(), g, severity)[0]).permute(2, 0, 1)
        return
    first = int(g.integers(8))
    for draw in range(first, first + args.draws):
        yield 0.0, degraded(crop, g, draw)


def _dlib(data: Path) -> Any:
    """The benchmarks' judge, or None where dlib is not installed. Benchmarks lie beside this package, not below it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    quality = importlib.import_module("benchmarks.quality")
    return quality.optional("dlib", lambda: quality.DlibIdentity(data))


@torch.no_grad()
def fit(args: argparse.Namespace) -> None:
    """Ridge regression of the truth on the terms of quality; the ridge's strength is chosen by leaving photos out."""
    try:
        stored = np.load(args.measured)
        stored["quality"], stored["truth"], stored["photo"]
    except (OSError, ValueError, KeyError, IndexError) as why:
        raise InputError(f"{args.measured}: expected what trust measure wrote ({why}); check the path") from why
    x, y = torch.from_numpy(stored["quality"]).double(), torch.from_numpy(stored["truth"]).double()
    net = trust.Polynomial()
    groups = torch.from_numpy(stored["photo"]).unique(return_inverse=True)[1]
    error = fit_polynomial(net, x, y, groups, lambda p, t: (p.clamp(-1, 1) - t).abs().mean())
    notes = {
        "trained_on": f"{len(y)} restored crops of faces/train (CC0 and US government portraits); truth: MobileFaceNet's "
        "cosine of result and original, mean taken off",
        "cross_validated": f"mean absolute error {error:.4f}",
    }
    with args.outputs.writing(args.out) as part:
        checkpoint.save(part, "trust", net, net.config, notes)
    print(f"{notes['cross_validated']}; wrote {args.out}")


Loss = Callable[[Tensor, Tensor], Tensor]


def fit_polynomial(net: trust.Polynomial, x: Tensor, y: Tensor, groups: Tensor, loss: Loss) -> float:
    """Fill ``net`` by ridge regression; return the loss of the best ridge with every fifth group left out."""
    net.centre.copy_(x.mean(0))
    net.spread.copy_(x.std(0).clamp_min(1e-6))
    a = trust.terms((x - net.centre) / net.spread)
    losses = {}
    for ridge in (0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        left = torch.zeros_like(y)
        for fold in range(5):
            out = groups % 5 == fold
            left[out] = a[out] @ solve(a[~out], y[~out], ridge)
        losses[ridge] = float(loss(left, y))
    best = min(losses, key=losses.__getitem__)
    net.weights.copy_(solve(a, y, best))
    return losses[best]


def solve(a: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Weights of the ridge regression; the constant (column 0) is not drawn to 0."""
    penalty = ridge * torch.eye(a.shape[1], dtype=a.dtype)
    penalty[0, 0] = 0
    return torch.linalg.solve(a.T @ a + penalty, a.T @ y)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure", help="restore degraded faces and note features and truth")
    one.add_argument("--data", type=Path, required=True, help="folder with faces.csv")
    one.add_argument("--teacher", type=Path, required=True, help="folder with mobilefacenet_foamliu.pt")
    one.add_argument("--split", choices=("train", "val"), default="train")
    one.add_argument("--count", type=int, default=0, help="photos, spread evenly; 0 = all")
    one.add_argument("--draws", type=int, default=4, help="degradations a photo")
    one.add_argument("--fixed", action="store_true", help="the benchmark's shrink factors and severities instead of drawn ones")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(run=measure)
    two = commands.add_parser("fit", help="fit the estimate to what was measured")
    two.add_argument("measured", type=Path)
    two.add_argument("--out", type=Path, required=True)
    two.set_defaults(run=fit)
    for command in (one, two):
        command.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    args = parser.parse_args(arguments)
    args.outputs = Outputs(overwrite=args.overwrite)
    args.outputs.check(args.out)
    args.run(args)


if __name__ == "__main__":
    main()
