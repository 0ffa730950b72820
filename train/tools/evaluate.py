"""What a checkpoint is worth: metrics as JSON and Markdown, and a contact sheet.

    python -m train evaluate --config runs/sd21/prior/step_00020000/config.yaml --checkpoint runs/sd21 [--layout celeba]

Restores every validation face as the product restores a crop, at its defaults, and compares with the original. The faces are
data.validation of the config: a plain HQ folder with synthetic degradation, or with ``--layout celeba`` a folder holding
``lq/`` and ``hq/`` with equal file names, as CelebA-Test is handed out. A metric whose weights are not there is printed as not
available, with what it needs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lafr_core.errors import InputError, LafrError
from lafr_core.faces.boxes import five
from lafr_core.geometry import FFHQ_TEMPLATE
from lafr_core.images.metrics import psnr, ssim
from lafr_core.pipeline import restore_crops
from lafr_core.settings import RestoreSettings
from lafr_core.store.outputs import Outputs
from lafr_core.types import Face, LatentSpec, Models
from train import config as configs
from train.config import Config
from train.data.faces import SUFFIXES, Picture, load_picture, open_faces, to_tensor
from train.engine.checkpoints import open_checkpoint
from train.engine.journal import grid
from train.engine.parts import adapter_from, averaged, lora_prior, rebuilt, vae_of
from train.judges.niqe import Niqe

log = logging.getLogger("train.evaluate")
Restore = Callable[[Tensor], Tensor]
SHEET_ROWS = 8


@dataclass(frozen=True)
class Pair:
    """One validation face: degraded and original (3, S, S) in [0, 1]."""

    name: str
    lq: Tensor
    hq: Tensor


@dataclass(frozen=True)
class Metric:
    """One column of the table. ``measure`` takes a restored picture and its original (1, 3, S, S); None = not available."""

    name: str
    better: str
    measure: Callable[[Tensor, Tensor], float] | None = None
    missing: str = ""


def pairs(conf: Config, layout: str, limit: int) -> Iterator[Pair]:
    """The validation faces, in order. ``layout`` folder: degraded here, by the run's seed; celeba: lq/ and hq/ as they are."""
    if layout == "folder":
        faces, _ = open_faces(replace(conf.data, flip=0.0), conf.seed, split="val")
        count = min(limit or len(faces), len(faces))
        by_picture = sorted((faces.locate(p)[1], p) for p in range(len(faces)))
        for index, position in by_picture[:count]:
            sample = faces[position]
            yield Pair(faces.pictures[index].name, sample["lq"], sample["hq"])
        return
    root = Path(conf.data.validation)
    low = {p.stem: p for p in sorted((root / "lq").glob("*")) if p.suffix.lower() in SUFFIXES}
    high = {p.stem: p for p in sorted((root / "hq").glob("*")) if p.suffix.lower() in SUFFIXES}
    both = sorted(low.keys() & high.keys())
    if not both:
        found = f"{len(low)} and {len(high)} files and no pair"
        raise InputError(f"{root}: expected lq/ and hq/ with equal file names, found {found}")
    if len(both) < len(low | high):
        log.warning("%d files have no counterpart and are left out", len(low | high) - len(both))
    for name in both[: limit or None]:
        lq, hq = (to_tensor(load_picture(Picture(name, path), conf.data.size)) for path in (low[name], high[name]))
        yield Pair(name, lq, hq)


class Aligned(NamedTuple):
    """What the pipeline asks of an aligner's answer."""

    latents: Tensor


class TrainedAligner:
    """A trained adapter network behind the pipeline's aligner."""

    def __init__(self, network: nn.Module, spec: LatentSpec) -> None:
        self.network, self.spec = network, spec

    def __call__(self, latents: Tensor, fidelity: float) -> Aligned:
        return Aligned(self.network(latents, latents.new_full((len(latents), 1, 1, 1), fidelity)).latents)


def open_restorer(conf: Config, where: Path, stage: str, settings: RestoreSettings, device: torch.device) -> Restore:
    """Pictures (B, 3, S, S) -> restored pictures as the product restores its crops, by the stages up to ``stage``.

    Averaged weights; colour, grain and detail as ``settings`` say, so that the numbers are those a user would see.
    """
    vae = vae_of(conf, device)
    adapter = None
    if stage == "adapter":
        adapter = adapter_from(where).to(device)
    elif conf.models.adapter != "none":
        adapter = adapter_from(conf.models.adapter or where).to(device)
    prior: nn.Module | None = None
    if stage in ("prior", "critic"):
        _, own, state = open_checkpoint(where, stage)
        if "context" in state["task"]:
            prior = lora_prior(replace(own, models=conf.models), device)
            prior.load_state_dict(averaged(state), strict=False)
        else:
            prior = rebuilt(state, own, "prior").to(device)
        prior.eval()
    aligner = None if adapter is None else TrainedAligner(adapter, vae.spec)
    models = Models(detector=cast(Any, None), vae=vae, aligner=cast(Any, aligner), prior=cast(Any, prior), device=device)

    @torch.no_grad()
    def restore(pictures: Tensor) -> Tensor:
        side = float(pictures.shape[-1])
        face = Face((0.0, 0.0, side, side), five(FFHQ_TEMPLATE), 1.0)
        return restore_crops(pictures, [face] * len(pictures), models, settings)[0].cpu()

    return restore


def plain(value: Any) -> Any:
    """The same nested value with what JSON cannot say (NaN, infinities) as None."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_metrics(weights: Path | None, identity: str) -> list[Metric]:
    """Every metric of the table; those whose network or weights are missing say what they need.

    ``weights`` is a folder of them.
    """
    folder = weights or Path(".")
    metrics = [
        Metric("PSNR", "higher", lambda a, b: float(psnr(a, b))),
        Metric("SSIM", "higher", lambda a, b: float(ssim(a, b))),
    ]
    niqe_file = folder / "niqe_pris_params.npz"
    if niqe_file.is_file():
        niqe = Niqe(niqe_file)
        metrics.append(Metric("NIQE", "lower", lambda a, b: niqe(a[0])))
    else:
        metrics.append(Metric("NIQE", "lower", missing="needs niqe_pris_params.npz in --weights"))
    metrics.append(_identity(identity))
    metrics.append(_landmarks(folder))
    metrics += [_pyiqa("lpips"), _pyiqa("dists")]
    folders = "compares folders, not pairs: run pytorch-fid or clean-fid on the pictures of --save"
    metrics.append(Metric("FID", "lower", missing=folders))
    return metrics


def _identity(name: str) -> Metric:
    """1 minus the Euclidean distance of dlib's face descriptors; same person: above 0.4.

    No training loss here uses that network.
    """
    if name != "dlib":
        return Metric("identity", "higher", missing=f"expected the embedder dlib, got {name!r}")
    try:
        network = dlib_network()
    except ImportError:
        return Metric("identity (dlib)", "higher", missing="needs dlib-bin and face_recognition_models from PyPI")

    def describe(picture: Tensor) -> np.ndarray[Any, Any]:
        # The middle of an FFHQ crop is about dlib's own chip.
        image = Image.fromarray(_bytes(picture[0])).resize((256, 256), Image.Resampling.BICUBIC).crop((42, 52, 214, 224))
        return np.asarray(network.compute_face_descriptor(np.asarray(image.resize((150, 150), Image.Resampling.BICUBIC))))

    def measure(a: Tensor, b: Tensor) -> float:
        return float(1 - np.linalg.norm(describe(a) - describe(b)))

    return Metric("identity (1 - dlib distance)", "higher", measure)


def dlib_network() -> Any:
    """dlib's face recognition network with the CC0 weights of the package face_recognition_models. Raises ImportError."""
    import dlib

    # Found by its folder: the package's own __init__ imports pkg_resources, which new setuptools no longer has.
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("face_recognition_models is not installed")
    file = Path(next(iter(spec.submodule_search_locations))) / "models" / "dlib_face_recognition_resnet_model_v1.dat"
    return dlib.face_recognition_model_v1(str(file))


def _landmarks(folder: Path) -> Metric:
    """Mean distance of the five landmarks a detector finds in both pictures, as a share of the original's eye distance."""
    name = "landmark distance"
    try:
        from lafr_core.faces.detectors import open_detector

        file = folder / "retinaface_mobile0.25.pth"
        kind = "retinaface-mobile0.25" if file.is_file() else "auto"
        detector = open_detector(kind, weights=file if file.is_file() else None, device=torch.device("cpu"))
    except (LafrError, OSError) as error:
        return Metric(name, "lower", missing=str(error))

    def measure(a: Tensor, b: Tensor) -> float:
        found = [detector(picture[0], 0.5) for picture in (a, b)]
        if not all(found):
            return math.nan
        p, q = (np.asarray(faces[0].landmarks) for faces in found)
        return float(np.linalg.norm(p - q, axis=1).mean() / np.linalg.norm(q[0] - q[1]))

    return Metric(name, "lower", measure)


def _pyiqa(name: str) -> Metric:
    """LPIPS (arXiv 1801.03924) or DISTS (arXiv 2004.07728) by pyiqa, whose own cache must hold the weights already.

    It downloads them otherwise, and an evaluation downloads nothing.
    """
    title = name.upper()
    try:
        import pyiqa
    except ImportError:
        return Metric(title, "lower", missing="needs the package pyiqa and its weights")
    files = {"lpips": ("LPIPS_v0.1_alex-df73285e.pth",), "dists": ("DISTS_weights-f5e65c96.pth",)}[name]
    cache = Path(torch.hub.get_dir()) / "pyiqa"
    absent = [file for file in files if not (cache / file).is_file()]
    if absent:
        return Metric(title, "lower", missing=f"needs {absent[0]} in {cache}")
    network = pyiqa.create_metric(name, device="cpu")
    return Metric(title, "lower", lambda a, b: float(network(a, b)))


def evaluate(
    restore: Restore,
    faces: Iterator[Pair],
    metrics: Sequence[Metric],
    save_to: Path | None = None,
    outputs: Outputs | None = None,
) -> tuple[dict[str, dict[str, list[float]]], Tensor]:
    """Every available metric of the degraded and of the restored pictures, and the sheet's rows (R, 3, 3, S, S).

    save_to: a folder for the restored pictures, written through ``outputs`` (None = nothing there is replaced).
    """
    outputs = outputs or Outputs()
    values: dict[str, dict[str, list[float]]] = {"degraded": {}, "restored": {}}
    rows: list[Tensor] = []
    for pair in faces:
        restored = restore(pair.lq[None])
        if save_to is not None:
            with outputs.writing(save_to / (Path(pair.name).stem + ".png")) as part:
                Image.fromarray(_bytes(restored[0])).save(part, "PNG")
        for kind, picture in (("degraded", pair.lq[None]), ("restored", restored)):
            for metric in metrics:
                if metric.measure is not None:
                    values[kind].setdefault(metric.name, []).append(metric.measure(picture, pair.hq[None]))
        if len(rows) < SHEET_ROWS:
            rows.append(torch.stack([pair.lq, restored[0], pair.hq]))
    if not rows:
        raise InputError("evaluate: no validation faces; set data.validation")
    return values, torch.stack(rows)


def summary(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, half of the 95 % interval (normal approximation), and how many could be measured."""
    good = np.asarray([v for v in values if math.isfinite(v)])
    if len(good) == 0:
        return math.nan, math.nan, 0
    half = 1.96 * good.std(ddof=1) / math.sqrt(len(good)) if len(good) > 1 else math.nan
    return float(good.mean()), float(half), len(good)


def table(values: dict[str, dict[str, list[float]]], metrics: Sequence[Metric]) -> str:
    """The Markdown table: mean ± half of the 95 % interval."""
    lines = ["| metric | better | degraded | restored |", "|---|---|---|---|"]
    for metric in metrics:
        if metric.measure is None:
            lines.append(f"| {metric.name} | {metric.better} | not available | {metric.missing} |")
            continue
        cells = []
        for kind in ("degraded", "restored"):
            mean, half, count = summary(values[kind][metric.name])
            cells.append(f"{mean:.4f} ± {half:.4f} (n = {count})")
        lines.append(f"| {metric.name} | {metric.better} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def _bytes(picture: Tensor) -> np.ndarray[Any, Any]:
    return (picture.permute(1, 2, 0).numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of the run (data.validation, models)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder")
    parser.add_argument("--stage", choices=("adapter", "prior", "critic"), default="prior")
    parser.add_argument("--validation", help="another validation folder than the config's")
    parser.add_argument("--layout", choices=("folder", "celeba"), default="folder")
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity, help="default: the product's")
    parser.add_argument("--detail", type=float, default=RestoreSettings().detail, help="default: the product's")
    parser.add_argument("--limit", type=int, default=0, help="first N faces only; 0 = all")
    parser.add_argument("--weights", type=Path, help="folder with the metrics' weights")
    parser.add_argument("--identity", default="dlib")
    parser.add_argument("--save", type=Path, help="save every restored picture here")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json, .md and .png; default: the run folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already (an input never is)")
    args = parser.parse_args(given)
    out = args.out or args.checkpoint
    table_file, values_file, sheet_file = (out / f"evaluation.{kind}" for kind in ("md", "json", "png"))
    outputs = Outputs([args.config], overwrite=args.overwrite)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        outputs.check(table_file, values_file, sheet_file)
        conf = configs.from_mapping(configs.read_yaml(args.config))
        if args.validation:
            conf = replace(conf, data=replace(conf.data, validation=args.validation))
        settings = RestoreSettings(fidelity=args.fidelity, detail=args.detail)
        restore = open_restorer(conf, args.checkpoint, args.stage, settings, torch.device(args.device))
        metrics = open_metrics(args.weights, args.identity)
        values, rows = evaluate(restore, pairs(conf, args.layout, args.limit), metrics, args.save, outputs)
    except LafrError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        sys.exit(1)
    text = table(values, metrics)
    with outputs.writing(table_file) as part:
        part.write_text(text, encoding="utf-8")
    means = {kind: {name: summary(column)[0] for name, column in columns.items()} for kind, columns in values.items()}
    missing = {m.name: m.missing for m in metrics if m.measure is None}
    result = {"means": means, "values": values, "not_available": missing, "stage": args.stage, "settings": asdict(settings)}
    with outputs.writing(values_file) as part:
        part.write_text(json.dumps(plain(result), indent=1, allow_nan=False), encoding="utf-8")
    with outputs.writing(sheet_file) as part:
        Image.fromarray(grid(rows)).save(part, "PNG")
    print(text)
