"""What a checkpoint is worth: metrics as JSON and Markdown, and a contact sheet.

    python -m train evaluate --config runs/sd21/prior/step_00020000/config.yaml --checkpoint runs/sd21 [--layout celeba]

Restores every validation face as the product restores a crop, at its defaults, and compares with the original. The faces are
data.validation of the config: a plain HQ folder with synthetic degradation, with ``--layout celeba`` a folder holding ``lq/``
and ``hq/`` with equal file names, as CelebA-Test is handed out, or with ``--layout real`` degraded faces whose original nobody
has. A metric whose weights are not there is printed as not available, with the file it needs and its address. ``--ntire SET``
adds the score of NTIRE's face restoration challenge with its identity gate (train/judges/metrics.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import tempfile
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
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.pipeline import restore_crops
from lafr_core.settings import RestoreSettings
from lafr_core.store.outputs import Outputs
from lafr_core.types import Face, LatentSpec, Models
from train import config as configs
from train.config import Config
from train.data.faces import SUFFIXES, Picture, find_pictures, load_picture, open_faces, readable, shortened, to_tensor
from train.engine.checkpoints import open_checkpoint
from train.engine.journal import grid
from train.engine.parts import adapter_from, averaged, lora_prior, part, rebuilt, vae_of
from train.judges.metrics import THRESHOLDS, Metric, ntire, open_metrics, to_bytes

log = logging.getLogger("train.evaluate")
Restore = Callable[[Tensor], Tensor]
SHEET_ROWS = 8


@dataclass(frozen=True)
class Pair:
    """One validation face: degraded and original (3, S, S) in [0, 1]; None where nobody has the original."""

    name: str
    lq: Tensor
    hq: Tensor | None


def pairs(conf: Config, layout: str, limit: int) -> Iterator[Pair]:
    """The validation faces, in order. ``layout`` folder: degraded here, by the run's seed; celeba: lq/ and hq/ as they are;
    real: degraded ones alone.
    """
    if layout == "folder":
        faces, _ = open_faces(replace(conf.data, flip=0.0), conf.seed, split="val")
        count = min(limit or len(faces), len(faces))
        by_picture = sorted((faces.locate(p)[1], p) for p in range(len(faces)))
        for index, position in by_picture[:count]:
            sample = faces[position]
            yield Pair(faces.pictures[index].name, sample["lq"], sample["hq"])
        return
    if layout == "real":
        for picture in readable(find_pictures(conf.data.validation, "val"))[0][: limit or None]:
            yield Pair(picture.name, to_tensor(load_picture(picture, conf.data.size)), None)
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


def files_read(conf: Config, layout: str) -> list[Path]:
    """The files that :func:`pairs` reads: never written, ``--overwrite`` or not."""
    root = Path(conf.data.validation)
    if layout == "celeba":
        return [path for kind in ("lq", "hq") for path in (root / kind).glob("*")]
    return [picture.path for picture in find_pictures(conf.data.validation, "val") if picture.path is not None]


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
    joint = open_checkpoint(where, "joint") if stage == "joint" else None
    if stage == "adapter":
        adapter = adapter_from(where).to(device)
    elif joint is not None:
        adapter = cast(AdapterNet, rebuilt(part(joint[2], "adapter"), joint[1], "adapter")).to(device)
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
    elif joint is not None:
        prior = rebuilt(part(joint[2], "prior"), joint[1], "prior").to(device)
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


KINDS = ("degraded", "restored")


def evaluate(
    restore: Restore, faces: Iterator[Pair], metrics: Sequence[Metric], save_to: Path, outputs: Outputs | None = None
) -> tuple[dict[str, dict[str, list[float]]], Tensor]:
    """Every available metric of the degraded and of the restored pictures, and the sheet's rows (R, 3, 3, S, S).

    The pictures are left in ``save_to``/degraded and /restored, written through ``outputs`` (None = nothing there is replaced):
    FID looks at whole folders, and has one value in its list.
    """
    outputs = outputs or Outputs()
    values: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    rows: list[Tensor] = []
    for number, pair in enumerate(faces):
        restored = restore(pair.lq[None])
        lq = pair.lq[None]
        held = {"original": None if pair.hq is None else pair.hq[None], "input": lq, "nothing": lq}
        for kind, picture in zip(KINDS, (lq, restored), strict=True):
            with outputs.writing(save_to / kind / f"{number:05d}_{shortened(Path(pair.name).stem)}.png") as part:
                Image.fromarray(to_bytes(picture[0])).save(part, "PNG")
            for metric in metrics:
                other = held[metric.against]
                if metric.measure is not None and other is not None:
                    values[kind].setdefault(metric.name, []).append(metric.measure(picture, other))
        if len(rows) < SHEET_ROWS:
            rows.append(torch.stack([pair.lq, restored[0], pair.lq if pair.hq is None else pair.hq]))
    if not rows:
        raise InputError("evaluate: no validation faces; set data.validation")
    for metric in metrics:
        for kind in KINDS:
            if metric.whole is not None:
                values[kind][metric.name] = [metric.whole(save_to / kind)]
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
        if not metric.available:
            lines.append(f"| {metric.name} | {metric.better} | not available | {metric.missing} |")
            continue
        if metric.name not in values["restored"]:
            lines.append(f"| {metric.name} | {metric.better} | not available | needs the originals |")
            continue
        cells = []
        for kind in KINDS:
            mean, half, count = summary(values[kind][metric.name])
            cells.append(f"{mean:.4f} ± {half:.4f} (n = {count})" if metric.whole is None else f"{mean:.2f}")
        lines.append(f"| {metric.name} | {metric.better} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m train evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config.yaml of the run (data.validation, models)")
    parser.add_argument("--checkpoint", type=Path, required=True, help="run folder")
    parser.add_argument("--stage", choices=("adapter", "prior", "critic", "joint"), default="prior")
    parser.add_argument("--validation", help="another validation folder than the config's")
    parser.add_argument("--layout", choices=("folder", "celeba", "real"), default="folder")
    parser.add_argument("--ntire", choices=tuple(THRESHOLDS), help="the challenge's score, with the gate of this test set")
    parser.add_argument("--fidelity", type=float, default=RestoreSettings().fidelity, help="default: the product's")
    parser.add_argument("--detail", type=float, default=RestoreSettings().detail, help="default: the product's")
    parser.add_argument("--limit", type=int, default=0, help="first N faces only; 0 = all")
    parser.add_argument("--weights", type=Path, help="folder with the metrics' weights")
    parser.add_argument("--identity", default="dlib")
    parser.add_argument("--save", type=Path, help="keep every picture here, in degraded/ and restored/")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json, .md and .png; default: the run folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already (an input never is)")
    args = parser.parse_args(given)
    out = args.out or args.checkpoint
    table_file, values_file, sheet_file = (out / f"evaluation.{kind}" for kind in ("md", "json", "png"))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        conf = configs.from_mapping(configs.read_yaml(args.config))
        if args.validation:
            conf = replace(conf, data=replace(conf.data, validation=args.validation))
        outputs = Outputs([args.config, *files_read(conf, args.layout)], overwrite=args.overwrite)
        outputs.check(table_file, values_file, sheet_file)
        settings = RestoreSettings(fidelity=args.fidelity, detail=args.detail)
        restore = open_restorer(conf, args.checkpoint, args.stage, settings, torch.device(args.device))
        metrics = open_metrics(args.weights, args.identity)
        faces = pairs(conf, args.layout, args.limit)
        with contextlib.nullcontext(args.save) if args.save else tempfile.TemporaryDirectory() as folder:
            values, rows = evaluate(restore, faces, metrics, Path(folder), outputs)
    except LafrError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        sys.exit(1)
    text = table(values, metrics)
    scores = {kind: ntire(values[kind], args.ntire) for kind in KINDS} if args.ntire else {}
    text += "".join(f"\n{kind}: {score.sentence()}\n" for kind, score in scores.items())
    with outputs.writing(table_file) as part:
        part.write_text(text, encoding="utf-8")
    means = {kind: {name: summary(column)[0] for name, column in columns.items()} for kind, columns in values.items()}
    missing = {m.name: m.missing for m in metrics if not m.available}
    result = {
        "means": means, "values": values, "not_available": missing, "stage": args.stage, "settings": asdict(settings),
        "ntire": {kind: asdict(score) for kind, score in scores.items()},
    }  # fmt: skip
    with outputs.writing(values_file) as part:
        part.write_text(json.dumps(plain(result), indent=1, allow_nan=False), encoding="utf-8")
    with outputs.writing(sheet_file) as part:
        Image.fromarray(grid(rows)).save(part, "PNG")
    print(text)
