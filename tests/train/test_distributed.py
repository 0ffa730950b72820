"""Two processes (gloo, CPU) give what one process gives with twice the accumulation; codebooks agree on all ranks."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from train_tiny import settings

from train import checkpoints, codebook, config, run

ROOT = Path(__file__).parents[2]
TOLERANCE = 2e-4
"""Relative, on every logged loss: the sums of two halves are rounded differently from one sum of all."""

WORKER = """
import os, sys, torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from train import codebook, config, run

class Spy(codebook.CodebookTask):
    def finish(self):
        readings = super().finish()
        self.seen = getattr(self, "seen", []) + [self.network.codebook.codes.weight.detach().clone()]
        torch.save(self.seen, {folder!r} + "/codes_" + os.environ["RANK"] + ".pt")
        return readings

run.run(Spy, config.parse(["--config", {file!r}]))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    steps = {"codebook.steps": 8, "codebook.kmeans_at": [0, 4], "log.every": 1, "log.save_every": 8}
    one = settings(tmp_path, "one", **steps, **{"codebook.accumulate": 2})
    two = settings(tmp_path, "two", **steps, **{"codebook.accumulate": 1})
    run.run(codebook.CodebookTask, one)
    file = tmp_path / "two.yaml"
    file.write_text(config.dump(two))
    script = WORKER.format(root=str(ROOT), folder=str(tmp_path), file=str(file))
    port = str(free_port())
    workers = []
    for rank in (0, 1):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": port, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "2"}
        workers.append(
            subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        )
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors

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
