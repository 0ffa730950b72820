"""The paper's claims, in an experiment that can decide them. Resumable; days of one CPU, minutes to hours of a GPU.

    python -m benchmarks.claims --faces ../shared/data/ffhq256_research --vae ../shared/weights --out runs/claims \\
        --portraits "../shared/data/faces;../shared/data/faces_london" [--jobs 8] [--minutes 60] [--only diffusion …] [--list]

Every job goes through the training engine (``python -m train``), so a killed one goes on from its checkpoint; a finished one
leaves ``<job>.json`` and is not repeated. ``--jobs`` runs several side by side, each in its own process; ``--minutes`` ends all
in time, ``--go-on`` later goes on with those that it ended. The engine's settings (``--prior.batch 32``) are every run's.

The diffusion prior learns from portraits that are not FFHQ and is frozen; the VAE is TAESD's. Claim 1: codebook, adapter and
LoRA against the same LoRA on raw latents, each until its validation curve is flat, per seed. Claim 2: adapter against encoder
at a constant learning rate and the latent term alone: steps to preset errors, times what a step costs. Claim 3: claim 1's first
arm with fewer faces, and with fewer degraded views of them. What is judged are the restored latents of held-out faces, decoded;
jobs called ``scored_…`` do that, on any machine. Intervals are bootstraps over seeds and faces. ``claims.md`` in OUT has what
is there; jobs that were not run are *not tested*. Nothing trained here is shipped.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import claims_judge, claims_queue, claims_verdict
from benchmarks.claims_judge import Restoring
from benchmarks.claims_rival import TRAINED, Arm, Error, Spoilt, seconds_of_steps
from lafr_core.errors import LafrError
from lafr_core.settings import RestoreSettings
from train import config as configs
from train.config import Config
from train.data import pairs
from train.data.pairs import Shards
from train.engine import checkpoints
from train.engine import run as engine
from train.engine.journal import read_rows
from train.engine.loop import train
from train.engine.parts import adapter_from, vae_of
from train.tasks import adapter, codebook, diffusion, prior

log = logging.getLogger("benchmarks.claims")
FIDELITIES = (0.0, 0.75, 1.0)
SHARES = {"faces": 1.0, "faces_third": 1 / 3, "faces_ninth": 1 / 9, "faces_fewer_views": 1.0}
"""Sets of stored pairs and the share of the faces that is in them; the last has a quarter of the degraded views."""
VIEWS = 16
CURVE_FACES = 48
"""Held-out faces of the validation curves while a run learns; the verdict is over all of them."""


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
    count: int = 0
    """Held-out faces; 0 = all."""
    deadline: float = 0.0
    """Seconds of the clock (time.time) at which training stops; 0 = never."""
    own: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further settings of some jobs alone, by name without the seed."""

    def config(self, job: str, *settings: str) -> Config:
        """The run of one job: its own folder, the shared settings, then its own, then those of the command line."""
        common = [
            *("--name", job, "--log.out", str(self.out / "runs" / job), "--log.tracker", "none", "--models.vae", self.vae),
            *("--data.size", "256", "--network.grid", "32", "--data.severity", "full"),
            *("--loss.identity", "0", "--log.plots", "false", "--log.validate_every", "250", "--log.patience", "8"),
            *("--log.best", "psnr", "--codebook.steps", "2000", "--adapter.steps", "10000", "--prior.steps", "10000"),
        ]
        stem, _, seed = job.rpartition("_")
        own = self.own.get(stem if seed.isdigit() else job, ())
        found = configs.parse([*common, *settings, *self.more, *own])
        if not self.deadline:
            return found
        left = max(1e-6, (self.deadline - time.time()) / 60)
        return replace(found, log=replace(found.log, minutes=min(left, found.log.minutes or left)))

    def pairs(self, name: str) -> str:
        return str(self.out / "pairs" / name)

    def run(self, job: str) -> Path:
        return self.out / "runs" / job

    @property
    def unet(self) -> str:
        return str(self.run("diffusion") / "diffusion" / "unet")


@dataclass(frozen=True)
class Job:
    """One named piece of work and the jobs it builds on; its result is kept as JSON."""

    work: Callable[[], Any]
    needs: tuple[str, ...] = ()


def jobs(plan: Plan) -> dict[str, Job]:
    """Every job by name, each after those it needs; of those that can run, the first comes first."""
    found: dict[str, Job] = {}

    def add(name: str, work: Callable[..., Any], *given: Any, needs: Sequence[str] = ()) -> None:
        found[name] = Job(lambda: work(plan, *given), tuple(needs))

    clean = ("--pairs.versions", "0", "--pairs.pixels", "false")
    add("portraits", store, "portraits", plan.portraits, "--pairs.rounds", "4", *clean)
    add("held_out", store, "held_out", plan.validation, "--pairs.versions", "1", "--pairs.degraded", "true")
    add("faces", store, "faces", plan.faces, *views_of("faces"), "--pairs.degraded", "true")
    add("costs", costs)
    add("diffusion", train_diffusion, needs=["portraits", "held_out"])
    for seed in plan.seeds:
        add(f"codebook_{seed}", clean_codes, seed, needs=["faces"])
    for seed in plan.seeds:
        add(f"aligned_faces_{seed}", aligned, "faces", seed, needs=["faces", "held_out", f"codebook_{seed}"])
    for seed in plan.seeds:
        add(f"faces_{seed}", restored, "faces", seed, needs=[f"aligned_faces_{seed}", "diffusion"])
        add(f"raw_{seed}", restored, "raw", seed, needs=["faces", "held_out", "diffusion"])
    large = ("--data.size", "512", "--pairs.rounds", "2", *clean)
    add("portraits_large", store, "portraits_large", plan.portraits, *large, needs=["portraits"])
    add("diffusion_large", train_large, needs=["portraits_large", "diffusion"])
    for arm in TRAINED:
        for seed in plan.seeds:
            add(f"{arm}_{seed}", race, arm, seed, needs=["faces", "held_out", f"codebook_{seed}"])
    for name in list(SHARES)[1:]:
        add(name, store, name, plan.faces, *views_of(name), needs=["faces"])  # after what everything waits for
    for name in list(SHARES)[1:]:
        for seed in plan.seeds:
            add(f"aligned_{name}_{seed}", aligned, name, seed, needs=[name, "held_out", f"codebook_{seed}"])
            add(f"{name}_{seed}", restored, name, seed, needs=[f"aligned_{name}_{seed}", "diffusion"])
    for seed in plan.seeds:
        for name in (*SHARES, "raw"):
            add(f"scored_{name}_{seed}", scored, name, seed, needs=[f"{name}_{seed}"])
    return found


def views_of(name: str) -> tuple[str, ...]:
    """The settings of one of claim 3's sets."""
    views = VIEWS // 4 if name == "faces_fewer_views" else VIEWS
    return ("--subset", str(SHARES[name]), "--pairs.versions", str(views))


def store(plan: Plan, name: str, source: str, *settings: str) -> str:
    """Clean and degraded latents of a folder of faces."""
    return str(pairs.run(plan.config(name, "--data.source", source, "--data.pairs", plan.pairs(name), *settings)))


def train_diffusion(plan: Plan) -> dict[str, Any]:
    """The frozen prior of claims 1 and 3: a denoiser over all timesteps, watched on faces that it never learns."""
    settings = ["--data.pairs", plan.pairs("portraits"), "--diffusion.steps", "20000", "--diffusion.batch", "8"]
    more = ["--diffusion.lr", "2e-4", "--diffusion.precision", "no", "--diffusion.warmup", "500", "--diffusion.hold", "0.7"]
    diffusion.run(plan.config("diffusion", *settings, *more), Shards(plan.pairs("held_out")))
    return {"curve": curve_of(plan.run("diffusion") / "diffusion")}


def train_large(plan: Plan) -> dict[str, Any]:
    """The same prior gone on with at 512 pixels, for few-step sampling of whole crops."""
    settings = ["--data.pairs", plan.pairs("portraits_large"), "--models.unet", plan.unet, "--diffusion.steps", "5000"]
    more = ["--diffusion.batch", "2", "--diffusion.lr", "2e-4", "--diffusion.precision", "no", "--network.grid", "64"]
    diffusion.run(plan.config("diffusion_large", *settings, *more))
    return {"log": read_rows(plan.run("diffusion_large") / "diffusion" / "log.csv")[-1:]}


def clean_codes(plan: Plan, seed: int) -> dict[str, Any]:
    """The codebook of all faces, learned from clean latents. Claim 2's adapter starts there, so its steps count."""
    settings = ["--seed", str(seed), "--data.pairs", plan.pairs("faces"), "--loss.pixel", "0"]
    engine.run(codebook.CodebookTask, plan.config(f"codebook_{seed}", *settings))
    return {"steps": steps_of(plan.run(f"codebook_{seed}") / "codebook")}


def aligned(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The adapter of one arm of claims 1 and 3; fewer faces learn a codebook of their own first."""
    job = f"aligned_{name}_{seed}"
    settings = ["--seed", str(seed), "--data.pairs", plan.pairs(name), "--loss.gradient", "1.0"]
    if SHARES[name] < 1:
        engine.run(codebook.CodebookTask, plan.config(job, *settings, "--loss.pixel", "0", "--loss.gradient", "0"))
    else:
        settings += ["--models.codebook", str(plan.run(f"codebook_{seed}"))]
    config = plan.config(job, *settings)
    engine.run(adapter.AdapterTask, config, restoring(plan, config))
    return {"curve": curve_of(plan.run(job) / "adapter")}


def restored(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """The LoRA of one arm of claims 1 and 3, and what it makes of the held-out faces.

    ``raw`` has no adapter: its LoRA, of the same rank and as many steps, sees raw latents.
    """
    job = f"{name}_{seed}"
    adapted = "none" if name == "raw" else str(plan.run(f"aligned_{job}"))
    settings = ["--seed", str(seed), "--data.pairs", plan.pairs("faces" if name == "raw" else name)]
    settings += ["--models.unet", plan.unet, "--models.adapter", adapted, "--loss.gradient", "1.0"]
    config = plan.config(job, *settings)
    engine.run(prior.PriorTask, config, restoring(plan, config))
    asked = FIDELITIES if name == "faces" else (RestoreSettings().fidelity,)
    claims_judge.keep(config, Shards(plan.pairs("held_out")), plan.count, asked, plan.out / "restored" / f"{job}.safetensors")
    return {"curve": curve_of(plan.run(job) / "prior")}


def restoring(plan: Plan, config: Config) -> Restoring:
    """Who draws the validation curve of an adapter or a LoRA."""
    device = engine.join_processes()
    count = min(plan.count or CURVE_FACES, CURVE_FACES)
    return Restoring(Shards(plan.pairs("held_out")), count, vae_of(config, device), RestoreSettings().fidelity)


def race(plan: Plan, arm: str, seed: int) -> dict[str, Any]:
    """One arm of claim 2: the curve of (step, error) at a constant learning rate."""
    settings = ["--seed", str(seed), "--data.pairs", plan.pairs("faces"), "--adapter.steps", "5000", "--adapter.final", "1.0"]
    config = plan.config(f"{arm}_{seed}", *settings)
    device = engine.join_processes()
    network = adapter_from(plan.run(f"codebook_{seed}"), "codebook")
    task = Arm(arm, vae_of(config, device), network, RestoreSettings().fidelity)
    task.model.to(device)
    pixels = arm != "adapter"
    held = Spoilt(replace(config, data=replace(config.data, pairs=plan.pairs("held_out"))), pixels=pixels, device=device)
    judge = Error(held, plan.count or len(held))
    train(task, config.adapter, config, Spoilt(config, pixels=pixels, device=device), None, judge)
    return {"curve": curve_of(plan.run(f"{arm}_{seed}") / arm, "error")}


def costs(plan: Plan) -> dict[str, Any]:
    """Seconds and bytes of one step of claim 2's arms, one after the other in one process."""
    return seconds_of_steps(plan.config("costs"))


def scored(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """Scores of every held-out face, by fidelity."""
    config = plan.config(f"{name}_{seed}")
    if not Path(plan.pairs("held_out")).is_dir():  # made elsewhere: the same draws once more
        jobs(plan)["held_out"].work()
    return claims_judge.scores(config, Shards(plan.pairs("held_out")), plan.out / "restored" / f"{name}_{seed}.safetensors")


def curve_of(folder: Path, column: str = "psnr") -> list[list[float]]:
    """(step, value) of a run's validations."""
    return [[row["step"], row[column]] for row in read_rows(folder / "validation.csv") if column in row]


def steps_of(folder: Path) -> int:
    """Of a run's newest checkpoint."""
    newest = checkpoints.newest(folder)
    return checkpoints.run_of(newest)["step"] if newest is not None else 0


# --- the command line ------------------------------------------------------------------------------------------------


def carry_out(plan: Plan, only: Sequence[str] = (), *, go_on: bool = False) -> dict[str, Any]:
    """Run every job (or ``only`` some and what they need) that has no result yet; returns all results there are.

    ``go_on``: those that a deadline ended, too.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    known = jobs(plan)
    for name in claims_queue.wanted(known, only):
        if not claims_queue.done(plan.out, name, go_on):
            log.info("== %s", name)
            claims_queue.keep(plan.out, name, known[name].work(), plan.deadline)
    return reported(plan)


def reported(plan: Plan) -> dict[str, Any]:
    """All results that are there; claims.md is written anew from them."""
    results = claims_queue.results(plan.out, jobs(plan))
    claims_verdict.write(plan.out, plan.seeds, results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--faces", type=Path, required=True, help="folder with train/ and val/: FFHQ faces")
    parser.add_argument("--portraits", required=True, help="folders with faces.csv: what the diffusion prior learns")
    parser.add_argument("--vae", type=Path, required=True, help="folder with TAESD's two files")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--only", nargs="+", default=[], metavar="JOB", help="these jobs and what they need")
    parser.add_argument("--jobs", type=int, default=1, help="so many side by side, each in a process of its own")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop training after so long; 0 = never")
    parser.add_argument("--then", nargs=2, metavar=("JOB", "N"), help="N side by side as soon as JOB is done")
    parser.add_argument(
        "--of", nargs="+", action="append", default=[], metavar=("JOB", "KEY=VALUE"), help="settings of one job"
    )
    parser.add_argument("--go-on", action="store_true", help="go on with jobs that an earlier --minutes ended")
    parser.add_argument("--count", type=int, default=0, help="held-out faces; 0 = all")
    parser.add_argument("--list", action="store_true", help="say what is done, and run nothing")
    parser.add_argument("--alone", metavar="JOB", help=argparse.SUPPRESS)  # one job in the process of its own
    parser.add_argument("--deadline", type=float, default=0.0, help=argparse.SUPPRESS)
    args, more = parser.parse_known_args()
    deadline = args.deadline or (time.time() + 60 * args.minutes if args.minutes else 0.0)
    own = {job: tuple(f"--{text}" for text in texts) for job, *texts in args.of}
    places = (str(args.faces / "train"), str(args.faces / "val"), args.portraits, str(args.vae), args.out)
    plan = Plan(*places, more=tuple(more), count=args.count, deadline=deadline, own=own)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", datefmt="%H:%M:%S")
    try:
        known = jobs(plan)
        if args.list:
            for name in known:
                print(f"{'done' if claims_queue.done(args.out, name) else '-':<5}{name}")
        elif args.alone:
            claims_queue.keep(plan.out, args.alone, known[args.alone].work(), deadline)
        elif args.jobs > 1:
            names = claims_queue.wanted(known, args.only)
            try:
                at_once = claims_queue.Slots(args.jobs, *(args.then or ("", args.jobs)))
                claims_queue.side_by_side(known, names, plan.out, at_once, sys.argv[1:], deadline, args.go_on)
            finally:
                print("done:", *reported(plan))
        else:
            carry_out(plan, args.only, go_on=args.go_on)
            print((args.out / "claims.md").read_text(encoding="utf-8"))
    except LafrError as error:
        print(f"claims: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
