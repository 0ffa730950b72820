"""The paper's claims, in an experiment that can decide them. Resumable; days of one CPU, hours of a GPU.

    python -m benchmarks.claims --faces ../shared/data/ffhq256_research --portraits ../shared/data/faces \\
        --vae ../shared/weights --out runs/claims [--only diffusion …] [--list]

Every job goes through the training engine (``python -m train``), so a killed one goes on to the same bits; a finished one
leaves ``<job>.json`` and is not repeated. The diffusion prior learns from portraits that are not FFHQ and is frozen; the VAE is
TAESD's. Claim 1: codebook, adapter and LoRA against the same LoRA on raw latents, each until its validation curve is flat, per
seed. Claim 2: adapter against encoder at a constant learning rate and the latent term alone, CPU seconds to preset errors.
Claim 3: claim 1's first arm with fewer faces, and with fewer degraded views of them. Intervals are bootstraps over seeds and
faces. ``claims.md`` in OUT has what is there; jobs that were not run are *not tested*. Nothing trained here is shipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims_rival import ARMS, Arm, Error, Spoilt
from lafr_core.errors import LafrError
from lafr_core.images.metrics import psnr, ssim
from lafr_core.settings import RestoreSettings
from lafr_core.store.atomic import atomic
from train import config as configs
from train.config import Config
from train.data import pairs
from train.engine import run as engine
from train.engine.journal import read_rows
from train.engine.loop import train
from train.engine.parts import adapter_from, vae_of
from train.tasks import adapter, codebook, diffusion, prior
from train.tools import evaluate

log = logging.getLogger("benchmarks.claims")
METRICS = ("psnr", "ssim", "identity")
FIDELITIES = (0.0, 0.75, 1.0)
SHARES = {"faces": 1.0, "faces_third": 1 / 3, "faces_ninth": 1 / 9, "faces_fewer_views": 1.0}
"""Sets of stored pairs and the share of the faces that is in them; the last has a quarter of the degraded views."""
VIEWS = 16


@dataclass(frozen=True)
class Plan:
    """Where things are and how much is spent. The defaults are the experiment; a test passes tiny ones."""

    faces: str
    validation: str
    portraits: str
    vae: str
    out: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    more: tuple[str, ...] = ()
    """Further settings of every run, as on the command line."""
    errors: tuple[float, ...] = (0.40, 0.38, 0.36, 0.34, 0.32)
    """Claim 2: CPU seconds are compared where these mean L1 errors are first reached."""
    count: int = 0
    """Validation faces; 0 = all."""

    def config(self, job: str, *settings: str) -> Config:
        """The run of one job: its own folder, the shared settings, then its own."""
        common = [
            *("--name", job, "--log.out", str(self.out / "runs" / job), "--log.tracker", "none", "--models.vae", self.vae),
            *("--data.size", "256", "--network.grid", "32", "--data.severity", "full"),
            *("--loss.identity", "0", "--log.plots", "false", "--log.validate_every", "250", "--log.patience", "8"),
        ]
        return configs.parse([*common, *settings, *self.more])


class Job:
    """One named piece of work and the jobs it builds on; its result is kept as JSON."""

    def __init__(self, name: str, work: Callable[[], Any], needs: Sequence[str] = ()) -> None:
        self.name, self.work, self.needs = name, work, tuple(needs)


def jobs(plan: Plan) -> dict[str, Job]:
    """Every job by name, each after those it needs."""
    found: dict[str, Job] = {}

    def add(name: str, work: Callable[[], Any], needs: Sequence[str] = ()) -> None:
        found[name] = Job(name, work, needs)

    folder = lambda name: str(plan.out / "pairs" / name)
    stored = lambda name, source, *more: plan.config(name, "--data.source", source, "--data.pairs", folder(name), *more)
    add(
        "portraits", lambda: str(pairs.run(stored("portraits", plan.portraits, "--pairs.rounds", "4", "--pairs.versions", "1")))
    )
    add("diffusion", lambda: train_diffusion(plan, folder("portraits")), ["portraits"])
    for name, share in SHARES.items():
        views = VIEWS // 4 if name == "faces_fewer_views" else VIEWS
        options = ["--subset", str(share), "--pairs.versions", str(views), "--pairs.degraded", str(name == "faces").lower()]
        add(name, lambda n=name, o=options: str(pairs.run(stored(n, plan.faces, *o))))  # type: ignore[misc]
    add(
        "held_out",
        lambda: str(pairs.run(stored("held_out", plan.validation, "--pairs.versions", "1", "--pairs.degraded", "true"))),
    )
    for seed in plan.seeds:
        for name in SHARES:
            add(f"{name}_{seed}", lambda n=name, s=seed: restored(plan, folder(n), n, s), [name, "diffusion"])  # type: ignore[misc]
        add(f"raw_{seed}", lambda s=seed: restored(plan, folder("faces"), "raw", s), ["faces", "diffusion"])  # type: ignore[misc]
        add(f"codebook_{seed}", lambda s=seed: clean_codes(plan, folder("faces"), s), ["faces"])  # type: ignore[misc]
        for arm in ARMS:
            needs = ["faces", "held_out", f"codebook_{seed}"]
            add(f"{arm}_{seed}", lambda a=arm, s=seed: race(plan, folder, a, s), needs)  # type: ignore[misc]
    return found


def train_diffusion(plan: Plan, folder: str) -> str:
    """The frozen prior of claims 1 and 3; returns its UNet folder."""
    settings = ["--data.pairs", folder, "--diffusion.steps", "20000", "--diffusion.batch", "8", "--diffusion.lr", "2e-4"]
    more = ["--diffusion.precision", "no", "--diffusion.warmup", "500", "--diffusion.hold", "0.7"]
    return str(diffusion.run(plan.config("diffusion", *settings, *more)))


def restored(plan: Plan, folder: str, name: str, seed: int) -> dict[str, Any]:
    """One arm of claims 1 and 3, trained to a flat curve: per-face scores by fidelity.

    ``raw`` has no adapter: its LoRA, of the same rank and at most as many steps, sees raw latents.
    """
    job = f"{name}_{seed}"
    unet = str(plan.out / "runs" / "diffusion" / "diffusion" / "unet")
    settings = ["--seed", str(seed), "--data.pairs", folder, "--data.validation", plan.validation, "--models.unet", unet]
    stages = [f"--{stage}.{key}" for stage in ("codebook", "adapter", "prior") for key in ("precision",)]
    settings += [word for flag in stages for word in (flag, "bf16")]
    settings += ["--loss.gradient", "1.0", "--adapter.steps", "10000", "--prior.steps", "10000", "--codebook.steps", "2000"]
    config = plan.config(job, *settings)
    started = time.process_time()
    if name != "raw":
        engine.run(codebook.CodebookTask, config)
        engine.run(adapter.AdapterTask, config)
    else:
        config = replace(config, models=replace(config.models, adapter="none"))
    engine.run(prior.PriorTask, config)
    seconds = time.process_time() - started
    return {"seconds": seconds, **{f"{fidelity:g}": scores(plan, config, fidelity) for fidelity in FIDELITIES}}


def scores(plan: Plan, config: Config, fidelity: float) -> dict[str, list[float]]:
    """PSNR, SSIM and identity of every validation face, the same degradations for every arm and seed."""
    same = replace(config, seed=0)
    settings = RestoreSettings(fidelity=fidelity)
    restore = evaluate.open_restorer(config, Path(config.log.out), "prior", settings, torch.device("cpu"))
    faces = list(evaluate.pairs(same, "folder", plan.count))
    pictures = torch.cat([restore(face.lq[None]) for face in faces])
    originals = torch.stack([face.hq for face in faces])
    each = lambda measure: [float(measure(a[None], b[None])) for a, b in zip(pictures, originals, strict=True)]
    return {"psnr": each(psnr), "ssim": each(ssim), "identity": identities(pictures, originals)}


def identities(pictures: Tensor, originals: Tensor) -> list[float]:
    """Cosine of centred dlib descriptors, a network nothing here is trained against; [] where dlib is not installed."""
    try:
        from benchmarks.claims_measure import DlibIdentity

        judge = DlibIdentity(originals)
    except ImportError:
        log.warning("identity is not measured: needs dlib-bin and face_recognition_models from PyPI")
        return []
    return [float(value) for value in judge(pictures)]


def clean_codes(plan: Plan, folder: str, seed: int) -> dict[str, float]:
    """The codebook that claim 2's adapter starts from, and what it cost: its seconds count as the adapter's."""
    settings = ["--seed", str(seed), "--data.pairs", folder, "--codebook.steps", "2000", "--codebook.precision", "bf16"]
    started = time.process_time()
    engine.run(codebook.CodebookTask, plan.config(f"codebook_{seed}", *settings, "--loss.pixel", "0"))
    return {"seconds": time.process_time() - started}


def race(plan: Plan, folder: Callable[[str], str], arm: str, seed: int) -> dict[str, Any]:
    """One arm of claim 2: the curve of (CPU seconds, error) at a constant learning rate."""
    settings = ["--seed", str(seed), "--data.pairs", folder("faces"), "--adapter.steps", "5000", "--adapter.final", "1.0"]
    config = plan.config(f"{arm}_{seed}", *settings, "--adapter.precision", "bf16", "--log.best", "psnr")
    vae = vae_of(config, engine.join_processes())
    network = adapter_from(plan.out / "runs" / f"codebook_{seed}", "codebook")
    task = Arm(arm, vae, network, RestoreSettings().fidelity)
    held = Spoilt(replace(config, data=replace(config.data, pairs=folder("held_out"))), pixels=arm != "adapter")
    where = Path(config.log.out) / arm
    judge = Error(held, plan.count or len(held), where)
    train(task, config.adapter, config, Spoilt(config, pixels=arm != "adapter"), None, judge)
    before = 0.0 if arm == "encoder" else json.loads((plan.out / f"codebook_{seed}.json").read_text())["seconds"]
    return {"curve": [[before + row["seconds"], row["error"]] for row in read_rows(where / "validation.csv")]}


# --- what it comes to ------------------------------------------------------------------------------------------------


def gain(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], draws: int = 4000) -> tuple[float, float, float]:
    """Gain in per cent of the mean over seeds and faces, with its 95 % bootstrap interval: seeds drawn, then faces, paired."""
    a, b = np.asarray(ours), np.asarray(theirs)
    g = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        seeds, faces = g.integers(0, len(a), len(a)), g.integers(0, a.shape[1], a.shape[1])
        found.append(100 * (a[seeds][:, faces].mean() / b[seeds][:, faces].mean() - 1))
    low, high = np.percentile(found, [2.5, 97.5])
    return float(100 * (a.mean() / b.mean() - 1)), float(low), float(high)


def report(plan: Plan, results: dict[str, Any]) -> str:
    """Markdown of everything that is there."""
    lines = ["# The paper's claims", "", "Written by `python -m benchmarks.claims`.", ""]
    for title, ours, theirs in (
        ("1. Adapter and LoRA against the LoRA alone", "faces", "raw"),
        ("3a. All faces against a third of them", "faces", "faces_third"),
        ("3b. All faces against a ninth of them", "faces", "faces_ninth"),
        ("3c. All degraded views against a quarter of them", "faces", "faces_fewer_views"),
    ):
        lines += [f"## {title}", ""]
        there = [s for s in plan.seeds if f"{ours}_{s}" in results and f"{theirs}_{s}" in results]
        if len(there) < len(plan.seeds):
            lines += [f"**Not tested**: {len(there)} of {len(plan.seeds)} seeds are done.", ""]
            continue
        for fidelity in FIDELITIES:
            for metric in METRICS:
                columns = [[results[f"{arm}_{s}"][f"{fidelity:g}"][metric] for s in there] for arm in (ours, theirs)]
                if all(columns[0]):
                    mean, low, high = gain(*columns)
                    lines.append(f"- fidelity {fidelity:g}, {metric}: {mean:+.1f} % [{low:+.1f}, {high:+.1f}]")
        lines.append("")
    lines += ["## 2. CPU seconds to an error, adapter against encoder", ""]
    there = [s for s in plan.seeds if all(f"{arm}_{s}" in results for arm in ARMS)]
    if len(there) < len(plan.seeds):
        return "\n".join([*lines, f"**Not tested**: {len(there)} of {len(plan.seeds)} seeds are done.", ""])
    lines += ["| error | " + " | ".join(ARMS) + " |", "|---|" + "---|" * len(ARMS)]
    for error in plan.errors:
        cells = []
        for arm in ARMS:
            times = [first(results[f"{arm}_{s}"]["curve"], error) for s in there]
            cells.append(", ".join("never" if math.isinf(t) else f"{t:.0f} s" for t in times))
        lines.append(f"| {error:g} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def first(curve: Sequence[Sequence[float]], error: float) -> float:
    """CPU seconds until the curve first reaches ``error``; infinite where it never does."""
    return next((seconds for seconds, value in curve if value <= error), math.inf)


def carry_out(plan: Plan, only: Sequence[str] = ()) -> dict[str, Any]:
    """Run every job (or ``only`` some and what they need) that has no result yet; returns all results there are."""
    plan.out.mkdir(parents=True, exist_ok=True)
    known = jobs(plan)
    wanted = list(known) if not only else []
    for name in only:
        wanted += [n for n in (*needed(known, name), name) if n not in wanted]
    for name in wanted:
        file = plan.out / f"{name}.json"
        if file.is_file():
            continue
        log.info("== %s", name)
        result = known[name].work()
        with atomic(file) as part:
            Path(part).write_text(json.dumps(evaluate.plain(result), allow_nan=False), encoding="utf-8")
    results = {n: json.loads((plan.out / f"{n}.json").read_text()) for n in known if (plan.out / f"{n}.json").is_file()}
    with atomic(plan.out / "claims.md") as part:
        Path(part).write_text(report(plan, results), encoding="utf-8")
    return results


def needed(known: dict[str, Job], name: str) -> list[str]:
    """What a job builds on, deepest first. Raises LafrError for an unknown name."""
    if name not in known:
        raise LafrError(f"claims: {name!r} is no job; {configs.nearest(name, list(known))}")
    return [n for need in known[name].needs for n in (*needed(known, need), need)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=Path, required=True, help="folder with train/ and val/: FFHQ faces")
    parser.add_argument("--portraits", type=Path, required=True, help="folder with faces.csv: what the diffusion prior learns")
    parser.add_argument("--vae", type=Path, required=True, help="folder with TAESD's two files")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="these jobs and what they need")
    parser.add_argument("--list", action="store_true", help="say what is done, and run nothing")
    args = parser.parse_args()
    plan = Plan(str(args.faces / "train"), str(args.faces / "val"), str(args.portraits), str(args.vae), args.out)
    if args.list:
        for name in jobs(plan):
            print(f"{'done' if (args.out / f'{name}.json').is_file() else '-':<5}{name}")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    try:
        carry_out(plan, args.only)
    except LafrError as error:
        print(f"claims: {error}", file=sys.stderr)
        sys.exit(1)
    print((args.out / "claims.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
