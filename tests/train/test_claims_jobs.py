"""The claims' experiment at tiny size: jobs in order, kept results, verdicts only where both sides were tested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kill_test import tiny_vae
from train_tiny import faces_at

from benchmarks import claims
from benchmarks.claims_rival import Arm
from lafr_core.errors import LafrError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.vae import open_vae

TINY = {
    "data.size": 64, "network.grid": 8, "network.width": 8, "network.coarse": 16, "network.deep": 16, "network.code_width": 8,
    "network.entries": 8, "network.depth": 1, "data.workers": 0, "pairs.precision": "no", "pairs.versions": 1,
    "pairs.rounds": 1, "codebook.steps": 2, "codebook.kmeans_at": [0], "adapter.steps": 2, "prior.steps": 2,
    "codebook.batch": 2, "adapter.batch": 2, "prior.batch": 2, "diffusion.batch": 2, "diffusion.channels": [32, 32],
    "diffusion.steps": 2, "diffusion.layers": 1, "log.validate_every": 1, "log.validation_faces": 1, "codebook.precision": "no",
    "adapter.precision": "no", "prior.precision": "no", "diffusion.precision": "no", "log.best": "psnr",
}  # fmt: skip


def plan_of(folder: Path) -> claims.Plan:
    more = tuple(word for key, value in TINY.items() for word in (f"--{key}", str(value)))
    faces = str(faces_at(folder / "faces", 3))
    return claims.Plan(faces, faces, "drawn:3", str(tiny_vae(folder / "vae.safetensors")), folder / "out", (0,), more, count=2)


def test_every_job_comes_after_what_it_needs(tmp_path: Path) -> None:
    known = claims.jobs(plan_of(tmp_path))
    seen: set[str] = set()
    for name, job in known.items():
        assert set(job.needs) <= seen, name
        seen.add(name)
    assert claims.needed(known, "raw_0") == ["faces", "portraits", "diffusion"]
    with pytest.raises(LafrError, match="'raw_1' is no job; did you mean 'raw_0'"):
        claims.needed(known, "raw_1")


def test_the_experiment_runs_keeps_what_is_done_and_judges_only_what_was_tested(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    plan = plan_of(tmp_path)
    results = claims.carry_out(plan, ["faces_0", "encoder_0"])
    assert {"portraits", "diffusion", "faces", "faces_0", "codebook_0", "held_out", "encoder_0"} == set(results)
    assert len(results["faces_0"]["0.75"]["psnr"]) == 2 and results["faces_0"]["0"]["ssim"] != results["faces_0"]["1"]["ssim"]
    assert [len(point) for point in results["encoder_0"]["curve"]] == [2, 2]
    text = (plan.out / "claims.md").read_text()
    assert text.count("**Not tested**") == 5  # nothing has both sides yet
    kept = (plan.out / "faces_0.json").stat().st_mtime_ns
    assert claims.carry_out(plan, ["faces_0"]) == results and (plan.out / "faces_0.json").stat().st_mtime_ns == kept


def test_gain_is_paired_and_first_is_the_first_crossing() -> None:
    theirs = [[1.0, 2.0, 5.0], [2.0, 4.0, 4.0]]
    ours = [[1.1 * value for value in row] for row in theirs]
    assert claims.gain(ours, theirs, draws=50) == pytest.approx((10.0, 10.0, 10.0))
    assert claims.first([(1.0, 0.9), (2.0, 0.5), (3.0, 0.6)], 0.5) == 2.0
    assert claims.first([(1.0, 0.9)], 0.5) == float("inf")


def test_arms_learn_what_they_say(tmp_path: Path) -> None:
    vae: Any = open_vae(tiny_vae(tmp_path / "vae.safetensors"))
    adapter = AdapterNet(width=8, coarse=16, deep=16, code_width=8, entries=8, depth=1, grid=8)
    batch = {"z_lq": torch.randn(1, 4, 8, 8), "z_hq": torch.randn(1, 4, 8, 8), "lq": torch.rand(1, 3, 64, 64)}
    for name in claims.ARMS:
        arm = Arm(name, vae, adapter, 0.75)
        sum(arm.losses(arm.model, batch).values()).backward()  # type: ignore[union-attr]
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in arm.model.parameters())
        assert isinstance(arm.model, AdapterNet) == (name != "encoder")
    assert not any(p.requires_grad for p in vae.network.parameters())  # the given autoencoder is left alone
    stored, afresh = (Arm(name, vae, adapter, 0.75) for name in ("adapter", "adapter_encoding"))
    with torch.no_grad():
        batch["z_lq"] = vae.encode(batch["lq"])
        assert torch.allclose(stored.latents(stored.model, batch), afresh.latents(afresh.model, batch), atol=1e-6)
