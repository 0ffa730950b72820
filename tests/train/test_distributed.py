"""Two processes of accelerate's launcher (gloo, CPU) give what one gives with twice the accumulation; codebooks agree."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_tiny import settings

from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.store import checkpoint
from train import config
from train.data import pairs
from train.engine import checkpoints, run
from train.tasks import codebook, critic, diffusion, joint

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-4
"""Relative, on every logged loss: the sums of two halves are rounded differently from one sum of all."""

WORKER = """
import os, sys, torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from train import config
from train.engine import run
from train.tasks import codebook

class Spy(codebook.CodebookTask):
    def finish(self):
        readings = super().finish()
        self.seen = getattr(self, "seen", []) + [self.network.codebook.codes.weight.detach().clone()]
        torch.save(self.seen, {folder!r} + "/codes_" + os.environ["RANK"] + ".pt")
        return readings

run.run(Spy, config.parse(["--config", {file!r}]))
"""


def launch(*what: str) -> str:
    """``accelerate launch`` with two CPU processes; returns what they wrote.

    ``--multi_gpu`` chooses torch's elastic launcher; with ``--cpu`` accelerate would start a single process.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", port, *what],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    steps = {"codebook.steps": 8, "codebook.kmeans_at": [0, 4], "log.every": 1, "log.save_every": 8}
    one = settings(tmp_path, "one", **steps, **{"codebook.accumulate": 2})
    two = settings(tmp_path, "two", **steps, **{"codebook.accumulate": 1})
    run.run(codebook.CodebookTask, one)
    file = tmp_path / "two.yaml"
    file.write_text(config.dump(two))
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(ROOT), folder=str(tmp_path), file=str(file)))
    launch(str(script))

    curves = [_losses(Path(conf.log.out) / "codebook" / "log.csv") for conf in (one, two)]
    assert len(curves[0]) == 8
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=TOLERANCE, atol=0)
    codes = [torch.load(tmp_path / f"codes_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*codes, strict=True)) and len(codes[0]) == 8
    single = checkpoints.load_state(Path(one.log.out) / "codebook" / "step_00000008")["weights"]["codebook.codes.weight"]
    torch.testing.assert_close(codes[0][-1], single, rtol=1e-3, atol=1e-4)


def _losses(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_every_stage_trains_in_two_launched_processes(tmp_path: Path) -> None:
    few = {f"{stage}.steps": 2 for stage in ("codebook", "adapter", "prior")}
    conf = settings(tmp_path, "run", **few, **{"codebook.kmeans_at": [0], "log.every": 1, "log.save_every": 2})
    file = tmp_path / "run.yaml"
    file.write_text(config.dump(conf))
    for stage in few:
        name = stage.removesuffix(".steps")
        said = launch("-m", "train", name, "--config", str(file))
        assert "process 1 of 2" in said and "process 2 of 2" in said
        state = checkpoints.load_state(Path(conf.log.out) / name / "step_00000002")
        assert state["weights"] and len(_losses(Path(conf.log.out) / name / "log.csv")) == 2


STORED: dict[str, dict[str, object]] = {
    "critic": {"critic.features": "random", "critic.identity": 0.5, "critic.identity_every": 1, "models.adapter": "none"},
    "diffusion": {"diffusion.channels": [32, 32], "diffusion.layers": 1},
}


@pytest.mark.parametrize("stage", STORED)
def test_two_processes_on_stored_pairs_equal_one_with_twice_the_batch(tmp_path: Path, stage: str) -> None:
    """Noise by sample, the critic's own gradients averaged: half of the batch each, and the same curve and weights."""
    if stage == "diffusion":
        pytest.importorskip("diffusers")
    common = {
        "data.pairs": tmp_path / "pairs", "pairs.versions": 1, "pairs.precision": "no", "data.window": 2, "data.around": 4,
        "network.prior_groups": 0, "network.prior_attention": False, "loss.identity_weights": "starter", f"{stage}.steps": 3,
        f"{stage}.batch": 4, "log.every": 1, "log.save_every": 3, **STORED[stage],
    }  # fmt: skip
    one = settings(tmp_path, "one", **common)
    two = settings(tmp_path, "two", **{**common, f"{stage}.batch": 2})
    pairs.run(one)
    (diffusion.run if stage == "diffusion" else critic.run)(one)
    file = tmp_path / "two.yaml"
    file.write_text(config.dump(two))
    assert "process 2 of 2" in launch("-m", "train", stage, "--config", str(file))
    # The identity term looks at the first face of each process, so only the other terms are the same.
    names = ("denoise",) if stage == "diffusion" else ("latent", "pixel", "near", "fool", "critic")
    curves = [_columns(Path(conf.log.out) / stage / "log.csv", names) for conf in (one, two)]
    assert len(curves[0]) == 3
    tolerance = TOLERANCE if stage == "diffusion" else 5e-2
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=tolerance, atol=1e-3)


def test_two_processes_train_adapter_and_prior_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Two networks at rates of their own, clipped apart, under critics whose gradients are averaged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = AdapterNet(width=8, coarse=16, deep=16, code_width=16, entries=16, depth=1, grid=8)
    checkpoint.save(tmp_path / "adapter.safetensors", "adapter", small, small.config)
    common = {
        "models.adapter": tmp_path / "adapter.safetensors", "joint.features": "random;random", "joint.identity": 0,
        "joint.steps": 3, "joint.batch": 4, "joint.warmup": 1, "loss.code": 0, "loss.stay": 0, "log.every": 1,
        "log.save_every": 3,
    }  # fmt: skip
    one, two = settings(tmp_path, "one", **common), settings(tmp_path, "two", **{**common, "joint.batch": 2})
    joint.run(one)
    file = tmp_path / "two.yaml"
    file.write_text(config.dump(two))
    assert "process 2 of 2" in launch("-m", "train", "joint", "--config", str(file))
    names = ("aligned_latent", "aligned_pixel", "aligned_commitment", "latent", "pixel", "near", "fool")
    curves = [_columns(Path(conf.log.out) / "joint" / "log.csv", names) for conf in (one, two)]
    assert len(curves[0]) == 3
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=2e-2, atol=1e-3)
    ends = [checkpoints.load_state(Path(conf.log.out) / "joint" / "step_00000003")["weights"] for conf in (one, two)]
    for name in ("adapter.extractor.stem.weight", "prior.out.weight"):
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=0, atol=5e-5)


def _columns(path: Path, names: tuple[str, ...]) -> list[list[float]]:
    with path.open() as file:
        return [[float(row[name]) for name in names] for row in csv.DictReader(file)]
