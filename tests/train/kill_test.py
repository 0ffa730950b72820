"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with a run that was left alone.

    python tests/train/kill_test.py --kills 10 [--stage codebook|adapter|prior]

Weights, averaged weights, optimiser, generators and codebook counts must agree to the last bit. Runs on the CPU; prints what
it saw.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.store import checkpoint
from train import config
from train.engine import checkpoints, run
from train.tasks import adapter, codebook, prior

STEPS = 40
TASKS = {"codebook": codebook.CodebookTask, "adapter": adapter.AdapterTask, "prior": prior.PriorTask}


def tiny_vae(path: Path) -> Path:
    """An untrained autoencoder of a few thousand parameters, saved as a vae file."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        small = {"fine": 8, "coarse": 16, "fine_blocks": 1, "coarse_blocks": 1}
        network = StarterVaeNet(encoder=small, decoder=small)
    checkpoint.save(path, "vae", network, network.config)
    return path


def settings(folder: Path, out: str, **overrides: object) -> config.Config:
    """A run of seconds: eight drawn faces of 64 pixels, tiny networks, a checkpoint every third step."""
    vae = folder / "vae.safetensors"
    if not vae.is_file():
        tiny_vae(vae)
    values = {
        "data.source": "drawn:8", "data.size": 64, "data.workers": 0, "models.vae": str(vae),
        "network.width": 8, "network.coarse": 16, "network.deep": 16, "network.code_width": 8, "network.entries": 16,
        "network.depth": 1, "network.grid": 8, "network.prior_widths": [8, 16, 16], "network.prior_depth": 1,
        "codebook.steps": STEPS, "codebook.batch": 2, "codebook.kmeans_at": [0, 7], "codebook.warmup": 3, "codebook.lr": 3e-3,
        "codebook.revive": 0.5,
        "adapter.steps": STEPS, "adapter.batch": 2, "prior.steps": STEPS, "prior.batch": 2,
        "loss.identity": 0, "log.out": str(folder / out), "log.tracker": "none", "log.plots": False,
        "log.save_every": 3, "log.every": 5,
        **overrides,
    }  # fmt: skip
    arguments: list[str] = []
    for key, value in values.items():
        arguments += [f"--{key}", str(value)]
    return config.parse(arguments)


def work(conf: config.Config, stage: str) -> None:
    """One process's life: train the stage to its end."""
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "1"
    run.run(TASKS[stage], conf)


def same(a: object, b: object, where: str = "") -> list[str]:
    """The paths at which two nested states differ; bits count, not values."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        return [p for key in {**a, **b} for p in same(a.get(key), b.get(key), f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [p for i, (x, y) in enumerate(zip(a, b, strict=True)) for p in same(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def kill_and_resume(folder: Path, kills: int, seed: int, stage: str = "codebook") -> list[str]:
    """Kill ``kills`` times, run to the end, and return the paths at which the final state differs from the undisturbed one.

    What the stage builds on is trained for a few steps first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "train.engine.run", "accelerate", "torch._dynamo"])
    random_ = random.Random(seed)

    def start(out: str, stage: str = stage, **overrides: object) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=work, args=(settings(folder, out, **overrides), stage))
        process.start()
        return process

    def finish(process: multiprocessing.process.BaseProcess, what: str) -> None:
        process.join()
        assert process.exitcode == 0, f"{what} ended with {process.exitcode}"

    base = {"models.codebook": folder / "base", "models.adapter": folder / "base"}
    for earlier in list(TASKS)[: list(TASKS).index(stage)]:
        finish(start("base", earlier, **{f"{earlier}.steps": 4}), f"the {earlier} stage before")
    finish(start("calm", **base), "the undisturbed run")
    killed = folder / "killed" / stage
    for number in range(kills):
        process = start("killed", **base)
        # Wait until it has gone past a step of its own choice, then a random moment: inside a step, or inside a save.
        goal = (number + 1) * (STEPS - 6) // (kills + 1)
        while process.is_alive() and _step(killed) < goal:
            time.sleep(0.005)
        time.sleep(random_.uniform(0.0, 0.08))
        if not process.is_alive():
            raise AssertionError(f"the run ended by itself (exit code {process.exitcode}) before it could be killed")
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        left = [p.name for p in killed.glob(".step_*")]
        print(f"kill {number + 1}: newest checkpoint {_step(killed)}{', in the middle of a save' if left else ''}", flush=True)
    finish(start("killed", **base), "the resumed run")
    ends = [checkpoints.newest(folder / out / stage) for out in ("calm", "killed")]
    assert ends[0] is not None and ends[1] is not None and ends[0].name == ends[1].name
    return same(checkpoints.load_state(ends[0]), checkpoints.load_state(ends[1]))


def _step(folder: Path) -> int:
    newest = checkpoints.newest(folder)
    return int(newest.name.removeprefix("step_")) if newest is not None else -1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=tuple(TASKS), default="codebook")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        different = kill_and_resume(Path(folder), args.kills, args.seed, args.stage)
    if different:
        sys.exit(f"{args.stage} differs after {args.kills} kills: {', '.join(different[:10])}")
    print(f"{args.stage}, {args.kills} kills: weights, average, optimiser, generators and counts are bit-identical")


if __name__ == "__main__":
    main()
